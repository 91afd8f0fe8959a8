"""Vertical logistic regression: sites hold other columns of the same records, one of them the labels.

Source: the centralised gradient descent of logistic regression, split by columns, as in Hardy et al., Private
federated learning on vertically partitioned data via entity resolution and additively homomorphic encryption,
2017 (without its encryption, and without its Taylor approximation of the loss). A round is one step:
  z = b + sum_p x_p w_p      sites send partial scores, the server sees their sum
  r = sigmoid(z) - y         the server, from the labels that the label holder sent
  w_p <- w_p - lr (x_p' r / n + l2 w_p)    each site, from the residual r;    b <- b - lr mean(r)
so it is gradient descent on all columns in one place, to rounding. A site keeps its w_p; the intercept b,
which is not penalised, is the server's. All of it is float64. `batch_size` takes batches of the same records
at all sites, in an order drawn from the seed and the round alone; None takes all records.
What is seen: the server sees z and y of every record (`egress`: `scores` as a sum, `label` visible). EVERY
SITE SEES THE RESIDUAL OF EVERY RECORD, which is its probability minus its label: below zero where the label
is one, above where it is zero. So every site learns all labels, and how all columns together score a record.
Secure sums hide one site's scores from the server, and nothing of that. With two sites, who knows z and
its own part knows the other's part; and over many rounds scores and residuals tell how alike records are
(X X'). See docs/vertical.md.
Not vectorised: a site's part is one product of a matrix with a vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fedray as fr
from fedray.algorithms.aligned import Labels, Records, evaluating, labels_of
from fedray.algorithms.split import Rate
from fedray.learn.schedules import at
from fedray.settings import check_numbers, check_rates

DISCLOSES = (
    "to every site: the residual of each record, probability minus label: its sign is the label.",
    "scores are a sum over all sites for each record, not over records: the server sees each record's.",
)


@dataclass(frozen=True)
class LogisticState:
    """The intercept, under `bias`, and the number of the next round."""

    params: Any
    round: int = 0


@dataclass(frozen=True)
class Weights:
    """A site's weights: those that it keeps, else its start, else zeros."""

    start: Mapping[str, Tensor]

    @property
    def named_sites(self) -> dict[str, tuple[str, ...]]:
        """The sites that were named, and where: a run refuses those that there are not."""
        return {"vertical_logistic(start=...)": tuple(self.start)}

    def __call__(self, kept: Tensor | None, data: Any, site: str) -> Tensor:
        """Return a weight for each of the site's columns. Raises ValueError on a start of another length."""
        if kept is not None:
            return kept
        width = data["x"].shape[1:].numel()
        found = torch.as_tensor(self.start.get(site, torch.zeros(width))).double()
        if found.shape != (width,):
            raise ValueError(f"the start has {tuple(found.shape)} weights for {width} columns")
        return found.clone()


def scored(weight: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
    """Return a site's part of each record's score."""
    return rows["x"].flatten(1).double() @ weight


@dataclass(frozen=True)
class Scores:
    """A site's part of the scores of a round's records."""

    records: Records

    def __call__(self, weight: Tensor, data: Any, rng: Any) -> Tensor:
        """Return one number a record."""
        return scored(weight, self.records(data, rng))


@dataclass(frozen=True)
class Residual:
    """What the server makes of scores and labels."""

    params: dict[str, Tensor]
    residual: Tensor
    loss: float


@dataclass(frozen=True)
class FromScores:
    """Take the residual of every record, and step the intercept."""

    lr: Rate

    def __call__(self, params: Mapping[str, Tensor], scores: Tensor, told: Any, round: int) -> Residual:
        """Return the residuals, with the mean loss before the step."""
        label, score = labels_of(told), scores + params["bias"]
        residual = torch.sigmoid(score) - label
        loss = F.binary_cross_entropy_with_logits(score, label)
        bias = params["bias"] - at(self.lr, round) * residual.mean()
        return Residual({"bias": bias}, residual, float(loss))


@dataclass(frozen=True)
class Descended:
    """Step a site's weights along the residual."""

    lr: Rate
    l2: float
    records: Records

    def __call__(self, weight: Tensor, data: Any, rng: Any, residual: Tensor) -> Tensor:
        """Return the weights after the step."""
        x = self.records(data, rng)["x"].flatten(1).double()
        return weight - at(self.lr, rng.round) * (x.T @ residual / len(residual) + self.l2 * weight)


@dataclass(frozen=True)
class SplitScores:
    """A site's part of the scores of a split's rows."""

    split: str

    def __call__(self, weight: Tensor, data: Any) -> Tensor:
        """Return one number a row."""
        return scored(weight, data.view(self.split))


def with_bias(params: Mapping[str, Tensor], scores: Tensor) -> Tensor:
    """Return the whole score of each record."""
    return scores + params["bias"]


def _init(params: Any) -> LogisticState:
    """Take the intercept of given parameters. Raises ValueError where other weights than zero come too."""
    others = [name for name in params if name != "bias" and bool(torch.as_tensor(params[name]).any())]
    if "bias" not in params or others:
        raise ValueError(
            "vertical_logistic: the server starts from {'bias': number}; the weights lie at the sites: "
            "give their first values as start={site: weights}"
        )
    return LogisticState({"bias": torch.as_tensor(params["bias"]).double().reshape(())})


def vertical_logistic(
    lr: Rate = 0.1,
    batch_size: int | None = None,
    l2: float = 0.0,
    start: Mapping[str, Any] | None = None,
) -> fr.Algorithm:
    """Step a logistic regression whose columns lie at several sites.

    The first parameters are {"bias": number}; weights start from zeros, or from `start` ({site: weights}).
    `l2` adds l2/2 times the squared weights to the mean loss.
    """
    check_numbers("vertical_logistic", least=0, l2=l2)
    check_rates("vertical_logistic", lr=lr)
    records, weights = Records(batch_size), Weights(dict(start or {}))

    def round(server: Any, site: Any) -> fr.Outputs:
        weight = fr.map(weights, site.state, site.data, site.id)
        scores = fr.sum(fr.map(Scores(records), weight, site.data, site.rng), name="scores")
        label = fr.gather(fr.map(Labels(records), site.data, site.rng), name="label")
        step = fr.apply(FromScores(lr), server.params, scores, label, server.round)
        descended = Descended(lr, l2, records)
        return fr.Outputs(
            server=LogisticState(step.params, server.round + 1),
            site=fr.map(descended, weight, site.data, site.rng, fr.broadcast(step.residual)),
            metrics={"loss": step.loss},
        )

    def outputs(params: Any, site: Any, split: str) -> Any:
        weight = fr.map(weights, site.state, site.data, site.id)
        scores = fr.sum(fr.map(SplitScores(split), weight, site.data), name="split_scores")
        return fr.broadcast(fr.apply(with_bias, params, scores))

    evaluate = evaluating("vertical_logistic", "binary", outputs)
    return fr.Algorithm(
        _init, round, lambda server: None, "vertical_logistic", evaluate=evaluate, needs_all=True,
        note="\n".join(DISCLOSES),
    )  # fmt: skip
