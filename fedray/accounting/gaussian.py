"""The Gaussian mechanism exactly: closed forms, no library.

A release of sensitivity D with noise of standard deviation s is as hard to tell apart as two unit normals
whose means are mu = D / s apart, and releases compose by adding mu squared (Dong, Roth, Su, Gaussian
differential privacy, JRSS-B 2022, Corollary 3.3). Its delta is that of Balle, Wang, Improving the Gaussian
mechanism for differential privacy, ICML 2018, Theorem 8.
"""

import math

SQRT2 = math.sqrt(2.0)
FAR = 30.0  # beyond it the tail's expansion is exact to 1e-8 and erfc still far from underflow (38)


def _log_tail(x: float) -> float:
    """Return log P[N(0, 1) > x]."""
    if x < FAR:
        return math.log(0.5 * math.erfc(x / SQRT2))
    series = -1 / x**2 + 3 / x**4 - 15 / x**6
    return -0.5 * x * x - math.log(x) - 0.5 * math.log(2 * math.pi) + math.log1p(series)


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return delta of Gaussian releases whose squared mu add up to mu squared."""
    if mu == 0:
        return 0.0
    reached = math.exp(_log_tail(epsilon / mu - mu / 2))
    return max(0.0, reached - math.exp(epsilon + _log_tail(epsilon / mu + mu / 2)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon at `delta`, rounded up by less than 1e-12 of itself."""
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))  # the bound of zCDP
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if gaussian_delta(mu, middle) <= delta else (middle, high)
    return high


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu whose releases together have no more than `epsilon` at `delta`."""
    low, high = 0.0, 1.0
    while gaussian_delta(high, epsilon) <= delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, epsilon) <= delta else (low, middle)
    return low
