"""What a federated model is measured against: ridge logistic regression, pooled and for each hospital alone.

The preparation is the one that a federation fits (fixed clip limits and log1p of the contract, mean and
deviation of the training rows, mean imputation, one missing indicator for each distinct pattern of columns
that lack more than 2 %), written down a second time in NumPy with all rows in one table, float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

Array = np.ndarray
MISSING_ABOVE = 0.02
GRADIENT_NORM = 1e-6
_CERTAIN = 30.0  # log odds of a rate of 1, finite
_ROUGH = 1e-12  # deviations below are constant columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Clip limits and log1p flags, one a column."""

    low: Array
    high: Array
    skewed: Array


def prepare(x_NF: Array, train: Array, limits: Limits) -> Array:
    """Return clipped, logged, scaled columns with 0 for missing, then the scaled missing indicators."""
    x_NF = np.clip(x_NF.astype(np.float64), limits.low, limits.high)
    x_NF[:, limits.skewed] = np.log1p(x_NF[:, limits.skewed])
    missing = np.isnan(x_NF)
    x_NF = np.where(missing, 0.0, _scale(x_NF, train))
    flags = missing[:, distinct_patterns(missing[train])].astype(np.float64)
    return np.hstack([x_NF, _scale(flags, train)])


def distinct_patterns(missing_NF: Array) -> list[int]:
    """Return the first column of each distinct pattern of missing rows, of columns that lack over 2 %."""
    found: dict[bytes, int] = {}
    for column in np.flatnonzero(missing_NF.mean(0) > MISSING_ABOVE):
        found.setdefault(missing_NF[:, column].tobytes(), int(column))
    return sorted(found.values())


def _scale(x_NF: Array, train: Array) -> Array:
    """Return z-scores by the training rows that are not missing; a constant column becomes 0."""
    there = ~np.isnan(x_NF[train])
    count = there.sum(0)
    mean = np.where(there, x_NF[train], 0).sum(0) / np.maximum(count, 1)
    deviation = np.sqrt(np.where(there, (x_NF[train] - mean) ** 2, 0).sum(0) / np.maximum(count - 1, 1))
    return (x_NF - mean) / np.where(deviation > _ROUGH, deviation, np.inf)


def fit_ridge(x_NF: Array, y_N: Array, l2: float, tolerance: float = GRADIENT_NORM) -> tuple[Array, float]:
    """Return weights (F + 1, bias last) that minimise mean log loss + l2/2 ||w||^2, and the gradient norm.

    The bias is not penalised. Damped Newton in float64 from zero weights; the same model as scikit-learn's
    with C = 1 / (l2 n). Raises: ArithmeticError if the gradient stays above `tolerance`.
    """
    x = torch.as_tensor(np.hstack([x_NF, np.ones((len(y_N), 1))]), dtype=torch.float64)
    y = torch.as_tensor(y_N, dtype=torch.float64)
    penalty = torch.full((x.shape[1],), l2, dtype=torch.float64)
    penalty[-1] = 0.0
    rate = float(y.mean())
    w = torch.zeros_like(penalty)
    w[-1] = np.log(rate / (1 - rate))
    norm = np.inf
    for _ in range(100):
        p = torch.sigmoid(x @ w)
        gradient = x.T @ (p - y) / len(y) + penalty * w
        norm = float(gradient.norm())
        if norm < tolerance:
            return w.numpy(), norm
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(y) + torch.diag(penalty)
        w = _descend(x, y, penalty, w, -torch.linalg.solve(hessian, gradient))
    raise ArithmeticError(f"ridge regression did not converge: gradient norm {norm:.1e}, wanted "
                          f"{tolerance:.0e}")


def _descend(x: torch.Tensor, y: torch.Tensor, penalty: torch.Tensor, w: torch.Tensor,
             step: torch.Tensor) -> torch.Tensor:
    """Return w + step, the step halved until the objective does not rise."""
    def objective(v: torch.Tensor) -> float:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ v, y)
        return float(loss + (penalty * v * v).sum() / 2)

    start = objective(w)
    for _ in range(40):
        if objective(w + step) <= start + 1e-15:
            return w + step
        step = step / 2
    return w + step


def predict(x_NF: Array, w: Array) -> Array:
    """Return log odds."""
    return x_NF @ w[:-1] + w[-1]


def local_only(x_NF: Array, y_N: Array, site_N: Array, train: Array, l2: float) -> Array:
    """Return log odds of every row by the ridge model of its own hospital.

    A hospital with one class among its training rows predicts their rate, one without any even odds.
    """
    logit = np.zeros(len(y_N))
    for site in np.unique(site_N):
        own = site_N == site
        rows = own & train
        if 0 < y_N[rows].sum() < rows.sum():
            # the ridge solution lies in the row space
            _, _, basis = np.linalg.svd(x_NF[rows], full_matrices=False)
            w, _ = fit_ridge(x_NF[rows] @ basis.T, y_N[rows], l2)
            logit[own] = predict(x_NF[own] @ basis.T, w)
        elif rows.any():
            logit[own] = _CERTAIN if y_N[rows].any() else -_CERTAIN
    return logit


def auroc(y_N: Array, score_N: Array) -> float:
    """Return the probability that a death scores above a survivor, ties half."""
    values, inverse = np.unique(score_N, return_inverse=True)
    died = np.bincount(inverse, weights=y_N, minlength=len(values))
    lived = np.bincount(inverse, minlength=len(values)) - died
    below = np.cumsum(lived) - lived
    return float((died * (below + lived / 2)).sum() / (died.sum() * lived.sum()))


def summary(values: Sequence[float]) -> str:
    """Return mean, deviation, minimum and maximum as text."""
    array = np.asarray(values)
    return f"{array.mean():.4f} (sd {array.std(ddof=1):.4f}, min {array.min():.4f}, max {array.max():.4f})"
