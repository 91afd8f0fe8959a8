"""Metrics that add up over sites, and a site's own record.

`evaluate(model)` returns sums; `summarise` turns the totals of all sites into metrics. Scores are counted in bins of
the logit, so the pooled AUROC has an error of at most half the pairs that share a bin (`auroc_error`), and calibration
comes from the same bins. `site_record(model)` is exact, for one site's own rows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray.learn.intervals import auroc, delong_se

LOGIT_RANGE = 8.0  # bins cover logits of -8 to 8; beyond it the outermost bin counts
Sums = dict[str, Any]


def _rows(data: Any) -> int:
    return int(data.num_rows) if hasattr(data, "num_rows") else len(data["y"])


def _predictions(model: Any, params: Any, data: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model.predict(params, data).detach().double(), data["y"].double()


@dataclass(frozen=True)
class Evaluate:
    """Sums over a site's rows; see `evaluate`."""

    model: Any
    bins: int = 1000
    threshold: float = 0.5

    def __call__(self, params: Any, data: Any) -> Sums:
        """Return the sums, zeros where there is no row."""
        task = self.model.task
        rows = _rows(data)
        if rows == 0:
            return self._nothing(task)
        logits, y = _predictions(self.model, params, data)
        if task == "classes":
            loss = torch.nn.functional.cross_entropy(logits, y.long(), reduction="sum")
            return {"n": float(rows), "loss_sum": float(loss), "correct": float((logits.argmax(dim=1) == y).sum())}
        if task == "number":
            return {"n": float(rows), "squared_sum": float((logits - y).square().sum()), "y_sum": float(y.sum()),
                    "y_squared_sum": float(y.square().sum())}
        return self._binary(logits, y)

    def _nothing(self, task: str) -> Sums:
        if task == "classes":
            return {"n": 0.0, "loss_sum": 0.0, "correct": 0.0}
        if task == "number":
            return {"n": 0.0, "squared_sum": 0.0, "y_sum": 0.0, "y_squared_sum": 0.0}
        return self._binary(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))

    def _binary(self, logits: Tensor, y: Tensor) -> Sums:
        p = torch.sigmoid(logits)
        place = ((logits.clamp(-LOGIT_RANGE, LOGIT_RANGE) + LOGIT_RANGE) / (2 * LOGIT_RANGE) * self.bins).long()
        place = place.clamp(max=self.bins - 1)

        def counted(weight: Tensor) -> Tensor:
            return torch.zeros(self.bins, dtype=torch.float64).index_add_(0, place, weight)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
        return {"n": float(len(y)), "events": float(y.sum()), "loss_sum": float(loss),
                "correct": float(((p >= self.threshold) == (y > 0.5)).sum()), "brier_sum": float((p - y).square().sum()),
                "predicted_sum": float(p.sum()), "hist_pos": counted(y), "hist_neg": counted(1 - y)}


def evaluate(model: Any, bins: int = 1000, threshold: float = 0.5) -> Evaluate:
    """Return a function (params, rows) -> sums that add up over sites."""
    return Evaluate(model, bins, threshold)


def summarise(sums: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of all rows together. Those that need both classes are left out where one is missing."""
    n = float(sums["n"])
    if n == 0:
        return {"n": 0.0}
    if "squared_sum" in sums:
        spread = float(sums["y_squared_sum"]) - float(sums["y_sum"]) ** 2 / n
        found = {"n": n, "mse": float(sums["squared_sum"]) / n}
        return {**found, "r2": 1 - float(sums["squared_sum"]) / spread} if spread > 0 else found
    found = {"n": n, "loss": float(sums["loss_sum"]) / n, "accuracy": float(sums["correct"]) / n}
    if "events" not in sums:
        return found
    events = float(sums["events"])
    found |= {"events": events, "prevalence": events / n, "brier": float(sums["brier_sum"]) / n,
              "predicted_mean": float(sums["predicted_sum"]) / n}
    if 0 < events < n:
        positive, negative = _array(sums["hist_pos"]), _array(sums["hist_neg"])
        found |= _from_bins(positive, negative)
    return found


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=float)


def _from_bins(positive: np.ndarray, negative: np.ndarray) -> dict[str, float]:
    pairs = positive.sum() * negative.sum()
    below = np.concatenate([[0.0], np.cumsum(negative)[:-1]])
    shared = float((positive * negative).sum())
    area = (float((positive * below).sum()) + shared / 2) / pairs
    slope, intercept, large = calibration(positive, negative)
    return {"auroc": float(area), "auroc_error": float(shared / 2 / pairs), "auroc_se": _binned_se(positive, negative),
            "calibration_slope": slope, "calibration_intercept": intercept, "calibration_in_the_large": large}


def _binned_se(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return DeLong's standard error with scores tied inside a bin."""
    m, n = positive.sum(), negative.sum()
    if m < 2 or n < 2:
        return math.nan
    v10 = (np.cumsum(negative) - negative / 2) / n
    v01 = (m - np.cumsum(positive) + positive / 2) / m

    def variance(values: np.ndarray, weight: np.ndarray, total: float) -> float:
        mean = (values * weight).sum() / total
        return float((weight * (values - mean) ** 2).sum() / (total - 1))
    return math.sqrt(variance(v10, positive, m) / m + variance(v01, negative, n) / n)


def calibration(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float, float]:
    """Return slope and intercept of logit(outcome) on the logit, and calibration in the large, from binned counts.

    Newton's method on the binomial likelihood of each bin at its centre; in the large is the intercept at slope one.
    """
    bins = len(positive)
    x = (np.arange(bins) + 0.5) / bins * 2 * LOGIT_RANGE - LOGIT_RANGE
    total = positive + negative

    def fit(with_slope: bool) -> tuple[float, float]:
        slope, intercept = 1.0, 0.0
        for _ in range(100):
            p = 1 / (1 + np.exp(-(intercept + slope * x)))
            residual, weight = positive - total * p, total * p * (1 - p)
            gradient = np.array([residual.sum(), (residual * x).sum()])
            information = np.array([[weight.sum(), (weight * x).sum()], [(weight * x).sum(), (weight * x * x).sum()]])
            step = np.linalg.lstsq(information, gradient, rcond=None)[0] if with_slope else np.array(
                [gradient[0] / max(information[0, 0], 1e-12), 0.0])
            step = np.clip(step, -2.0, 2.0)  # a separable table has no finite optimum
            intercept, slope = intercept + float(step[0]), slope + float(step[1])
            if np.abs(step).max() < 1e-10:
                break
        return slope, intercept
    slope, intercept = fit(with_slope=True)
    return slope, intercept, fit(with_slope=False)[1]


def best_threshold(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the probability at which sensitivity + specificity is largest (Youden's J), from binned counts."""
    below = np.concatenate([[0.0], np.cumsum(negative)]) / max(negative.sum(), 1)
    above = 1 - np.concatenate([[0.0], np.cumsum(positive)]) / max(positive.sum(), 1)
    cut = int(np.argmax(below + above))
    return float(1 / (1 + math.exp(-(cut / len(positive) * 2 * LOGIT_RANGE - LOGIT_RANGE))))


UNDEFINED = -1.0  # travels where a site's rows hold one class; the server turns it into NaN


@dataclass(frozen=True)
class SiteRecord:
    """A site's own numbers; see `site_record`."""

    model: Any
    threshold: float = 0.5

    def __call__(self, params: Any, data: Any) -> dict[str, float]:
        """Return rows, events, loss, accuracy, and AUROC with DeLong's error where both classes are there."""
        sums = Evaluate(self.model, bins=2, threshold=self.threshold)(params, data)
        found = summarise(sums) if sums["n"] else {}
        record = {"n": float(sums["n"])}
        names = {"classes": ("loss", "accuracy"), "number": ("mse",)}.get(
            self.model.task, ("events", "loss", "accuracy", "brier", "predicted_mean"))
        record |= {name: float(found.get(name, 0.0)) for name in names}
        if self.model.task == "binary":
            logits, y = _predictions(self.model, params, data) if sums["n"] else (torch.zeros(0), torch.zeros(0))
            area, se = auroc(y.numpy(), logits.numpy()), delong_se(y.numpy(), logits.numpy())
            record |= {"auroc": UNDEFINED if math.isnan(area) else area, "auroc_se": UNDEFINED if math.isnan(se) else se}
        return record


def site_record(model: Any, threshold: float = 0.5) -> Callable[[Any, Any], dict[str, float]]:
    """Return a function (params, rows) -> one site's own numbers, exact."""
    return SiteRecord(model, threshold)


def defined(record: Mapping[str, float]) -> dict[str, float]:
    """Return a site's record with NaN where a value is undefined."""
    return {name: math.nan if name.startswith("auroc") and value == UNDEFINED else value
            for name, value in record.items()}
