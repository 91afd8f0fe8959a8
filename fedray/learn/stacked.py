"""Local training of many sites as one program; `local.py`, whose loop is the plain form, says what it does.

Start at `Training.run`. A group's parameters are planes (`planes.py`), its batches blocks (`layout.py`), its
model a chain of layers by hand (`layers.py`, `chain.py`), its loss a head (`heads.py`). In each step the
sites that still have a batch are the first rows of everything. Where a step is plain gradient descent, a
matrix's gradient is never formed: the product that would give it moves the matrix (`is_fused`).
Row i has the same bits in every group that holds its site, alone or among two hundred.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedray import tree
from fedray.cancellation import stop_if_cancelled
from fedray.learn.batches import Batch
from fedray.learn.dropout import words_of
from fedray.learn.ghost import CLIP_EPS
from fedray.learn.layers import Frame
from fedray.learn.layout import Layout, Move, draw, table_of
from fedray.learn.mapped import width_of
from fedray.learn.planes import Planes, Space
from fedray.learn.rules import SgdRule
from fedray.learn.shared import Shared
from fedray.rng import Key

if TYPE_CHECKING:
    from fedray.learn.local import LocalTraining
    from fedray.learn.rows import Stackable

KEPT_TRAININGS = 8  # whose buffers are kept for the next round


@dataclass(frozen=True, slots=True)
class Extras:
    """What acts on the gradients besides the loss: flat buffers of one row or k, and numbers."""

    correction: Tensor | None
    anchor: Tensor
    prox: float
    rate: float | Tensor  # one for all, or (k, 1) in the given order


def is_plain_step(local: "LocalTraining") -> bool:
    """Tell whether a step is a multiple of the gradient and of the weights, and nothing else."""
    return isinstance(local.rule, SgdRule) and not local.rule.momentum and local.clip_norm is None


class Training:
    """The local training of a number of sites: buffers and views that are used again, round after round.

    `begin` takes what a group starts from, `run` takes its steps, `delta` and `mean_loss` give what it came
    to. With several lanes every site has as many rows of parameters, which see the same batches (trials that
    differ in numbers): rows are then in the order of sites, each with its lanes.
    """

    def __init__(
        self,
        local: "LocalTraining",
        how: "Stackable",
        schema: tree.Schema,
        device: torch.device,
        sites: int,
        width: int,
        lanes: int = 1,
    ) -> None:
        self.local, self.chain, self.head = local, how.chain, how.head
        self.schema, self.device, self.width = schema, device, width
        self.k, self.lanes = sites * lanes, lanes
        self.matrices = how.chain.matrices
        if lanes > 1 or local.batch_size is None:  # lanes lie below each other; a few steps do not pay for it
            self.matrices = replace(self.matrices, flipped=())
        self.plan: Any = None  # Layout, from `begin` on
        self.order: Tensor | None = None
        self.space, self.generator = Space(), torch.Generator()
        self.mapped_outputs = 0
        self._bound: dict[Any, list[Any]] = {}  # layers whose views are taken, by frame and active sites
        self._tables: dict[str, tuple[Layout, list[Tensor], Tensor, Tensor]] = {}  # by column
        self._planes: dict[tuple[str, int], Planes] = {}
        self._frames: dict[tuple[bool, int], Frame] = {}

    def begin(self, plan: Layout, start: Tensor, extras: Extras, keys: Sequence[Key]) -> None:
        """Take a group: its batches, its parameters of one row or k, and a key for each site."""
        if plan is not self.plan:
            self.plan = plan
            self.order = None if plan.is_sorted else self._order()
        self.start, self.keys, self.rate = start, keys, extras.rate
        if isinstance(self.rate, Tensor):
            self.rate = self._sorted(self.rate.to(start))
        self.lost = torch.zeros(self.k, dtype=torch.float64)
        for planes in self._planes.values():  # a site that was not finite may have left that in its row
            planes.clear_padding()
        self._choose(extras)
        self._load(extras)

    def _order(self) -> Tensor:
        """Return the place, in the given order, of each row of parameters."""
        places = [site * self.lanes + lane for site in self.plan.order for lane in range(self.lanes)]
        return torch.tensor(places, device=self.device)

    def _sorted(self, rows: Tensor) -> Tensor:
        """Bring rows of the given order into that of the parameters."""
        return rows if self.order is None else rows[self.order]

    def _choose(self, extras: Extras) -> None:
        """Settle how a step moves: by settings and by what was given, never by who is in the group."""
        local, is_plain = self.local, is_plain_step(self.local)
        self.decay = self._decays(extras.prox + (local.rule.weight_decay if is_plain else 0.0))
        has_decay = any(self.decay.values())
        is_one_rate = not isinstance(self.rate, Tensor)
        self.is_fused = is_plain and not self.plan.is_wide and (is_one_rate or not has_decay)
        self.is_folded = self.is_fused and not has_decay
        if not self.is_fused:
            self.decay = self._decays(extras.prox)
        self._factors = self.planes("weights").factors(self.decay) if any(self.decay.values()) else None

    def _load(self, extras: Extras) -> None:
        """Copy what arrives into planes."""
        self.weights = self.planes("weights").load(self.start.expand(self.k, -1), self.order)
        pull = None if not extras.prox else extras.anchor * -extras.prox
        self.fixed = self._fixed(pull, extras.correction) if self.is_fused else None
        self.pull = None if self.is_fused else self._constant("pull", pull)
        self.correction = None if self.is_fused else self._constant("correction", extras.correction)
        self.frame = self._frame()
        self.moments = {name: self.planes(name).zero().tensors for name in self.local.rule.slots}

    def delta(self) -> Tensor:
        """Return local - global as a flat buffer, (k, stride) in the given order."""
        return self.weights.difference(self.start, self.order)

    def planes(self, name: str, rows: int | None = None) -> Planes:
        """Return the planes of a name, zero when they are made."""
        key = name, rows or self.k
        if key not in self._planes:
            self._planes[key] = Planes(self.schema, self.matrices, key[1], self.device)
        return self._planes[key]

    def _decays(self, fixed: float) -> dict[str, float]:
        """Return the factor of each leaf's own value in the gradient: `fixed`, and l2 where it applies."""
        l2, spared = self.local.l2, self.local.unpenalised
        return {
            leaf.name: fixed + (0.0 if leaf.name.rpartition(".")[2].startswith(spared) else l2)
            for leaf in self.schema.leaves
        }

    def _constant(self, name: str, constant: Tensor | None) -> list[Tensor] | None:
        """Return a constant of the gradient as planes; of one row where it is the same for all."""
        if constant is None:
            return None
        return self.planes(name, len(constant)).load(constant, self.order).tensors

    def _fixed(self, pull: Tensor | None, correction: Tensor | None) -> Planes | None:
        """Return what a fused step adds to the weights whatever its batch: -lr times the constants.

        One row serves all where it can: it stays in the cache, and a step then reads the weights alone.
        """
        if pull is None and correction is None:
            return None
        constant = pull if correction is None else correction if pull is None else correction + pull
        assert constant is not None
        rows = len(constant) if isinstance(self.rate, float) else self.k
        return self.planes("fixed", rows).load(constant, self.order, -self.rate)

    def _frame(self) -> Frame:
        self.kind = self.is_fused, self.fixed.rows if self.fixed else 0
        if self.kind not in self._frames:
            gradients = None if self.is_fused else self.planes("gradients")
            vectors = gradients or self.planes("vectors")
            self._frames[self.kind] = self._framed(self.weights, vectors, gradients)
        frame = self._frames[self.kind]
        if self.is_fused:
            frame.move, frame.fixed = -1.0 if self.is_folded else -float(self.rate), self.fixed
            frame.keep = {name: 1 - float(self.rate) * d for name, d in self.decay.items() if d}
            self._keep = None if self._factors is None else 1 + frame.move * self._factors[-1]
        self._name_masks(frame)
        return frame

    def _framed(self, weights: Any, vectors: Any, gradients: Any) -> Frame:
        return Frame(
            weights, vectors, gradients, self.space, self.schema.dtype, self.device, self.k, self.width
        )

    def _name_masks(self, frame: Frame) -> None:
        if self.chain.num_dropouts:
            values = [self.keys[i].value for i in self.plan.order for _ in range(self.lanes)]
            words = words_of(values, self.chain.num_dropouts, max(self.plan.steps, default=0))
            frame.words = words.to(self.device)

    def run(self, rows: Sequence[Batch]) -> None:
        """Take every step of every site; `rows` are the training rows of each."""
        plan, model = self.plan, self.local.model
        if not plan.chunks:
            return
        draws = plan.drawn
        if draws is None:
            draws = draw(plan, self.keys, self.local.batch_size, self.generator)
        tables = [(name, *self._table(name, rows)) for name in (model.inputs[0], model.target)]
        for chunk in plan.chunks:
            at = plan.slots[chunk.blocks].view(-1)
            drawn = draws.index_select(0, at)
            x, y = (
                self._gathered(name, table, drawn + begins.index_select(0, at))
                for name, table, begins in tables
            )
            self._chunk(chunk.moves, chunk.blocks, x, y)

    def _table(self, name: str, rows: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Return a column of all sites in one table, and where the site of each draw begins in it.

        What is a view is remembered for when the same sites come again; the key keeps the columns, and so
        their ids.
        """
        plan = self.plan
        columns = [rows[i][name] for i in plan.order]
        known = self._tables.get(name)
        if known is not None and known[0] is plan and all(map(operator.is_, known[1], columns)):
            return known[2], known[3]
        table, begins = table_of(columns)
        counts = np.diff([*plan.starts, plan.num_draws])
        found = table, torch.from_numpy(np.repeat(begins, counts))
        self._tables.pop(name, None)
        if table.untyped_storage().data_ptr() == columns[0].untyped_storage().data_ptr():
            self._tables[name] = (plan, columns, *found)
        return found

    def _gathered(self, name: str, table: Tensor, rows: Tensor) -> Tensor:
        """Return rows of a table, in memory that is used again: new memory would be paged in each time."""
        out = self.space.take(("column", name), (len(rows), *table.shape[1:]), table.dtype, table.device)
        found = torch.index_select(table, 0, rows.to(table.device), out=out).to(self.device)
        found = found.view(-1, self.width, *table.shape[1:])
        return found.to(self.schema.dtype) if found.is_floating_point() else found

    def _chunk(self, moves: Sequence[Move], blocks: slice, x: Tensor, y: Tensor) -> None:
        """Run the moves of a chunk; x is (blocks, width, features), y its labels."""
        if self.local.model.flatten:
            x = x.flatten(2)
        if self.local.model.task != "classes":
            y = y.to(self.schema.dtype)
        weights = self._spread(self.plan.weights[blocks].to(self.device))
        self.head.start(self._spread(y), weights, self._moves(weights, blocks))
        shape = (x.shape[0] * self.lanes, self.width, self.chain.outputs or self._outputs(x))
        outputs = self.space.take("outputs", shape, self.schema.dtype, self.device)
        columns = [x, outputs, self.head.target, self.head.moves]
        if self.plan.units is not None:
            columns.append(self.plan.units[blocks].to(self.device))
        for move, pieces in zip(moves, self._pieces(moves, columns), strict=True):
            stop_if_cancelled()
            active, stepping = move.active * self.lanes, move.stepping * self.lanes
            self.layers = self._bound.get((self.kind, active)) or self._bind(active)
            self.frame.step, self.frame.block = move.step, move.block
            self._block(*pieces)
            if move.is_last:
                self._step(stepping, move.step)
                if self.plan.is_static:
                    self._account(outputs, blocks, stepping)
        if not self.plan.is_static:
            self._account(outputs, blocks, self.k)

    def _spread(self, column: Tensor) -> Tensor:
        """Give every lane of a site the site's own labels and weights."""
        return column if self.lanes == 1 else column.repeat_interleave(self.lanes, 0)

    def _rows(self, blocks: slice) -> Tensor:
        """Return the row of parameters that each block of a chunk is of."""
        site = self.plan.site[blocks]
        if self.lanes == 1:
            return site
        return (site.unsqueeze(1) * self.lanes + torch.arange(self.lanes)).flatten()

    def _outputs(self, x: Tensor) -> int:
        """Return how many outputs a row has, of a model of which only its rows tell."""
        if not self.mapped_outputs:
            params = tree.Flat(self.start[:1], self.schema)
            self.mapped_outputs = width_of(self.local.model, params, x[0, :1])
        return self.mapped_outputs

    def _pieces(self, moves: Sequence[Move], columns: Sequence[Tensor]) -> Iterable[tuple[Tensor, ...]]:
        """Return each move's part of the columns; one split costs less than a slice for each move."""
        inputs, *others = columns
        if self.plan.is_static:
            wide = [slice(m.here.start * self.lanes, m.here.stop * self.lanes) for m in moves]
            pairs = zip(moves, wide, strict=True)
            return [(inputs[m.here], *(column[here] for column in others)) for m, here in pairs]
        counts = [move.active for move in moves]
        spread = [count * self.lanes for count in counts]
        return zip(inputs.split(counts), *(column.split(spread) for column in others), strict=True)

    def _bind(self, active: int) -> list[Any]:
        """Return layers with views of the first `active` sites; they are kept, for views cost more than a
        step.
        """
        layers = self._bound[self.kind, active] = self.chain.layers()
        if self.lanes > 1:
            layers[0] = Shared(layers[0], self.lanes)
        for layer in layers:
            layer.bind(self.frame, active)
        return layers

    def _moves(self, weights: Tensor, blocks: slice) -> Tensor:
        """Return how far a row moves its site, where the rate can be brought into the rows' weights at once.

        One rate for all is brought in as one for each site is, so that both give equal bits.
        """
        if not self.is_folded:
            return weights
        if isinstance(self.rate, Tensor):
            return weights * self.rate[self._rows(blocks).to(self.device)]
        return weights * self.rate

    def _block(
        self, x: Tensor, kept: Tensor, target: Tensor, moves: Tensor, units: Tensor | None = None
    ) -> None:
        """Go forward and back through the chain for one block of each active site."""
        layers, clip = self.layers, self.local.record_clip
        for layer in layers:
            x = layer.forward(x)
        kept.copy_(x)
        g: Any = self.head.gradient(x, target, moves)
        for layer in layers[:0:-1]:
            g = layer.backward(g, True)
            if clip is None:
                layer.learn()
        layers[0].backward(g, False)
        if clip is None:
            layers[0].learn()
        else:
            self._clip_records(clip, moves.abs(), units)  # a row's gradient was multiplied by its move

    def _clip_records(self, bound: float, share: Tensor, units: Tensor | None) -> None:
        """Scale the gradient of each row, or of each unit, to a norm of at most `bound`, then learn."""
        same = None if units is None else (units.unsqueeze(2) == units.unsqueeze(1)).to(share.dtype)
        norms = [(layer, norm) for layer in self.layers if (norm := layer.norms(same)) is not None]
        total = torch.stack([norm for _, norm in norms]).sum(0)
        if same is not None:
            total = (same * total.unsqueeze(1)).sum(2).clamp_min_(0)  # rounding may go below
        total.sqrt_()
        factor = torch.clamp(bound * share / (total + CLIP_EPS * share), max=1.0).nan_to_num_(0.0)
        for layer, _ in norms:
            layer.g = layer.g * factor.unsqueeze(2)
            layer.learn()

    def _step(self, stepping: int, step: int) -> None:
        """Move what the layers have not moved, in the first `stepping` rows."""
        if self.is_fused:
            self._fused_step(stepping)
            return
        weights = self.weights.active(stepping)
        gradients = self.frame.vector_gradients.active(stepping)
        self._adjust(weights, gradients, stepping)
        rate = self.rate[:stepping] if isinstance(self.rate, Tensor) else self.rate
        for number, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            state = {name: planes[number][:stepping] for name, planes in self.moments.items()}
            self.local.rule.step(weight, gradient, state, rate, step + 1)

    def _fused_step(self, active: int) -> None:
        """Move the plane of vectors, the last one."""
        if len(self.weights.tensors) == len(self.matrices.names):
            return
        vectors = self.weights.tensors[-1][:active]
        if self._keep is not None:
            vectors.mul_(self._keep)
        vectors.add_(self.frame.vector_gradients.tensors[-1][:active], alpha=self.frame.move)
        if self.fixed is not None:
            vectors.add_(self.fixed.tensors[-1][:active])

    def _adjust(self, weights: Sequence[Tensor], gradients: Sequence[Tensor], active: int) -> None:
        """Add penalties, clip, and correct, in the order of the plain form."""
        if self._factors is not None:
            for weight, gradient, factor in zip(weights, gradients, self._factors, strict=True):
                gradient.addcmul_(weight, factor)
        for gradient, plane in zip(gradients, self.pull or (), strict=self.pull is not None):
            gradient.add_(plane[:active])
        if self.local.clip_norm is not None:
            norms = [torch.linalg.vector_norm(gradient, dim=1) for gradient in gradients]
            norm = torch.stack(norms).square_().sum(0).sqrt_()
            factor = torch.clamp(self.local.clip_norm / (norm + CLIP_EPS), max=1.0).unsqueeze(1)
            for gradient in gradients:
                gradient.mul_(factor)
        for gradient, plane in zip(gradients, self.correction or (), strict=self.correction is not None):
            gradient.add_(plane[:active])

    def _account(self, outputs: Tensor, blocks: slice, stepping: int) -> None:
        """Add the loss of every row seen, before its step, to its site's total."""
        site, lengths = self._rows(blocks), self._spread(self.plan.lengths[blocks])
        found = self.head.loss(outputs).double().sum(1).cpu() * lengths
        if stepping < self.k:
            found, site = found[site < stepping], site[site < stepping]
        self.lost.index_add_(0, site, found)

    def mean_loss(self) -> Tensor:
        """Return the mean loss over the rows that each site saw, (k,) in the given order."""
        seen = self._spread(torch.tensor(self.plan.seen, dtype=torch.float64))
        mean = self.lost / seen.clamp_min(1)
        return mean if self.order is None else torch.empty_like(mean).index_copy_(0, self.order.cpu(), mean)
