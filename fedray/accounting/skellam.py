"""Skellam noise on integers: the bound that is charged, and the exact value of one coordinate that checks it.

A Skellam variable is the difference of two Poisson variables; sums of Skellam variables are Skellam, so that
sites can each add a share. Sensitivities are in units of the integer ring, rounding included.
Source: Agarwal, Kairouz, Liu, The Skellam mechanism for differentially private federated learning, NeurIPS
2021, Theorem 3.5 (for whole orders).
"""

import math

import numpy as np
from numpy.typing import NDArray

SIGMAS = 40.0  # beyond so many standard deviations the mass is below that of a double


def skellam_rdp(orders: NDArray[np.float64], variance: float, l2: float, l1: float) -> NDArray[np.float64]:
    """Return a bound of the Rényi divergence at whole orders: a Gaussian's, and what integers add."""
    penalty = np.minimum(((2 * orders - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return np.asarray(orders * l2**2 / (2 * variance) + penalty)


def _log_masses(variance: float, shift: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the log masses of a Skellam variable and of itself moved by `shift`, over all that matters."""
    rate, reach = variance / 2, math.ceil(SIGMAS * math.sqrt(variance)) + shift + 50
    low = max(0, math.floor(rate - reach))
    counts = np.arange(low, math.ceil(rate) + reach + 1, dtype=np.float64)
    log_poisson = counts * math.log(rate) - rate - np.array([math.lgamma(count + 1) for count in counts])
    poisson = np.exp(log_poisson)
    mass = np.convolve(poisson, poisson[::-1])  # of differences -(n - 1) to n - 1
    kept = np.log(np.maximum(mass, np.finfo(np.float64).tiny))
    return kept[shift:], kept[: len(kept) - shift]


def skellam_delta(variance: float, shift: int, epsilon: float) -> float:
    """Return the exact delta of one coordinate whose sensitivity is the whole number `shift`."""
    here, moved = _log_masses(variance, shift)
    above = here > moved + epsilon
    return float(np.sum(np.exp(here[above]) - np.exp(epsilon + moved[above])))


def skellam_epsilon(variance: float, shift: int, delta: float) -> float:
    """Return the exact epsilon of one coordinate at `delta`, to 1e-9."""
    low, high = 0.0, 1.0
    while skellam_delta(variance, shift, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if skellam_delta(variance, shift, middle) <= delta else (middle, high)
    return high


def skellam_divergence(order: float, variance: float, shift: int) -> float:
    """Return the exact Rényi divergence of one coordinate."""
    here, moved = _log_masses(variance, shift)
    exponents = order * here + (1 - order) * moved
    top = float(exponents.max())
    return (top + math.log(float(np.sum(np.exp(exponents - top))))) / (order - 1)
