"""Metrics that merge: a site measures sums, they add up over sites, `summarise` turns totals into metrics.

`evaluate(model)` gives the sums of one site's rows, `site_record(model)` the site's own exact metrics. Both
take a view of one split (`data.valid`). What is undefined is NaN in a summary and None in a record (a record
leaves the site, and a value that is not finite would count as a fault).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedray.learn import intervals
from fedray.learn.batches import num_rows
from fedray.learn.intervals import auroc, delong_interval, nadeau_bengio
from fedray.settings import check_numbers, check_whole

__all__ = ["auroc", "delong_interval", "evaluate", "nadeau_bengio", "site_record", "summarise"]

THRESHOLD = 0.5  # the probability from which a row is called an event, fixed before training
SMALLEST = 1e-12  # probabilities are kept this far from 0 and 1 where a logit is taken

SiteMetrics = dict[str, Any]


class _Rows(NamedTuple):
    """Predictions of a view: float64 outputs and labels on the CPU, rows, and the sum of the losses."""

    output: Tensor
    target: Tensor
    n: int
    loss_sum: float


def _predicted(model: Any, params: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> _Rows:
    """Predict every row given, on the device of the parameters."""
    n, device = num_rows(rows), next(iter(params.values())).device
    batch = {name: column.to(device) for name, column in rows.items()}
    target = batch[getattr(model, "target", "y")].cpu()
    if not n:
        return _Rows(torch.zeros(0, dtype=torch.float64), target, 0, 0.0)
    with torch.no_grad():
        output = model.predict(params, batch)
        # a model of one's own may have no loss of an output: a second forward pass then
        loss = model.loss_of(output, batch) if hasattr(model, "loss_of") else model.loss(params, batch)
    output = output.double().cpu()
    if hasattr(model, "labelled"):  # of several tasks: a row is then a label that is there
        output, target = model.labelled(output, target)
        n = len(target)
    return _Rows(output, target, n, float(loss) * n)


def _brier(probability: Tensor, target: Tensor) -> float:
    return float((probability - target).square().sum())


def _counts(probability: Tensor, chosen: Tensor, bins: int) -> Tensor:
    index = torch.nan_to_num(probability[chosen]).mul(bins).floor().clamp(0, bins - 1).long()
    return torch.bincount(index, minlength=bins).double()


@dataclass(frozen=True)
class Evaluate:
    """Sums of one site; see `evaluate`."""

    model: Any
    bins: int
    threshold: float

    def __call__(self, params: Mapping[str, Tensor], data: Any) -> SiteMetrics:
        """Return the sums over the rows of a view."""
        task, (output, target, n, loss_sum) = self.model.task, _predicted(self.model, params, data)
        sums: SiteMetrics = {"n": float(n), "loss_sum": loss_sum}
        if task == "number":
            error = output - target.double() if n else output
            return {
                **sums,
                "squared_error_sum": float(error.square().sum()),
                "absolute_error_sum": float(error.abs().sum()),
                "num_outputs": float(error.numel()),
            }
        if task == "classes":
            return {**sums, **_class_sums(output, target, n)}
        probability, is_event = torch.sigmoid(output), target > 0.5
        called = probability >= self.threshold
        return {
            **sums,
            "events": float(is_event.sum()),
            "correct": float((called == is_event).sum()),
            "true_positives": float((called & is_event).sum()),
            "brier_sum": _brier(probability, is_event.double()),
            "predicted_sum": float(probability.sum()),
            "hist_pos": _counts(probability, is_event, self.bins),
            "hist_neg": _counts(probability, ~is_event, self.bins),
        }


def _class_sums(output: Tensor, target: Tensor, n: int) -> SiteMetrics:
    if not n:
        return {"correct": 0.0, "class_brier_sum": 0.0}
    probability = torch.softmax(output, dim=-1)
    truth = F.one_hot(target.long(), probability.shape[-1]).double()
    correct = float((probability.argmax(-1) == target).sum())
    return {"correct": correct, "class_brier_sum": _brier(probability, truth)}


def evaluate(model: Any, bins: int = 1000, threshold: float = THRESHOLD) -> Evaluate:
    """Measure one site by sums that add up over sites: (params, data view) -> mapping of numbers and counts.

    Binary: n, events, loss_sum, correct and true_positives (at `threshold`), brier_sum, predicted_sum, and
    the counts `hist_pos`, `hist_neg` (bins,) of predicted probability by label, float64. Classes: n,
    loss_sum, correct, class_brier_sum. Number: n, loss_sum, squared_error_sum, absolute_error_sum,
    num_outputs.
    """
    check_whole("evaluate", least=2, bins=bins)
    check_numbers("evaluate", above=0, below=1, threshold=threshold)
    return Evaluate(model, bins, threshold)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def summarise(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Turn totals over sites into metrics. Undefined ones are NaN.

    AUROC comes from bins of probability; `auroc_error_bound` is the most that it can be off. Calibration
    takes every bin at its centre. The counts stay in the result (`hist_pos`, `hist_neg`) for curves.
    """
    n = float(sums["n"])
    told: dict[str, Any] = {"n": n, "loss": _share(float(sums["loss_sum"]), n)}
    if "squared_error_sum" in sums:
        outputs = float(sums["num_outputs"])
        mse = _share(float(sums["squared_error_sum"]), outputs)
        return {
            **told,
            "mse": mse,
            "rmse": math.sqrt(mse),
            "mae": _share(float(sums["absolute_error_sum"]), outputs),
        }
    told["accuracy"] = _share(float(sums["correct"]), n)
    if "hist_pos" not in sums:
        return {**told, "brier": _share(float(sums["class_brier_sum"]), n)}
    return {**told, **_binary(sums, n)}


def _binary(sums: Mapping[str, Any], n: float) -> dict[str, Any]:
    pos, neg = intervals.as_array(sums["hist_pos"]), intervals.as_array(sums["hist_neg"])
    events, hits = float(sums["events"]), float(sums["true_positives"])
    binned = intervals.binned_auroc(pos, neg)
    centre = (torch.arange(len(pos), dtype=torch.float64) + 0.5) / len(pos)
    fitted = intervals.calibration(torch.logit(centre), pos, pos + neg)
    return {
        "events": events,
        "auroc": binned.auroc,
        "auroc_error_bound": binned.error_bound,
        "auroc_se": binned.se,
        "auprc": binned.auprc,
        "brier": _share(float(sums["brier_sum"]), n),
        "sensitivity": _share(hits, events),
        "specificity": _share(float(sums["correct"]) - hits, n - events),
        "threshold_best": intervals.best_threshold(pos, neg),
        "calibration_slope": fitted.slope,
        "calibration_intercept": fitted.intercept,
        "calibration_in_the_large": fitted.in_the_large,
        "calibration_observed_expected": _share(events, float(sums["predicted_sum"])),
        "hist_pos": pos.tolist(),
        "hist_neg": neg.tolist(),
    }


@dataclass(frozen=True)
class SiteRecord:
    """A site's own metrics; see `site_record`."""

    model: Any
    threshold: float

    def __call__(self, params: Mapping[str, Tensor], data: Any) -> dict[str, float | None]:
        """Return the metrics of a view, None where undefined."""
        found = self._measure(params, data)
        return {name: value if math.isfinite(value) else None for name, value in found.items()}

    def _measure(self, params: Mapping[str, Tensor], data: Any) -> dict[str, float]:
        task, (output, target, n, loss_sum) = self.model.task, _predicted(self.model, params, data)
        told: dict[str, float] = {"n": n, "loss": _share(loss_sum, n)}
        if task == "number":
            error = output - target.double() if n else output
            return {**told, "mse": _share(float(error.square().sum()), error.numel())}
        if task == "classes":
            return {**told, "accuracy": _share(_class_sums(output, target, n)["correct"], n)}
        probability, is_event = torch.sigmoid(output), target > 0.5
        logit = torch.logit(probability.clamp(SMALLEST, 1 - SMALLEST))
        fitted = intervals.calibration(logit, is_event.double(), torch.ones(n))
        return {
            **told,
            "events": int(is_event.sum()),
            "accuracy": _share(float(((probability >= self.threshold) == is_event).sum()), n),
            "auroc": auroc(is_event, output),
            "auroc_se": intervals.delong_se(is_event, output),
            "brier": _share(_brier(probability, is_event.double()), n),
            "calibration_in_the_large": fitted.in_the_large,
            "calibration_slope": fitted.slope,
        }


def site_record(model: Any, threshold: float = THRESHOLD) -> SiteRecord:
    """Measure one site exactly: (params, data view) -> n, events, loss, accuracy, AUROC, DeLong error, ...

    AUROC is None where the rows hold one class, its error with fewer than two rows of a class.
    """
    return SiteRecord(model, threshold)
