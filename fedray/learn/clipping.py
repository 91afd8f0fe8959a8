"""Gradients clipped unit by unit, in the plain form of local training. Start at `Clipping.clipped_sum`.

Three ways to the same numbers, tried in this order:
- by book-keeping (`ghost.py`), for modules whose parameters all belong to layers that are known there and are
  called once each, with the rows first;
- by `torch.func.vmap(grad)`: the gradients of rows are formed, some units at a time. For other modules;
- row by row: for recurrent layers, which torch cannot map, and for loss functions of one's own.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedray.learn import dropout
from fedray.learn.batches import Batch, num_rows
from fedray.learn.ghost import CLIP_EPS, KINDS, Seen, Units, clip_factors, layers_of, unlike, watched
from fedray.learn.losses import PosWeight
from fedray.learn.models import Model

ROWS_BYTES = 64 * 2**20  # of rows' gradients that are formed at a time
SAME_NORM = 1e-3  # of a row's norm within a batch and alone, relative: else rows are not what comes first
_log = logging.getLogger(__name__)


@dataclass
class Clipping:
    """How the units of one model are clipped; `reason` says why not by book-keeping."""

    model: Any
    pos_weight: PosWeight = None
    is_mapped: bool = True  # else row by row
    reason: str = ""
    _layers: dict[str, nn.Module] = field(default_factory=dict)
    _is_checked: bool = False

    def __post_init__(self) -> None:
        self.is_mapped = isinstance(self.model, Model) and not any(
            isinstance(layer, nn.RNNBase) for layer in self.model.module.modules()
        )
        found = _layers_of(self.model)
        if isinstance(found, str):
            self.reason = found
        else:
            self._layers = found

    @property
    def how(self) -> str:
        """Say which of the three ways is taken."""
        if not self.reason:
            return "by book-keeping"
        return f"{'by vmap' if self.is_mapped else 'row by row'}: {self.reason}"

    def clipped_sum(
        self,
        leaves: Mapping[str, Tensor],
        still: Mapping[str, Tensor],
        batch: Batch,
        units: Units,
        bound: float,
        step: Any = None,
    ) -> list[Tensor]:
        """Return the sum over units of their gradients, each scaled to a norm of at most `bound`.

        A unit's gradient is the sum of its rows'. One tensor for each of `leaves`, which require gradients.
        """
        if not num_rows(batch):
            return [torch.zeros_like(leaf) for leaf in leaves.values()]
        if not self.reason and len(leaves) != len(dict(self.model.module.named_parameters())):
            self.reason = "some leaves are held still"
        if not self.reason:
            found = self._by_book_keeping(leaves, still, batch, units, bound, step)
            if found is not None:
                return found
            _log.info("record-level clipping %s", self.how)
        by = self._by_vmap if self.is_mapped else self._row_by_row
        total = [torch.zeros_like(leaf) for leaf in leaves.values()]
        for sums in by(leaves, still, batch, units, step):
            norms = torch.stack([part.flatten(1).square().sum(1) for part in sums]).sum(0).sqrt()
            factors = clip_factors(norms, bound)
            torch._foreach_add_(total, [torch.tensordot(factors, part, 1) for part in sums])
        return total

    def _by_book_keeping(
        self, leaves: Mapping[str, Tensor], still: Mapping[str, Tensor], batch: Batch, units: Units,
        bound: float, step: Any,
    ) -> list[Tensor] | None:  # fmt: skip
        """Return the clipped sum, None where the module turns out not to be of that kind."""
        seen = self._pass(leaves, still, batch, step)
        if seen is None:
            return None
        norms = sum(KINDS[type(s.layer)].norms(s, g, units) for s, g in seen.values()).sqrt()
        if not self._is_checked:
            rows = norms if units.is_alone else None
            if not self._is_faithful(leaves, still, batch, step, rows, seen):
                return None
            self._is_checked = num_rows(batch) > 1  # a row alone has none beside it
        factors = clip_factors(norms, bound)[units.of_row]
        found = {
            f"{name}{kind}": value
            for name, (s, g) in seen.items()
            for kind, value in KINDS[type(s.layer)].learn(s, g, factors).items()
        }
        return [found[name] for name in leaves]

    def _pass(
        self, leaves: Mapping[str, Tensor], still: Mapping[str, Tensor], batch: Batch, step: Any
    ) -> dict[str, tuple[Seen, Tensor]] | None:
        """Go forward and back to the layers' outputs: what each layer saw, and the gradient there."""
        calls: dict[str, list[Seen]] = {}
        rows = num_rows(batch)
        with torch.enable_grad(), watched(self._layers, calls):
            loss = self.model.loss({**leaves, **still}, batch, step, self.pos_weight) * rows
        once = {name: found[0] for name, found in calls.items() if len(found) == 1}
        self.reason = unlike(once, calls, self._layers, rows)
        if self.reason:
            return None
        outputs = [s.output for s in once.values()]
        slopes = torch.autograd.grad(loss, outputs, materialize_grads=True)
        return {name: (s, g) for (name, s), g in zip(once.items(), slopes, strict=True)}

    def _is_faithful(
        self, leaves: Mapping[str, Tensor], still: Mapping[str, Tensor], batch: Batch, step: Any,
        norms: Tensor | None, seen: Mapping[str, tuple[Seen, Tensor]],
    ) -> bool:  # fmt: skip
        """Tell whether the norms of the first and last row are those that they have alone, by autograd.

        They are not where a layer's first dimension is as long as the batch by chance, or rows mix.
        """
        if norms is None:
            alone = Units.alone(num_rows(batch), batch[self.model.target].device)
            norms = sum(KINDS[type(s.layer)].norms(s, g, alone) for s, g in seen.values()).sqrt()
        for row in {0, num_rows(batch) - 1}:
            one = {name: column[row : row + 1] for name, column in batch.items()}
            with torch.enable_grad():
                loss = self.model.loss({**leaves, **still}, one, step, self.pos_weight)
            found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            norm = torch.stack([part.square().sum() for part in found]).sum().sqrt()
            if not bool((norm - norms[row]).abs() <= SAME_NORM * norm + CLIP_EPS):
                self.reason = "a row's gradient depends on the rows beside it"
        return not self.reason

    def _by_vmap(
        self, leaves: Mapping[str, Tensor], still: Mapping[str, Tensor], batch: Batch, units: Units, step: Any
    ) -> Iterator[list[Tensor]]:
        """Yield the gradients of some units at a time, (units, *shape) of each leaf."""
        plain = {name: leaf.detach() for name, leaf in leaves.items()}

        def loss(given: Mapping[str, Tensor], row: Mapping[str, Tensor]) -> Tensor:
            one = {name: column.unsqueeze(0) for name, column in row.items()}
            found: Tensor = self.model.loss({**given, **still}, one, step, self.pos_weight)
            return found

        gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
        size = sum(leaf.numel() * leaf.element_size() for leaf in leaves.values())
        wanted = (*self.model.inputs, self.model.target)
        for rows, part in _parts(units, max(1, ROWS_BYTES // size)):
            found = gradient(plain, {name: batch[name][rows] for name in wanted})
            yield [part.sum(found[name]) for name in leaves]

    def _row_by_row(
        self, leaves: Mapping[str, Tensor], still: Mapping[str, Tensor], batch: Batch, units: Units, step: Any
    ) -> Iterator[list[Tensor]]:
        """Yield the gradient of one unit at a time, (1, *shape) of each leaf."""
        given = {**leaves, **still}
        for rows, _ in _parts(units, 1):
            total = [leaf.new_zeros(1, *leaf.shape) for leaf in leaves.values()]
            for row in rows.tolist():
                one = {name: column[row : row + 1] for name, column in batch.items()}
                with torch.enable_grad():
                    if isinstance(self.model, Model):
                        loss = self.model.loss(given, one, step, self.pos_weight)
                    else:
                        loss = self.model(given, one)
                found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
                torch._foreach_add_(total, [part.unsqueeze(0) for part in found])
            yield total


def _parts(units: Units, most: int) -> Iterator[tuple[Tensor, Units]]:
    """Yield the rows of whole units, about `most` rows at a time and one unit at least."""
    order = torch.argsort(units.of_row, stable=True)
    ends = torch.bincount(units.of_row, minlength=units.count).cumsum(0).tolist()
    first = begin = 0
    for unit, end in enumerate(ends):
        is_last = unit + 1 == units.count
        if is_last or ends[unit + 1] - begin > most:
            rows = order[begin:end]
            yield rows, Units(units.of_row[rows] - first, unit + 1 - first)
            first, begin = unit + 1, end


def _layers_of(model: Any) -> dict[str, nn.Module] | str:
    """Return the layers by the prefix of their leaves, or why units are not clipped by book-keeping."""
    if not isinstance(model, Model):
        return "the loss is a function of its own"
    if model.custom_loss is not None:
        return "the model has a loss of its own"
    return layers_of(model.module)


def check_clippable(model: Any, pos_weight: PosWeight) -> None:
    """Raise ValueError where a row has no gradient of its own."""
    if isinstance(pos_weight, (list, tuple)):
        raise ValueError(
            "local training: record_clip with class weights: a row alone has no mean over weights to be part "
            "of; leave one of them out"
        )
    if not isinstance(model, Model):
        return
    if dropout.layers(model.module):
        raise ValueError(
            "local training: record_clip needs a model without dropout: every row is clipped alone"
        )
    for name, layer in model.module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase) and _mixes_rows(layer):
            raise ValueError(
                f"local training: record_clip with {type(layer).__name__} ({name or 'the model'}): it "
                "normalises a row by the rows beside it and keeps their statistics, so no row has a gradient "
                "of its own. Fix: LayerNorm or GroupNorm (norm=layer of an mlp, norm=group of a cnn)"
            )


def _mixes_rows(layer: nn.modules.batchnorm._NormBase) -> bool:
    is_own = isinstance(layer, nn.modules.instancenorm._InstanceNorm)
    return layer.track_running_stats if is_own else True
