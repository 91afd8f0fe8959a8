"""From an epsilon to the noise, and from the noise to what is left of the signal, before training."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from fedray.accounting import accountant, gaussian
from fedray.accounting.mechanism import Mechanism
from fedray.errors import ConfigError

TOLERANCE = 2e-4  # of epsilon: a noise multiplier that is searched for spends no more and hardly less
MOST_STEPS = 60  # of a search that takes four
MOST_NOISE = 1e6  # a multiplier above it is no answer


def noise_multiplier(
    epsilon: float, delta: float, rounds: int = 1, *, sampling_rate: float = 1.0, steps: int = 1
) -> float:
    """Return the noise that Gaussian releases need: `steps` a round, each on a Poisson sample of the units.

    Of the matrix mechanism all rounds are one release: `rounds=1`. Raises ConfigError where dp-accounting is
    needed and not installed, or no noise is enough.
    """
    made = Mechanism(
        kind="sampled_gaussian",
        noise_multiplier=1.0,
        unit="patient",
        noise_by="server",
        trusted="",
        sampling_rate=sampling_rate,
        steps=steps,
    )
    return solve(made, epsilon, delta, rounds).known[0]


@lru_cache(maxsize=4096)  # sites of one size ask for the same, round after round
def solve(mechanism: Mechanism, epsilon: float, delta: float, rounds: int) -> Mechanism:
    """Return the mechanism with the least noise whose `rounds` rounds have no more than `epsilon` at `delta`.

    Any noise multiplier that it has is replaced. Without sampling it is exact, else it spends between
    99.98% and 100% of epsilon.
    """
    if not 0 < epsilon < math.inf or not 0 < delta < 1 or not 1 <= rounds < math.inf:
        raise ConfigError(
            f"epsilon={epsilon}, delta={delta}, rounds={rounds}: give an epsilon above 0, a delta in (0, 1) "
            "and 1 round or more"
        )
    _, rate, steps = with_noise(mechanism, 1.0).known
    if rate == 1.0 and mechanism.kind != "skellam":
        return with_noise(mechanism, math.sqrt(rounds * steps) / gaussian.gaussian_mu(epsilon, delta))

    def spent(noise: float) -> float:
        return accountant.epsilon({with_noise(mechanism, noise): rounds}, delta, coarse=True)

    found = _least(spent, epsilon, _guess(mechanism, epsilon, delta, rounds))
    if found >= MOST_NOISE:
        raise ConfigError(
            f"no noise gives epsilon={epsilon} at delta={delta} over {rounds} rounds. Fix: fewer rounds"
        )
    return with_noise(mechanism, found)


def _least(spent: Callable[[float], float], epsilon: float, guess: float) -> float:
    """Return the least noise that spends no more than epsilon, by a secant: it is nearly a power law."""
    high, of_high = guess, spent(guess)
    low, of_low = high, of_high
    while of_high > epsilon and high < MOST_NOISE:
        low, of_low, high = high, of_high, high * 1.1 * of_high / epsilon
        of_high = spent(high)
    while of_low <= epsilon and of_high < (1 - TOLERANCE) * epsilon:
        low /= 1.1
        of_low = spent(low)
    for _ in range(MOST_STEPS):
        if of_high >= (1 - TOLERANCE) * epsilon or high < low * (1 + TOLERANCE / 10):
            break
        slope = math.log(of_high / of_low) / math.log(high / low)
        middle = low * ((1 - TOLERANCE / 2) * epsilon / of_low) ** (1 / slope)
        if not low < middle < high:
            middle = math.sqrt(low * high)
        found = spent(middle)
        if found <= epsilon:
            high, of_high = middle, found
        else:
            low, of_low = middle, found
    return high


def _guess(mechanism: Mechanism, epsilon: float, delta: float, rounds: int) -> float:
    """Return the noise by the central limit of many sampled releases.

    Source: Bu, Dong, Long, Su, Deep learning with Gaussian differential privacy, HDSR 2020, Theorem 5.
    """
    _, rate, steps = with_noise(mechanism, 1.0).known
    reached = gaussian.gaussian_mu(epsilon, delta) / rate
    return float(math.log1p(reached**2 / (rounds * steps)) ** -0.5)


def with_noise(mechanism: Mechanism, noise_multiplier: float) -> Mechanism:
    """Return the mechanism with another noise; the variance of a Skellam follows."""
    variance = (noise_multiplier * mechanism.l2) ** 2
    return replace(mechanism, noise_multiplier=noise_multiplier, variance=variance)


def beside_indicator(noise_multiplier: float, indicator_std: float) -> float:
    """Return the noise that a clipped sum needs, so that it and a noised sum of indicators cost one release.

    The indicators are centred (+-1/2), so one unit moves their sum by 1/2. The pair costs exactly what one
    release with `noise_multiplier` does.
    Raises ConfigError where the indicators alone cost as much.
    Source: Andrew et al., Differentially private learning with adaptive clipping, NeurIPS 2021, Theorem 1.
    """
    if noise_multiplier >= 2 * indicator_std:
        raise ConfigError(
            f"noise_multiplier={noise_multiplier} and indicators with noise of {indicator_std}, which cost "
            f"as much: it must be under {2 * indicator_std}. Fix: more sites, or a fixed clip bound"
        )
    return float((noise_multiplier**-2 - (2 * indicator_std) ** -2) ** -0.5)


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise on the mean that a round applies, in clip bounds; the mean itself is at most 1 long."""

    per_coordinate: float
    norm: float


def noise_of(mechanism: Mechanism, num_params: int) -> Noise | None:
    """Return the noise on a mean of `num_params` numbers; None where nothing says what divides the sum."""
    if mechanism.divisor is None:
        return None
    per_coordinate = mechanism.known[0] * mechanism.sensitivity / mechanism.divisor
    return Noise(per_coordinate, per_coordinate * math.sqrt(num_params))


def refuse_hopeless(mechanism: Mechanism, num_params: int) -> None:
    """Raise ConfigError where training would follow the noise: over `max_noise` clip bounds of it."""
    found = noise_of(mechanism, num_params)
    if found is None or found.norm <= mechanism.max_noise:
        return
    fixes = "a larger epsilon, fewer rounds, a smaller model"
    if mechanism.unit == "site":
        fixes += ", more sites, or privacy for each patient"
    raise ConfigError(
        f"the noise is {found.norm:.3g} clip bounds long and what is to be learnt at most 1: "
        f"noise multiplier {mechanism.known[0]:.4g} over {mechanism.divisor:g} on {num_params} "
        f"parameters. Fix: {fixes}; or max_noise={2 * found.norm:.2g} to train all the same"
    )
