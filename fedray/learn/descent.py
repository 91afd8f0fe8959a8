"""The vectors of one plain local training: weights, gradient, what acts on it. `local.py` runs the loop."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fedray import tree
from fedray.learn.batches import Batch, num_rows
from fedray.learn.clipping import Clipping
from fedray.learn.ghost import CLIP_EPS, Units
from fedray.learn.models import Model
from fedray.learn.stopping import Watch
from fedray.rng import Key
from fedray.tree import Flat

if TYPE_CHECKING:
    from fedray.learn.local import LocalTraining


class Pull(NamedTuple):
    """What acts on a gradient besides the loss; vectors over the trainable elements."""

    correction: Tensor | None
    anchor: Tensor
    prox: float


class Descent:
    """The vectors of one local training."""

    def __init__(
        self, local: "LocalTraining", params: Flat, rng: Key, reference: Mapping[str, Tensor] | None = None
    ) -> None:
        self.local = local
        fixed = None if reference is None else tree.flatten(reference, params.schema)
        self.reference = None if fixed is None else Descent(local, fixed, rng)
        self.flat = Flat(params.buffer.detach().clone(), params.schema)
        trainable = params.schema.trainable
        self.weights = self.flat.buffer[0, :trainable]
        self.gradient = torch.zeros_like(self.weights)
        inside = [leaf for leaf in params.schema.leaves if leaf.offset < trainable]
        self.leaves = {leaf.name: _as_leaf(self.flat[leaf.name]) for leaf in inside}
        self.copies = [(leaf, self.flat[name]) for name, leaf in self.leaves.items() if leaf.dim() in (4, 5)]
        self.slots = [
            self.gradient[leaf.offset : leaf.offset + leaf.size].view(leaf.shape) for leaf in inside
        ]
        self.still = {name: self.flat[name].clone() for name in params if name not in self.leaves}
        is_model = isinstance(local.model, Model)
        self.step = local.model.training(self.flat, rng.value) if is_model else None
        self.penalty = self._penalty(inside) if local.l2 else None

    def _penalty(self, inside: Sequence[tree.Leaf]) -> Tensor:
        factors = torch.zeros_like(self.weights)
        for leaf in inside:
            if not leaf.name.rpartition(".")[2].startswith(self.local.unpenalised):
                factors[leaf.offset : leaf.offset + leaf.size] = self.local.l2
        return factors

    def differentiate(self, batch: Batch, number: int = 0) -> Tensor:
        """Put the gradient of the loss in step `number` into `gradient` and return the loss.

        With a reference its gradient, on the same batch and penalties included, is subtracted.
        """
        if self.step is not None:
            self.step.step = number
        local, given = self.local, {**self.leaves, **self.still}
        with torch.enable_grad(), local.precision(self.weights.device):
            loss = self._loss(given, batch)
        if not isinstance(loss, Tensor) or loss.dim():
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the loss must be one number, the mean over the rows of a batch; got {shape}")
        if local.record_clip is not None:
            rows = num_rows(batch)
            found = self._clipped_sum(batch, Units.alone(rows, self.weights.device))
            torch._foreach_div_(found, rows)
        else:
            found = torch.autograd.grad(loss, list(self.leaves.values()), materialize_grads=True)
        torch._foreach_copy_(self.slots, list(found))
        if self.reference is not None:
            self.gradient.sub_(self.reference.penalised(batch, number))
        return loss.detach()

    def penalised(self, batch: Batch, number: int = 0) -> Tensor:
        """Return the gradient of loss and l2 penalty on a batch."""
        self.differentiate(batch, number)
        if self.penalty is not None:
            self.gradient.addcmul_(self.weights, self.penalty)
        return self.gradient

    def _loss(self, given: Mapping[str, Tensor], batch: Batch) -> Tensor:
        objective = self.local.objective
        return (
            self._own_loss(given, batch) if objective is None else objective(self._own_loss, given, batch)
        )

    def _own_loss(self, given: Mapping[str, Tensor], batch: Batch) -> Tensor:
        model = self.local.model
        if self.step is None:
            return model(given, batch)
        return model.loss(given, batch, self.step, self.local.pos_weight)

    def clip_units(self, batch: Batch, units: Units, divisor: float, step: int) -> None:
        """Put the sum of the units' clipped gradients over a divisor into `gradient`."""
        if self.step is not None:
            self.step.step = step
        found = self._clipped_sum(batch, units)
        torch._foreach_div_(found, divisor)
        torch._foreach_copy_(self.slots, found)

    def _clipped_sum(self, batch: Batch, units: Units) -> list[Tensor]:
        local = self.local
        assert local.record_clip is not None
        clipping = local.clipping if local.objective is None else Clipping(self._loss)
        return clipping.clipped_sum(self.leaves, self.still, batch, units, local.record_clip, self.step)

    def refresh(self) -> None:
        """Bring weights back to where the objective wants them, and leaves that are no views up to them."""
        with torch.no_grad():
            if (project := getattr(self.local.objective, "project", None)) is not None:
                project(self.flat)
            for leaf, weight in self.copies:
                leaf.copy_(weight)

    def adjust(self, pull: Pull) -> None:
        """Add penalties, clip, and correct the gradient, in place."""
        gradient = self.gradient
        if self.penalty is not None:
            gradient.addcmul_(self.weights, self.penalty)
        if pull.prox:
            gradient.add_(self.weights - pull.anchor, alpha=pull.prox)
        if self.local.clip_norm is not None:
            gradient.mul_(torch.clamp(self.local.clip_norm / (gradient.norm() + CLIP_EPS), max=1.0))
        if pull.correction is not None:
            gradient.add_(pull.correction)

    def held_out_loss(self, batch: Batch) -> float:
        """Return the loss on rows that are not trained on, in evaluation mode and without penalties."""
        local, buffers = self.local, {} if self.step is None else self.step.buffers
        given: Mapping[str, Tensor] = {**self.leaves, **self.still, **buffers}
        if (own := getattr(local.objective, "own", None)) is not None:
            given = own(given)
        with torch.no_grad():
            if self.step is None:
                return float(local.model(given, batch))
            return float(local.model.loss(given, batch, None, local.pos_weight))

    def is_over(self, watch: Watch, valid: Batch) -> bool:
        """Measure; keep the best so far; at the end go back to it and return True."""
        here = {name: column.to(self.weights.device) for name, column in valid.items()}
        if watch.note(self.held_out_loss(here)):
            self._keep()
        if watch.is_over:
            self._restore()
        return watch.is_over

    def _keep(self) -> None:
        buffers = {} if self.step is None else self.step.buffers
        self.kept = self.flat.buffer.clone(), {name: value.clone() for name, value in buffers.items()}

    def _restore(self) -> None:
        buffer, buffers = self.kept
        self.flat.buffer.copy_(buffer)
        if self.step is not None:
            self.step.buffers |= buffers

    def result(self, params: Flat) -> Flat:
        """Return local - global, BatchNorm statistics included."""
        if self.step is not None:
            for name in self.still:
                self.flat[name].copy_(self.step.buffers.get(name, self.still[name]))
        return Flat(self.flat.buffer - params.buffer.detach(), params.schema)


def _as_leaf(weight: Tensor) -> Tensor:
    """Return a weight as a leaf of autograd: a view, or a channels-last copy of a convolution's weight.

    A convolution then works channels-last throughout: 1.3 times faster on small images.
    """
    if weight.dim() not in (4, 5):
        return weight.detach().requires_grad_()
    layout = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d
    return weight.detach().clone(memory_format=layout).requires_grad_()
