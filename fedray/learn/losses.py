"""Losses by task: binary (one logit), classes (a logit each), number (squared error), hazards (a logit an
interval of time).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TASKS = ("binary", "classes", "number", "hazards")
PosWeight = float | Sequence[float] | None


def check_task(task: str) -> str:
    """Return a known task. Raises ValueError on another."""
    if task not in TASKS:
        raise ValueError(f"task={task!r}: choose one of {', '.join(TASKS)}")
    return task


def squeeze(output: Tensor, task: str) -> Tensor:
    """Drop a last dimension of one where the task has one number a row."""
    return output.squeeze(-1) if task != "classes" and output.dim() > 1 and output.shape[-1] == 1 else output


def mean_loss(task: str, output: Tensor, target: Tensor, pos_weight: PosWeight = None) -> Tensor:
    """Return the mean loss over rows.

    `pos_weight` multiplies the rows of the positive class (binary), or is one weight a class (classes; the
    mean is then over the weights, as in torch). Raises ValueError where shapes differ or it fits no class.
    """
    if task == "hazards":
        return hazards_loss(output, target)
    if task == "classes":
        return F.cross_entropy(output, target.long(), weight=_weight(pos_weight, output))
    target = target.to(output.dtype)
    if output.shape != target.shape:
        raise ValueError(
            f"the model gives {tuple(output.shape)} for labels of shape {tuple(target.shape)}: a {task} "
            "outcome needs one output a label (for several classes say task='classes')"
        )
    if task == "number":
        return F.mse_loss(output, target)
    return F.binary_cross_entropy_with_logits(output, target, pos_weight=_weight(pos_weight, output))


def hazard_masks(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 at the interval of an event, and 1 at every interval that was lived through or begun."""
    interval = torch.arange(output.shape[-1], device=output.device)
    last, happened = target[..., :1], target[..., 1:]
    return ((interval == last) & (happened > 0)).to(output.dtype), (interval <= last).to(output.dtype)


def hazards_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of discrete hazards, sigmoid(output) in each interval.

    `target` (rows, 2) is the number of the last interval begun and whether the event fell into it (else the
    row
    is censored at its end). Source: Gensheimer and Narasimhan, A scalable discrete-time survival model for
    neural networks, PeerJ 2019, equation 1; censoring at the end of an interval, not at its middle.
    """
    event, at_risk = hazard_masks(output, target)
    rows = F.binary_cross_entropy_with_logits(output, event, reduction="none") * at_risk
    return rows.sum(-1).mean()


def _weight(pos_weight: PosWeight, output: Tensor) -> Tensor | None:
    if pos_weight is None:
        return None
    return torch.as_tensor(pos_weight, dtype=output.dtype, device=output.device)


def check_pos_weight(task: str | None, pos_weight: PosWeight) -> None:
    """Raise ValueError where class weights do not fit the task (None: a plain loss function)."""
    if pos_weight is None:
        return
    numbers = [pos_weight] if isinstance(pos_weight, (int, float)) else list(pos_weight)
    fits = task == "classes" if not isinstance(pos_weight, (int, float)) else task == "binary"
    if not fits or min(numbers) <= 0:
        raise ValueError(
            f"pos_weight={pos_weight!r}: give one positive number for a binary model, one a class for a "
            f"model of classes, none for {task or 'a loss of your own (weigh the rows inside it)'}"
        )
