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
BY_LOSSES = (0.2, 500.0)  # epsilons for which losses alone are looked at; below it Rényi's may be less


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
        told = {with_noise(mechanism, noise): rounds}
        if mechanism.kind == "skellam" or not BY_LOSSES[0] <= epsilon <= BY_LOSSES[1]:
            return accountant.epsilon(told, delta, coarse=True)
        return accountant.epsilon_by_losses(told, delta)

    def limit(noise: float) -> float:
        return gaussian.gaussian_epsilon(_limit_mu(mechanism, noise, rounds), delta)

    found = _least(spent, limit, epsilon, _guess(mechanism, epsilon, delta, rounds))
    if found >= MOST_NOISE:
        raise ConfigError(
            f"no noise gives epsilon={epsilon} at delta={delta} over {rounds} rounds. Fix: fewer rounds"
        )
    return with_noise(mechanism, found)


def _least(
    spent: Callable[[float], float], limit: Callable[[float], float], epsilon: float, guess: float
) -> float:
    """Return the least noise that spends no more than epsilon: a Newton step by the slope of the central
    limit, then secants, for it is nearly a power law; halving where they leave what is known.
    """
    target, low, high, at, before = (1 - TOLERANCE / 2) * epsilon, 0.0, math.inf, guess, None
    for _ in range(MOST_STEPS):
        of_at = spent(at)
        if (1 - TOLERANCE) * epsilon <= of_at <= epsilon:
            return at
        low, high = (low, at) if of_at <= epsilon else (at, high)
        if low >= MOST_NOISE or high < low * (1 + TOLERANCE / 10):
            break
        near = 1.01 * at
        power = _power(at, of_at, *before) if before else _power(at, limit(at), near, limit(near))
        before = at, of_at
        at = _within(low, high, at * (target / of_at) ** (1 / power) if of_at and power < 0 else math.inf)
    return min(high, MOST_NOISE)


def _power(a: float, of_a: float, b: float, of_b: float) -> float:
    """Return the power of the noise by which epsilon goes, by two pairs; 0 where they do not say."""
    return math.log(of_b / of_a) / math.log(b / a) if of_a > 0 and of_b > 0 and a != b else 0.0


def _within(low: float, high: float, at: float) -> float:
    """Return the next noise to try: as asked where it lies in between, else halfway, or further out."""
    if low and high < math.inf:
        return at if low < at < high else math.sqrt(low * high)
    if low:
        return min(at, 4 * low) if at > low else 2 * low
    return max(at, high / 4) if at < high else high / 2


def _guess(mechanism: Mechanism, epsilon: float, delta: float, rounds: int) -> float:
    """Return the noise by the central limit of many sampled releases.

    Source: Bu, Dong, Long, Su, Deep learning with Gaussian differential privacy, HDSR 2020, Theorem 5.
    """
    _, rate, steps = with_noise(mechanism, 1.0).known
    reached = gaussian.gaussian_mu(epsilon, delta) / rate
    return float(math.log1p(reached**2 / (rounds * steps)) ** -0.5)


def _limit_mu(mechanism: Mechanism, noise: float, rounds: int) -> float:
    """Return mu of the Gaussian that many sampled releases come near to: `_guess` the other way round."""
    _, rate, steps = with_noise(mechanism, 1.0).known
    return rate * math.sqrt(rounds * steps * math.expm1(min(noise**-2, 700.0)))


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
