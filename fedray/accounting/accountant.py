"""What releases come to: epsilon at a delta, and delta at an epsilon. Start here.

    epsilon({mechanism: rounds, ...}, delta=1e-5)

Releases without sampling are one Gaussian: exact, in closed form. Poisson-sampled Gaussian releases go to the
privacy loss distributions of the package dp-accounting, which are the authority: pessimistic by less than
0.01. Anything with Skellam noise is bounded by Rényi divergences. No bound here is fedray's own.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedray.accounting import gaussian, renyi
from fedray.accounting.mechanism import Mechanism

Events = Mapping[Mechanism, int] | Iterable[Mechanism]  # rounds of each, or one round for each that is listed
INTERVAL = 1e-4  # of the grid that losses lie on
COARSE = 10.0  # times as wide for a figure that is told every round: above the fine one by less than 0.004
MAX_CELLS = 2e6  # of that grid; a claim of hundreds is computed on a wider one, and is then a little larger


def epsilon(events: Events, delta: float, *, coarse: bool = False) -> float:
    """Return the smallest epsilon that all releases together have at `delta`; 0 where there is none.

    Raises ConfigError where a sampled release needs dp-accounting and it is not installed.
    """
    steps = steps_of(events)
    if not steps:
        return 0.0
    if is_closed(steps):
        return gaussian.gaussian_epsilon(math.sqrt(_mu_squared(steps)), delta)
    bound = renyi.rdp_epsilon(divergences(steps), delta)
    if _has_skellam(steps):
        return bound
    return min(bound, float(_losses(steps, _interval(bound, coarse)).get_epsilon_for_delta(delta)))


def epsilon_by_losses(events: Events, delta: float) -> float:
    """Return the coarse epsilon of sampled Gaussian releases by losses alone, in half the time: for a search
    where Rényi divergences say more, as they do but for very small epsilons.
    """
    return float(_losses(steps_of(events), _interval(0.0, True)).get_epsilon_for_delta(delta))


def delta(events: Events, epsilon: float) -> float:
    """Return the smallest delta that all releases together have at `epsilon`."""
    steps = steps_of(events)
    if not steps:
        return 0.0
    if is_closed(steps):
        return gaussian.gaussian_delta(math.sqrt(_mu_squared(steps)), epsilon)
    bound = renyi.rdp_delta(divergences(steps), epsilon)
    if _has_skellam(steps):
        return bound
    return min(bound, float(_losses(steps, _interval(epsilon, False)).get_delta_for_epsilon(epsilon)))


def epsilon_by_renyi(events: Events, delta: float) -> float:
    """Return the looser epsilon of Rényi divergences, for comparison and as a fast first look."""
    steps = steps_of(events)
    return renyi.rdp_epsilon(divergences(steps), delta) if steps else 0.0


def steps_of(events: Events) -> dict[Mechanism, int]:
    """Return how often each kind of step was made; what does not change the loss is dropped from its key."""
    counted = events if isinstance(events, Mapping) else Counter(events)
    steps: Counter[Mechanism] = Counter()
    for mechanism, rounds in counted.items():
        _, _, of_round = mechanism.known
        if rounds:
            steps[_bare(mechanism)] += rounds * of_round
    return dict(steps)


@lru_cache(maxsize=4096)
def _bare(mechanism: Mechanism) -> Mechanism:
    """Return the mechanism as its loss sees it: noise and sampling alone, one step."""
    is_skellam = mechanism.kind == "skellam"
    kept = {name: getattr(mechanism, name) for name in ("variance", "l2", "l1")} if is_skellam else {}
    return Mechanism(
        kind="skellam" if is_skellam else "gaussian",
        noise_multiplier=mechanism.noise_multiplier,
        sampling_rate=mechanism.sampling_rate,
        unit="site",
        noise_by="server",
        trusted="",
        **kept,
    )


def divergences(steps: Mapping[Mechanism, int]) -> NDArray[np.float64]:
    """Return the Rényi divergences of all steps together."""
    return np.asarray(sum(count * renyi.divergences(each) for each, count in steps.items()))


def is_closed(steps: Mapping[Mechanism, int]) -> bool:
    """Tell whether the releases are one Gaussian, which needs no library."""
    return all(each.sampling_rate == 1.0 and each.kind != "skellam" for each in steps)


def _has_skellam(steps: Mapping[Mechanism, int]) -> bool:
    return any(each.kind == "skellam" for each in steps)


def _mu_squared(steps: Mapping[Mechanism, int]) -> float:
    return math.fsum(count / each.known[0] ** 2 for each, count in steps.items())


def _interval(epsilon: float, coarse: bool) -> float:
    return max(INTERVAL * (COARSE if coarse else 1.0), 2 * epsilon / MAX_CELLS)


def _losses(steps: Mapping[Mechanism, int], interval: float) -> Any:
    """Return the privacy loss distribution of all steps together."""
    whole = {each: count for each, count in steps.items() if each.sampling_rate == 1.0}
    parts = [
        _one(*each.known[:2], interval).self_compose(count)
        for each, count in steps.items()
        if each not in whole
    ]
    if whole:
        parts.append(_one(1 / math.sqrt(_mu_squared(whole)), 1.0, interval))
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return total


@lru_cache(maxsize=64)
def _one(noise_multiplier: float, rate: float, interval: float) -> Any:
    """Return the privacy loss distribution of one step. Raises ConfigError without dp-accounting."""
    return renyi.library().pld.privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise_multiplier, sampling_prob=rate, value_discretization_interval=interval
    )
