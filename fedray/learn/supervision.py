"""Rows with a label and rows without: what a site minimises on both.

A row without a label has `NO_LABEL` for its label. The objectives here (see `objectives.py`) split each batch
into the two kinds. Predictions come from `logits(params, batch)`: a model's output, or a function of the
user's own, (rows,) for a binary outcome or (rows, classes).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedray.learn.batches import Batch, training_rows
from fedray.learn.models import Model
from fedray.learn.objectives import Loss, Params
from fedray.learn.parts import under

NO_LABEL = -1
Logits = Callable[[Params, Batch], Tensor]


def logits_of(local: Any, title: str, given: Logits | None = None) -> Logits:
    """Return the predictions that are given, or those of the model of a local update.

    Raises ValueError where there is no model of classes.
    """
    if given is not None:
        return given
    model = getattr(local, "model", None)
    if not isinstance(model, Model) or model.task not in ("binary", "classes"):
        raise ValueError(f"{title}: what a row's classes are is not known of this model: give logits=, a "
                         "function of (params, batch)")  # fmt: skip
    return model.output


def target_of(local: Any) -> str:
    """Return the column of the labels."""
    return str(getattr(getattr(local, "model", None), "target", "y"))


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log-probabilities (rows, classes); one logit a row stands for two classes."""
    if logits.dim() == 1 or logits.shape[1] == 1:
        z = logits.reshape(-1)
        logits = torch.stack([torch.zeros_like(z), z], 1)
    return torch.log_softmax(logits, 1)


def is_labelled(batch: Batch, target: str = "y") -> Tensor:
    """Tell of each row whether it has a label."""
    return batch[target] != NO_LABEL


def taken(batch: Batch, rows: Tensor) -> dict[str, Tensor]:
    """Return some rows of a batch."""
    return {name: column[rows] for name, column in batch.items()}


def labelled_rows(data: Any, target: str = "y") -> Batch:
    """Return the training rows of a site that have a label; the table as it is where all have."""
    rows = training_rows(data)
    there = is_labelled(rows, target)
    return rows if bool(there.all()) else taken(rows, there)


def nothing(params: Params) -> Tensor:
    """Return zero, with a gradient of zero."""
    return torch.stack([(value * 0).sum() for value in params.values()]).sum()


def with_labels(batch: Batch, target: str, classes: Tensor) -> dict[str, Tensor]:
    """Return a batch with these classes for labels."""
    return {**batch, target: classes.to(batch[target].dtype)}


def guess(logits: Logits, params: Params, batch: Batch, threshold: float) -> tuple[Tensor, Tensor]:
    """Return which rows are predicted with at least this probability, and the class of each of those."""
    with torch.no_grad():
        most, classes = log_probabilities(logits(params, batch)).exp().max(1)
    sure = most >= threshold
    return sure, classes[sure]


@dataclass(frozen=True)
class PseudoLabels:
    """The loss of rows with a label, and `weight` times that of the others with the classes now predicted.

    The second is the mean over all rows without a label, those below `threshold` counting 0.
    """

    logits: Logits
    target: str = "y"
    weight: float = 1.0
    threshold: float = 0.0

    def __call__(self, loss: Loss, params: Params, batch: Batch) -> Tensor:
        """Return the objective."""
        there, found = is_labelled(batch, self.target), nothing(params)
        if bool(there.any()):
            found = found + loss(params, taken(batch, there))
        if self.weight and not bool(there.all()):
            rest = taken(batch, ~there)
            sure, classes = guess(self.logits, params, rest, self.threshold)
            if len(classes):
                share = len(classes) / len(sure)
                told = with_labels(taken(rest, sure), self.target, classes)
                found = found + self.weight * share * loss(params, told)
        return found


class ChosenRows(dict[str, Tensor]):
    """Columns of some of a site's rows. It has `splits`, as a site's data have: it is not stacked."""

    splits = ()


@dataclass(frozen=True)
class Relabelled:
    """A site's training rows with pseudo-labels of the model received, unsure ones left out.

    Before round `start` only the rows that have a label.
    """

    logits: Logits
    target: str
    threshold: float
    start: int

    def __call__(self, params: Params, data: Any, rng: Any) -> Batch:
        """Return the rows to train on."""
        rows = training_rows(data)
        there = is_labelled(rows, self.target)
        known, rest = taken(rows, there), taken(rows, ~there)
        if rng.round < self.start:
            return ChosenRows(known)
        sure, classes = guess(self.logits, params, rest, self.threshold)
        told = with_labels(taken(rest, sure), self.target, classes)
        return ChosenRows({name: torch.cat([known[name], told[name]]) for name in known})


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """What the parts of FedMatch's loss are multiplied by, and how sure a prediction must be."""

    supervised: float
    consistency: float
    agreement: float
    l2: float
    l1: float
    threshold: float
    noise: float


@dataclass(frozen=True, kw_only=True)
class Matching:
    """FedMatch at a site: sigma follows the rows with a label, psi the others; the model is their sum.

    psi lies beside sigma under `psi`. `helpers` are whole models. psi's gradient is taken at the sigma that a
    plain step of `rate` gives, as in the paper, where sigma's step comes first.
    """

    logits: Logits
    target: str
    strengths: Strengths
    helpers: Sequence[Mapping[str, Tensor]] = ()
    rate: float = 0.0
    generator: torch.Generator | None = None

    def own(self, params: Params) -> dict[str, Tensor]:
        """Return the model."""
        return whole({n: v for n, v in params.items() if not n.startswith("psi.")}, under(params, "psi"))

    def __call__(self, loss: Loss, params: Params, batch: Batch) -> Tensor:
        """Return the objective, its value without the two penalties."""
        sigma = {name: value for name, value in params.items() if not name.startswith("psi.")}
        psi = under(params, "psi")
        there, found = is_labelled(batch, self.target), nothing(params)
        if bool(there.any()):
            still = {name: value.detach() for name, value in psi.items()}
            found = found + self.strengths.supervised * loss(whole(sigma, still), taken(batch, there))
        after = self._stepped(sigma, found)
        if not bool(there.all()):
            found = found + self._unsupervised(loss, whole(after, psi), taken(batch, ~there))
        pull = sum(((after[name] - part).square().sum() for name, part in psi.items()), nothing(psi))
        sparse = sum((part.abs().sum() for part in psi.values()), nothing(psi))
        penalty = self.strengths.l2 * pull + self.strengths.l1 * sparse
        return found + penalty - penalty.detach()

    def _stepped(self, sigma: Params, found: Tensor) -> dict[str, Tensor]:
        moving = {name: value for name, value in sigma.items() if value.requires_grad}
        slopes = torch.autograd.grad(found, list(moving.values()), retain_graph=True, materialize_grads=True)
        moved = {name: (value - self.rate * slope).detach()
                 for (name, value), slope in zip(moving.items(), slopes, strict=True)}  # fmt: skip
        return {name: moved.get(name, value) for name, value in sigma.items()}

    def _unsupervised(self, loss: Loss, model: Params, rest: Batch) -> Tensor:
        said = log_probabilities(self.logits(model, rest))
        sure = said.detach().exp().max(1).values >= self.strengths.threshold
        if not bool(sure.any()):
            return said.sum() * 0
        own, chosen = said[sure], taken(rest, sure)
        votes = F.one_hot(own.argmax(1), own.shape[1])
        apart = own.sum() * 0
        for helper in self.helpers:
            with torch.no_grad():
                theirs = log_probabilities(self.logits(helper, chosen))
            votes = votes + F.one_hot(theirs.argmax(1), theirs.shape[1])
            apart = apart + (theirs.exp() * (theirs - own)).sum(1).mean() / len(self.helpers)
        told = with_labels(self._noised(chosen), self.target, votes.argmax(1))
        return self.strengths.agreement * loss(model, told) + self.strengths.consistency * apart

    def _noised(self, batch: Batch) -> Batch:
        if not self.strengths.noise:
            return batch
        x = batch["x"]
        noise = torch.randn(x.shape, generator=self.generator, dtype=torch.float64).to(x)
        return {**batch, "x": x + self.strengths.noise * noise}


def whole(sigma: Mapping[str, Any], psi: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return sigma + psi; what is not trained has no psi."""
    return {name: value + psi[name] if name in psi else value for name, value in sigma.items()}
