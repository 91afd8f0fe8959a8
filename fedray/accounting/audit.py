"""Catch a mechanism that spends more than it says: two tests that only look at what it releases.

`calibration` is the strong one: it needs to know the claimed noise, and finds halved noise, a missing clip
and a wrong divisor with certainty in one release. `one_run_audit` needs an epsilon alone; what it returns is
a lower bound that holds for any mechanism, and a claim below it is false. It says little where the claim is
large: do not take its silence for a proof.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.05  # chance that a true claim is called false, of one audit
CERTAIN = 1e-6  # the same, of a test that runs with every change
LOUD = 100.0  # norm of a canary, in clip bounds
Release = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # units as rows -> the released mean
Scores = Callable[[NDArray[np.bool_]], NDArray[np.float64]]  # who is in -> a score of each canary


def least_std(samples: int, chance: float = CERTAIN) -> float:
    """Return the share of their standard deviation that normal samples fall below with this chance.

    By the cube root of a chi-square variable (Wilson, Hilferty 1931), within 1e-4 from 100 samples on.
    """
    spread = 2 / (9 * samples)
    return float((1 - spread + NormalDist().inv_cdf(chance) * math.sqrt(spread)) ** 1.5)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a release looks like beside its claim; `is_sound` says that it keeps it."""

    std: float  # of the noise, over the claimed one
    least_std: float  # below it, noise is missing
    gap: float  # between coordinates with a canary and those without, in clip bounds
    largest_gap: float  # above it, one unit moves the release further than is claimed

    @property
    def is_sound(self) -> bool:
        """Tell whether noise and sensitivity are as claimed."""
        return self.std >= self.least_std and self.gap <= self.largest_gap


def calibration(
    release: Release,
    *,
    clip: float,
    noise_multiplier: float,
    divisor: float,
    units: int = 64,
    dimensions: int = 10_000,
) -> Calibration:
    """Release loud canaries once, each in a coordinate of its own, and measure the noise around them.

    `release` takes `units` rows of `dimensions` numbers and returns their noisy mean; `divisor` is what it
    claims to divide by, which should not be `units`: a divisor that follows the data shows then.
    """
    values = np.zeros((units, dimensions))
    values[np.arange(units), np.arange(units)] = LOUD * clip
    total = np.asarray(release(values), dtype=np.float64) * divisor / clip
    inside, outside = total[:units], total[units:]
    apart = math.sqrt(1 / units + 1 / len(outside)) * noise_multiplier
    return Calibration(
        std=float(np.sqrt(np.mean(outside**2))) / noise_multiplier,
        least_std=least_std(len(outside)),
        gap=float(inside.mean() - outside.mean()),
        largest_gap=1 + 1e-6 - NormalDist().inv_cdf(CERTAIN) * apart,
    )


def epsilon_at_least(
    canaries: int, guesses: int, right: int, delta: float, chance: float = CONFIDENCE
) -> float:
    """Return the epsilon that a mechanism has at least, where so many guesses of who was in were right.

    Every canary was in by a fair coin of its own. By chance alone a true epsilon lies below it in at most
    `chance` of all runs.
    Source: Steinke, Nasr, Jagielski, Privacy auditing with one (1) training run, NeurIPS 2023, Theorem 5.2.
    """
    low, high = 0.0, 40.0
    if not right or _surprise(canaries, guesses, right, delta, 0.0) > chance:
        return 0.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        is_refuted = _surprise(canaries, guesses, right, delta, middle) <= chance
        low, high = (middle, high) if is_refuted else (low, middle)
    return low


def _surprise(canaries: int, guesses: int, right: int, delta: float, epsilon: float) -> float:
    """Return a bound of the probability that a mechanism of this epsilon lets so many guesses be right."""
    mass = _binomial(guesses, 1 / (1 + math.exp(-epsilon)))
    by_chance = float(mass[right:].sum())
    if delta == 0:
        return by_chance
    below = np.cumsum(mass[:right][::-1])  # P[right - i <= Bin < right], i = 1, 2, ...
    steps = np.arange(1, right + 1)
    return by_chance + 2 * canaries * delta * float(np.max(below / steps))


def _binomial(n: int, p: float) -> NDArray[np.float64]:
    counts = np.arange(n + 1, dtype=np.float64)
    log_factorial = np.array([math.lgamma(count + 1) for count in counts])
    logs = log_factorial[-1] - log_factorial - log_factorial[::-1]
    return np.asarray(np.exp(logs + counts * math.log(p) + (n - counts) * math.log1p(-p)))


def one_run_audit(
    scores: Scores,
    *,
    canaries: int,
    guesses: int,
    delta: float,
    coins: np.random.Generator,
    chance: float = CONFIDENCE,
) -> float:
    """Return a lower bound of a mechanism's epsilon from one run of it.

    `scores` runs the mechanism with the canaries that are in, and returns a number for each, larger where it
    looks as if it were in. The most extreme half of the guesses says in, the other half out.
    """
    inside = coins.random(canaries) < 0.5
    order = np.argsort(scores(inside), kind="stable")
    said_out, said_in = order[: guesses // 2], order[canaries - (guesses - guesses // 2) :]
    right = int(np.sum(~inside[said_out])) + int(np.sum(inside[said_in]))
    return epsilon_at_least(canaries, guesses, right, delta, chance)
