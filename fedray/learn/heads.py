"""Losses over stacked rows: the gradient of each output by hand, and the loss of each row for the metrics.

A head is started once per chunk of batches with the labels, the weight of each row (its share of the batch's
mean; zero for padding) and what its gradient is multiplied by (the weight, or the weight times a rate).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedray.learn.losses import PosWeight, hazard_masks


@dataclass
class Binary:
    """One logit a row; `pos_weight` multiplies the positive rows."""

    pos_weight: float | None

    def start(self, target: Tensor, weights: Tensor, moves: Tensor) -> None:
        """Take labels (blocks, rows) and weights of a chunk."""
        self.target, self.weights, self.moves = target, weights, moves

    def gradient(self, output: Tensor, target: Tensor, moves: Tensor) -> Tensor:
        """Return the gradient at the outputs of some blocks, shaped as `output` (sites, rows, 1)."""
        z = torch.sigmoid(output.squeeze(2))
        if self.pos_weight is None:
            z.sub_(target)
        else:
            z.mul_(1 + (self.pos_weight - 1) * target).sub_(self.pos_weight * target)
        return z.mul_(moves).unsqueeze(2)

    def loss(self, outputs: Tensor) -> Tensor:
        """Return the weighted loss of each row of the chunk, (blocks, rows)."""
        factor = None
        if self.pos_weight is not None:
            factor = torch.tensor(self.pos_weight, dtype=outputs.dtype, device=outputs.device)
        rows = F.binary_cross_entropy_with_logits(
            outputs.squeeze(2), self.target, pos_weight=factor, reduction="none"
        )
        return rows * self.weights


@dataclass
class Number:
    """Squared error, the mean over outputs."""

    def start(self, target: Tensor, weights: Tensor, moves: Tensor) -> None:
        """Take targets (blocks, rows[, outputs]) and weights of a chunk."""
        self.target = target if target.dim() == 3 else target.unsqueeze(2)
        self.weights, self.moves = weights, moves

    def gradient(self, output: Tensor, target: Tensor, moves: Tensor) -> Tensor:
        """Return the gradient at the outputs of some blocks."""
        found = (output - target).mul_(2.0 / output.shape[2])
        return found.mul_(moves.unsqueeze(2))

    def loss(self, outputs: Tensor) -> Tensor:
        """Return the weighted loss of each row of the chunk, (blocks, rows)."""
        return (outputs - self.target).square().mean(2) * self.weights


@dataclass
class Classes:
    """A logit a class; with class weights a batch's mean is over the weights of its rows, as in torch."""

    class_weights: tuple[float, ...] | None
    classes: int

    def start(self, target: Tensor, weights: Tensor, moves: Tensor) -> None:
        """Take labels (blocks, rows) and weights of a chunk."""
        self.target, self.weights, self.moves = target.long(), weights, moves
        # the number of classes is unknown of a model of which only its rows tell
        if self.classes > 1 and self.target.numel() and not self.target.is_meta:
            least, most = (int(end) for end in self.target.aminmax())
            if least < 0 or most >= self.classes:
                raise ValueError(f"a class label outside 0..{self.classes - 1}")
        if self.class_weights is not None:
            given = torch.tensor(self.class_weights, dtype=weights.dtype, device=weights.device)
            of_class = given[self.target] * (weights > 0)
            tiny = torch.finfo(weights.dtype).tiny
            shares = of_class / of_class.sum(1, keepdim=True).clamp_min(tiny)
            self.weights, self.moves = shares, shares * (moves / weights.clamp_min(tiny))

    def gradient(self, output: Tensor, target: Tensor, moves: Tensor) -> Tensor:
        """Return the gradient at the outputs of some blocks."""
        found = torch.softmax(output, 2)
        found.scatter_add_(2, target.unsqueeze(2), -torch.ones_like(found[:, :, :1]))
        return found.mul_(moves.unsqueeze(2))

    def loss(self, outputs: Tensor) -> Tensor:
        """Return the weighted loss of each row of the chunk, (blocks, rows)."""
        chosen = torch.log_softmax(outputs, 2).gather(2, self.target.unsqueeze(2)).squeeze(2)
        return -chosen * self.weights


@dataclass
class Hazards:
    """A logit an interval of time; see `losses.hazards_loss`."""

    def start(self, target: Tensor, weights: Tensor, moves: Tensor) -> None:
        """Take targets (blocks, rows, 2) and weights of a chunk."""
        self.target, self.weights, self.moves = target, weights, moves

    def gradient(self, output: Tensor, target: Tensor, moves: Tensor) -> Tensor:
        """Return the gradient at the outputs of some blocks."""
        event, at_risk = hazard_masks(output, target)
        return ((torch.sigmoid(output) - event) * at_risk).mul_(moves.unsqueeze(2))

    def loss(self, outputs: Tensor) -> Tensor:
        """Return the weighted loss of each row of the chunk, (blocks, rows)."""
        event, at_risk = hazard_masks(outputs, self.target)
        found = F.binary_cross_entropy_with_logits(outputs, event, reduction="none") * at_risk
        return found.sum(2) * self.weights


Head = Binary | Number | Classes | Hazards


def head_of(task: str, outputs: int, pos_weight: PosWeight) -> Head | None:
    """Return the head of a task, None where outputs and task do not go together (the plain form says why)."""
    if task == "binary":
        return Binary(pos_weight if pos_weight is None else float(pos_weight)) if outputs == 1 else None  # type: ignore[arg-type]
    if task == "number":
        return Number()
    if task == "hazards":
        return Hazards()
    return Classes(None if pos_weight is None else tuple(pos_weight), outputs)  # type: ignore[arg-type]
