"""Discrimination and calibration from predictions, exact at one site or from summed counts, with errors.

Everything is float64 numpy. What is not defined (AUROC of one class, a slope that does not converge) is NaN.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Z95 = 1.959963984540054  # 97.5 % point of the normal distribution
NEWTON_STEPS = 50
NEWTON_TOLERANCE = 1e-10
LARGEST = 50.0  # a logit-scale coefficient beyond this means separated classes: no finite estimate


class Interval(NamedTuple):
    """An estimate with its standard error and two-sided limits."""

    value: float
    se: float
    low: float
    high: float


def as_array(values: ArrayLike) -> Array:
    """Return float64 numbers of a tensor, an array or a list."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)


def _placements(y: ArrayLike, score: ArrayLike) -> tuple[Array, Array]:
    """Return, for each event, the share of others below it, and for each other the share of events above."""
    labels, scores = as_array(y).ravel() > 0.5, as_array(score).ravel()
    events, others = scores[labels], scores[~labels]
    if not len(events) or not len(others):
        return np.zeros(0), np.zeros(0)
    return _share_below(events, others), 1 - _share_below(others, events)


def _share_below(values: Array, others: Array) -> Array:
    """Return, for each value, the share of others that are smaller, equal ones counting a half."""
    ordered = np.sort(others)
    smaller, not_larger = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (smaller + not_larger) / (2 * len(others))


def auroc(y: ArrayLike, score: ArrayLike) -> float:
    """Return the exact area under the ROC curve, ties counting a half; NaN where one class is missing."""
    return _area(_placements(y, score)[0])


def _area(of_events: Array) -> float:
    return float(of_events.mean()) if len(of_events) else math.nan


def delong_se(y: ArrayLike, score: ArrayLike) -> float:
    """Return DeLong's standard error of AUROC; NaN with fewer than two rows of a class.

    Source: DeLong, DeLong, Clarke-Pearson, Biometrics 1988; computed by sorting, as in Sun and Xu,
    Fast implementation of DeLong's algorithm, IEEE Signal Processing Letters 2014.
    """
    return _delong_se(*_placements(y, score))


def _delong_se(of_events: Array, of_others: Array) -> float:
    if min(len(of_events), len(of_others)) < 2:
        return math.nan
    return math.sqrt(of_events.var(ddof=1) / len(of_events) + of_others.var(ddof=1) / len(of_others))


def delong_interval(y: ArrayLike, score: ArrayLike) -> Interval:
    """Return AUROC with DeLong's 95 % interval, cut to [0, 1]."""
    placements = _placements(y, score)
    value, se = _area(placements[0]), _delong_se(*placements)
    low, high = np.clip([value - Z95 * se, value + Z95 * se], 0.0, 1.0)  # NaN stays NaN
    return Interval(value, se, float(low), float(high))


def nadeau_bengio(values: Sequence[float], test_fraction: float) -> Interval:
    """Return the mean over repeated random splits with the corrected 95 % interval.

    The variance of the mean is (1/J + test/train) times the sample variance, since splits share rows; t with
    J - 1 degrees of freedom. NaN limits with one split.
    Source: Nadeau and Bengio, Inference for the generalization error, Machine Learning 2003, equation 7.
    Raises ValueError without values or where `test_fraction` is not inside (0, 1).
    """
    numbers = as_array(values)
    if not len(numbers) or not 0 < test_fraction < 1:
        raise ValueError(
            f"nadeau_bengio: {len(numbers)} values, test_fraction={test_fraction}: give one value "
            "a split and the share of test rows, between 0 and 1"
        )
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return Interval(mean, math.nan, math.nan, math.nan)
    ratio = test_fraction / (1 - test_fraction)
    se = math.sqrt((1 / len(numbers) + ratio) * float(numbers.var(ddof=1)))
    half = t_quantile(0.975, len(numbers) - 1) * se
    return Interval(mean, se, mean - half, mean + half)


def t_quantile(p: float, freedom: int) -> float:
    """Return a quantile of Student's t, by bisection of its distribution function; error below 1e-9."""
    low, high = -1.0e6, 1.0e6
    for _ in range(80):  # 2e6 / 2^80 is below the spacing of floats
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, freedom: int) -> float:
    """Return P(T <= t) by the finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3-4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    square = math.cos(angle) ** 2
    term, total = (1.0, 1.0) if freedom % 2 == 0 else (math.cos(angle), math.cos(angle))
    for k in range(2 + freedom % 2, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    if freedom % 2 == 0:
        inside = math.sin(angle) * total
    else:
        inside = 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))
    return (1 + inside) / 2


class Binned(NamedTuple):
    """AUROC from counts in bins: exact up to pairs that share a bin."""

    auroc: float
    error_bound: float
    se: float
    auprc: float


def binned_auroc(positives: ArrayLike, negatives: ArrayLike) -> Binned:
    """Return AUROC, its largest possible error, DeLong's error and AUPRC of predictions counted in bins.

    Bins ascend. A pair in one bin counts a half; its true value is 0 to 1, so the error is at most half the
    share of such pairs. AUPRC is the average precision with each bin as one tied score.
    """
    pos, neg = as_array(positives), as_array(negatives)
    m, n = pos.sum(), neg.sum()
    if m == 0 or n == 0:
        return Binned(math.nan, math.nan, math.nan, math.nan)
    of_pos = (np.cumsum(neg) - neg / 2) / n
    of_neg = 1 - (np.cumsum(pos) - pos / 2) / m
    value = float(pos @ of_pos / m)
    se = math.nan
    if m > 1 and n > 1:
        spread = pos @ (of_pos - value) ** 2 / (m - 1) / m + neg @ (of_neg - value) ** 2 / (n - 1) / n
        se = math.sqrt(float(spread))
    above = np.cumsum((pos + neg)[::-1])[::-1]
    precision = np.cumsum(pos[::-1])[::-1] / np.maximum(above, 1)
    return Binned(value, float(pos @ neg / (2 * m * n)), se, float(precision @ pos / m))


class Calibration(NamedTuple):
    """Slope and intercept of y on the logit of the prediction, and the intercept with the slope held at 1."""

    slope: float
    intercept: float
    in_the_large: float


def calibration(logit: ArrayLike, events: ArrayLike, rows: ArrayLike) -> Calibration:
    """Fit recalibration models by Newton steps to groups of rows with one logit each (or to single rows).

    Source: Cox, Two further applications of a model for binary regression, Biometrika 1958; the third is the
    calibration-in-the-large of Steyerberg, Clinical prediction models, chapter 15. NaN without a finite fit.
    """
    x, e, r = as_array(logit), as_array(events), as_array(rows)
    used = r > 0
    x, e, r = x[used], e[used], r[used]
    if not 0 < e.sum() < r.sum():
        return Calibration(math.nan, math.nan, math.nan)
    large = _newton(np.ones((len(x), 1)), x, e, r)
    both = None
    if len(np.unique(x)) > 1:
        both = _newton(np.stack([np.ones_like(x), x], 1), np.zeros_like(x), e, r)
    intercept, slope = (math.nan, math.nan) if both is None else both
    return Calibration(float(slope), float(intercept), math.nan if large is None else float(large[0]))


def _newton(design: Array, offset: Array, events: Array, rows: Array) -> Array | None:
    """Return the coefficients of a binomial logit model, None where they are not finite."""
    beta = np.zeros(design.shape[1])
    best = _log_likelihood(design @ beta + offset, events, rows)
    for _ in range(NEWTON_STEPS):
        mean = _sigmoid(design @ beta + offset)
        gradient = design.T @ (events - rows * mean)
        information = design.T @ (design * (rows * mean * (1 - mean))[:, None])
        if np.linalg.cond(information) > 1 / np.finfo(np.float64).eps:
            return None
        move = np.linalg.solve(information, gradient)
        for _ in range(30):  # halve a step that lowers the likelihood
            found = _log_likelihood(design @ (beta + move) + offset, events, rows)
            if found >= best - abs(best) * NEWTON_TOLERANCE:
                break
            move = move / 2
        beta, best = beta + move, found
        if np.abs(beta).max() > LARGEST:
            return None
        if np.abs(move).max() < NEWTON_TOLERANCE:
            return beta
    return None


def _log_likelihood(eta: Array, events: Array, rows: Array) -> float:
    return float(events @ eta - rows @ np.logaddexp(0.0, eta))


def _sigmoid(eta: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0.0, -eta)))


def best_threshold(positives: Any, negatives: Any) -> float:
    """Return the lower edge of the bin that maximises sensitivity + specificity (Youden, Cancer 1950)."""
    pos, neg = as_array(positives), as_array(negatives)
    if pos.sum() == 0 or neg.sum() == 0:
        return math.nan
    sensitivity = np.cumsum(pos[::-1])[::-1] / pos.sum()
    specificity = (np.cumsum(neg) - neg) / neg.sum()
    return float(np.argmax(sensitivity + specificity) / len(pos))
