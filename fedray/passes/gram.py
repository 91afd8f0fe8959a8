"""Robust rules on a Gram matrix: from the inner products of n rows to a weight for each of them.

No row is read here. `gram` holds the inner products after any one point was subtracted from all rows, which
changes no distance; everything is float64, n x n. Where scores are equal (up to `tolerance`, a share of the
score at the edge), the rows of lowest number are taken.
"""

import math

import numpy as np

from fedray.passes.stack import Array, product, squared_distances

SETTLED = 0.01  # of the median distance: a step that is shorter ends the search for the geometric median
MOST_ITERATIONS = 10_000  # with 49 % of rows 1e18 away it takes some 1200
MAD_TO_SD = 1.4826  # of a normal distribution: 1 / (the 75% quantile)


def smallest(scores: Array, count: int, tolerance: float) -> Array:
    """Return a mask of the `count` smallest along the last axis; of equal ones the first."""
    edge = np.partition(scores, count - 1, axis=-1)[..., count - 1 : count]
    margin = tolerance * np.abs(edge)
    sure = scores < edge - margin
    near = (scores <= edge + margin) & ~sure
    room = count - sure.sum(-1, keepdims=True)
    return np.asarray(sure | (near & (near.cumsum(-1) <= room)))


def uniform(mask: Array) -> Array:
    """Return equal weights for the rows of a mask."""
    return np.asarray(mask / mask.sum())


def krum_scores(apart: Array, neighbours: int) -> Array:
    """Return of each row the sum of squared distances to its nearest others."""
    others = np.sort(apart + np.diag(np.full(len(apart), np.inf)), axis=1)
    return np.asarray(others[:, :neighbours].sum(1))


def krum(gram: Array, attackers: int, keep: int, tolerance: float) -> Array:
    """Return equal weights for the `keep` rows of lowest score: one for Krum, more for multi-Krum."""
    scores = krum_scores(squared_distances(gram), len(gram) - attackers - 2)
    return uniform(smallest(scores, keep, tolerance))


def picked_by_krum(gram: Array, attackers: int, count: int, tolerance: float) -> list[int]:
    """Return the rows that Krum picks one after the other, each time among those left."""
    apart, left = squared_distances(gram), list(range(len(gram)))
    found: list[int] = []
    while len(found) < count:
        neighbours = min(max(1, len(left) - attackers - 2), len(left) - 1)
        scores = krum_scores(apart[np.ix_(left, left)], neighbours)
        found.append(left.pop(int(np.flatnonzero(smallest(scores, 1, tolerance))[0])))
    return sorted(found)


def nearest(gram: Array, count: int, tolerance: float) -> Array:
    """Return the mixing matrix whose row i is the mean of the `count` rows nearest to row i, itself among
    them.
    """
    mask = smallest(squared_distances(gram), count, tolerance)
    return np.asarray(mask / count)


def distances(gram: Array, weights: Array) -> Array:
    """Return the distance of each row from the sum of weight * row, the weights adding up to 1."""
    towards = product(gram, weights)
    own = (weights * towards).sum()
    return np.asarray(np.sqrt(np.maximum(np.diagonal(gram) - 2 * towards + own, 0.0)))


def geometric_median(gram: Array, iterations: int, smoothing: float) -> Array:
    """Return the weights of the smoothed Weiszfeld algorithm, started from the mean.

    After `iterations` it goes on as long as a step is longer than a share of the median distance: far rows
    drag the mean as far as they like, and each iteration takes back a share of that alone (n / f - 1 of it).
    """
    weights = np.full(len(gram), 1 / len(gram))
    for number in range(MOST_ITERATIONS):
        far = np.maximum(smoothing, distances(gram, weights))
        pulls = 1.0 / far
        moved = pulls / pulls.sum() - weights
        weights = weights + moved
        if number + 1 >= iterations:
            step = max(0.0, float(product(moved, product(gram, moved))))
            if math.sqrt(step) <= SETTLED * np.median(far):
                break
    return weights


def within_sigmas(far: Array, sigmas: float, tolerance: float) -> Array:
    """Return equal weights for rows that are not farther than the median by so many deviations."""
    middle = np.median(far)
    limit = middle + sigmas * MAD_TO_SD * np.median(np.abs(far - middle))
    return uniform(far <= limit * (1 + tolerance))


def reweighted(gram: Array, iterations: int, bound: float, least: float) -> Array:
    """Return the weights of iteratively reweighted least squares, started from the mean.

    e = distance / scale, scale = 1.48 (1 + 5 / (n - 1)) median distance; w = min(1, bound sqrt(2 / n) / e), 0
    where that is below `least`.
    """
    n = len(gram)
    weights = np.full(n, 1 / n)
    for _ in range(iterations):
        far = distances(gram, weights)
        scale = 1.48 * (1 + 5 / max(n - 1, 1)) * np.median(far)
        if scale <= 0:
            return weights
        trust = np.minimum(1.0, bound * np.sqrt(2 / n) * scale / np.maximum(far, np.finfo(float).tiny))
        trust = np.where(trust < least, 0.0, trust)
        weights = trust / trust.sum()
    return weights


def foolsgold(inner: Array) -> Array:
    """Return FoolsGold's learning rates in [0, 1] from the inner products of the sites' histories.

    A site that has sent nothing but zeros is like no other, and its rate is 0 all the same.
    """
    norms = np.sqrt(np.maximum(np.diagonal(inner), np.finfo(float).tiny))
    alike = inner / norms[:, None] / norms[None, :]
    np.fill_diagonal(alike, -1.0)
    most = alike.max(1)
    ratio = most[:, None] / np.where(most > 0, most, 1.0)[None, :]
    is_pardoned = (most[None, :] > most[:, None]) & (most[None, :] > 0)
    rates = 1.0 - np.where(is_pardoned, alike * ratio, alike).max(1)
    rates = np.where(np.diagonal(inner) > 0, np.clip(rates, 0.0, 1.0), 0.0)
    rates = rates / rates.max() if rates.max() > 0 else rates
    inside = np.clip(rates, 1e-12, 1 - 1e-12)  # the logit of 0 and 1 is cut off below anyway
    return np.asarray(np.clip(np.log(inside / (1 - inside)) + 0.5, 0.0, 1.0))
