"""Intervals and summaries that need no patient row: they start from counts, standard errors and binned
predictions.

Every interval is a mapping `value, low, high, level, method`, so that no page or file shows one without its
name.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Z = 1.959963984540054  # 97.5 % point of the normal distribution
LEVEL = 0.95
ENOUGH = 5  # patients of each class below which a hospital's standard error is too rough to be weighted by


def interval(value: float, low: float, high: float, method: str) -> dict[str, Any]:
    """Return an interval with its name, cut to [0, 1]."""
    return {"value": value, "low": max(0.0, low), "high": min(1.0, high), "level": LEVEL, "method": method}


def around(value: float, error: float, method: str) -> dict[str, Any]:
    """Return the normal interval of a value with a standard error."""
    return interval(value, value - Z * error, value + Z * error, method)


def wilson(successes: float, total: float) -> dict[str, Any]:
    """Return the Wilson interval of a share."""
    share = successes / total
    centre = (share + Z * Z / (2 * total)) / (1 + Z * Z / total)
    half = Z / (1 + Z * Z / total) * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    return interval(share, centre - half, centre + half, "Wilson")


def auroc_interval(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the interval of a pooled AUROC, or None where its standard error is not known."""
    value, error = metrics.get("auroc"), metrics.get("auroc_se")
    if value is None or not math.isfinite(value):
        return None
    if error is not None and math.isfinite(error):
        return around(value, error, "DeLong")
    return None


def calibration_curve(
    positives: Sequence[float], negatives: Sequence[float], groups: int = 10
) -> list[dict[str, Any]]:
    """Return groups of patients of about equal size by predicted risk: mean prediction, observed share,
    interval.

    The counts are in bins of probability, all of one width, those of `fedray.learn.metrics.evaluate`.
    """
    pos, neg = np.asarray(positives, np.float64), np.asarray(negatives, np.float64)
    both = pos + neg
    if both.sum() == 0:
        return []
    centre = (np.arange(len(both)) + 0.5) / len(both)
    middle = np.cumsum(both) - both / 2
    group = np.minimum((middle / both.sum() * groups).astype(int), groups - 1)
    curve = []
    for number in range(groups):
        here = (group == number) & (both > 0)
        size = float(both[here].sum())
        if size:
            observed = wilson(float(pos[here].sum()), size)
            curve.append(
                {
                    "predicted": float(both[here] @ centre[here] / size),
                    "observed": observed["value"],
                    "low": observed["low"],
                    "high": observed["high"],
                    "n": int(size),
                }
            )
    return curve


def new_hospital(sites: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the prediction interval of AUROC in a hospital not seen, from a random-effects model over
    hospitals.

    Works on logit AUROC, DerSimonian-Laird variance between hospitals, t quantile with k - 2 degrees of
    freedom, on hospitals with at least ENOUGH patients of each class and an AUROC below 1. None with fewer
    than 5 of those. Source: Higgins, Thompson, Spiegelhalter, A re-evaluation of random-effects
    meta-analysis, 2009.
    """
    rows = [(site["auroc"], site["auroc_se"]) for site in sites if _weighs(site)]
    if len(rows) < 5:
        return None
    from fedray.learn.intervals import t_quantile

    value, error = np.array(rows, np.float64).T
    logit, spread = np.log(value / (1 - value)), (error / (value * (1 - value))) ** 2
    fixed = 1 / spread
    q = float(fixed @ (logit - fixed @ logit / fixed.sum()) ** 2)
    free = len(rows) - 1
    between = max(0.0, (q - free) / float(fixed.sum() - fixed @ fixed / fixed.sum()))
    weight = 1 / (spread + between)
    mean = float(weight @ logit / weight.sum())
    half = t_quantile(0.975, len(rows) - 2) * math.sqrt(between + 1 / float(weight.sum()))
    middle, low, high = (1 / (1 + math.exp(-x)) for x in (mean, mean - half, mean + half))
    found = interval(middle, low, high, "prediction interval, DerSimonian-Laird on logit AUROC")
    return {**found, "hospitals": len(rows), "i2": max(0.0, 1 - free / q) if q > 0 else 0.0, "tau2": between}


def _weighs(site: Mapping[str, Any]) -> bool:
    value, error = site.get("auroc"), site.get("auroc_se")
    return bool(value is not None and error and 0 < value < 1 and is_large(site))


def is_large(site: Mapping[str, Any]) -> bool:
    """Tell whether a site has ENOUGH patients of each class for its own figures to be weighed."""
    events, n = site.get("events") or 0, site.get("n") or 0
    return min(events, n - events) >= ENOUGH


def over_sites(sites: Sequence[Mapping[str, Any]], name: str = "auroc") -> dict[str, float] | None:
    """Return mean, p10, p50, p90, min and max of a metric over the sites that have it, or None."""
    values = [site[name] for site in sites if site.get(name) is not None and math.isfinite(site[name])]
    if not values:
        return None
    p10, p50, p90 = np.quantile(values, [0.1, 0.5, 0.9])
    return {
        "mean": float(np.mean(values)),
        "p10": float(p10),
        "p50": float(p50),
        "p90": float(p90),
        "min": float(min(values)),
        "max": float(max(values)),
        "sites": len(values),
    }
