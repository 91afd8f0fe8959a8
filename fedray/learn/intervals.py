"""AUROC and its intervals, each named by its method.

DeLong (DeLong et al., Biometrics 1988, in the rank form of Sun and Xu, IEEE Signal Processing Letters 2014): one test
set, one model. Nadeau-Bengio (Machine Learning 2003): the mean over repeated splits, whose test sets overlap.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its standard error and limits; `method` says how they were made."""

    value: float
    se: float
    low: float
    high: float
    method: str


def _midranks(x: Array) -> Array:
    order = np.argsort(x, kind="mergesort")
    ranked = x[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    ends = np.r_[starts[1:], len(x)]
    ranks = np.empty(len(x))
    ranks[order] = np.repeat((starts + ends - 1) / 2 + 1, ends - starts)
    return ranks


def auroc(y: Sequence[float] | Array, score: Sequence[float] | Array) -> float:
    """Return the area under the ROC curve, ties counting a half; NaN where only one class is there."""
    labels, scores = np.asarray(y, dtype=float) > 0.5, np.asarray(score, dtype=float)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if positives == 0 or negatives == 0:
        return math.nan
    ranks = _midranks(scores)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def delong_se(y: Sequence[float] | Array, score: Sequence[float] | Array) -> float:
    """Return DeLong's standard error of the AUROC; NaN below two rows of a class."""
    labels, scores = np.asarray(y, dtype=float) > 0.5, np.asarray(score, dtype=float)
    high, low = scores[labels], scores[~labels]
    m, n = len(high), len(low)
    if m < 2 or n < 2:
        return math.nan
    ranks = _midranks(np.r_[high, low])
    v10 = (ranks[:m] - _midranks(high)) / n
    v01 = 1 - (ranks[m:] - _midranks(low)) / m
    return math.sqrt(float(v10.var(ddof=1)) / m + float(v01.var(ddof=1)) / n)


def delong_interval(y: Sequence[float] | Array, score: Sequence[float] | Array, level: float = 0.95) -> Interval:
    """Return the AUROC with DeLong's interval, cut to [0, 1]."""
    value, se = auroc(y, score), delong_se(y, score)
    half = NormalDist().inv_cdf(0.5 + level / 2) * se
    if math.isnan(half):
        return Interval(value, se, math.nan, math.nan, "DeLong")
    return Interval(value, se, max(0.0, value - half), min(1.0, value + half), "DeLong")


def nadeau_bengio(values: Sequence[float], test_fraction: float, level: float = 0.95) -> Interval:
    """Return the mean over repeated random splits with the corrected interval: variance (1/J + n_test/n_train) s^2.

    Raises ValueError below two values or where the fraction is not inside (0, 1).
    """
    if len(values) < 2 or not 0 < test_fraction < 1:
        raise ValueError("nadeau_bengio needs two or more values and a test fraction in (0, 1)")
    found = np.asarray(values, dtype=float)
    se = math.sqrt((1 / len(found) + test_fraction / (1 - test_fraction)) * float(found.var(ddof=1)))
    half = student_quantile(0.5 + level / 2, len(found) - 1) * se
    mean = float(found.mean())
    return Interval(mean, se, mean - half, mean + half, "Nadeau-Bengio")


def student_quantile(p: float, degrees: int) -> float:
    """Return the p-quantile of Student's t, by bisection on its integral (1e-9)."""
    if p < 0.5:
        return -student_quantile(1 - p, degrees)
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)

    def below(x: float) -> float:  # with t = sqrt(degrees) tan(a) the integrand is a power of a cosine
        angles = np.linspace(0.0, math.atan(x / math.sqrt(degrees)), 4001)
        weights = np.full(4001, 2.0)
        weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
        area = float((weights * np.cos(angles) ** (degrees - 1)).sum()) * (angles[1] - angles[0]) / 3
        return 0.5 + math.exp(log_scale) * math.sqrt(degrees) * area
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < p else (low, middle)
    return (low + high) / 2
