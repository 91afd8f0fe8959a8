"""Audits against known answers, and against mechanisms that keep their claim or do not."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import fedray as fr
from fedray.accounting.audit import calibration, epsilon_at_least, least_std, one_run_audit
from fedray.accounting.gaussian import gaussian_epsilon
from tests.unit.passes.site_level import released

DELTA = 1e-5
NOISE = 4.0  # the claim that is audited: epsilon .926
CLAIM = gaussian_epsilon(1 / NOISE, DELTA)


@pytest.mark.parametrize(("canaries", "guesses", "right", "delta", "bound"), [
    (1000, 1000, 500, 1e-5, 0.0),
    (1000, 1000, 600, 0.0, 0.2975),
    (1000, 1000, 600, 1e-5, 0.2972),
    (1000, 100, 90, 1e-5, 1.6261),
    (1000, 100, 100, 1e-5, 3.4654),
    (5000, 500, 450, 1e-5, 1.9414),
    (100, 100, 75, 0.0, 0.7022),
    (1000, 200, 150, 1e-5, 0.8200),
])
def test_bound_of_right_guesses_is_the_known_one(
    canaries: int, guesses: int, right: int, delta: float, bound: float
) -> None:
    assert epsilon_at_least(canaries, guesses, right, delta) == pytest.approx(bound, abs=6e-5)


@pytest.mark.parametrize(("samples", "share"), [(10_000, 0.9665), (1000, 0.8953)])
def test_share_of_the_noise_that_is_missed_by_chance_is_the_known_one(samples: int, share: float) -> None:
    assert least_std(samples) == pytest.approx(share, abs=6e-5)


def audits(noise: float, runs: int, chance: float = 0.05) -> list[float]:
    """Audit so many Gaussian mechanisms, 5000 canaries each."""
    found = []
    for seed in range(runs):
        coins, draws = np.random.default_rng([1, seed]), np.random.default_rng([2, seed])

        def scores(inside: NDArray[np.bool_], draws: np.random.Generator = draws) -> NDArray[np.float64]:
            return inside + draws.normal(0.0, noise, len(inside))

        settings = {"canaries": 5000, "guesses": 500, "delta": DELTA, "chance": chance}
        found.append(one_run_audit(scores, coins=coins, **settings))
    return found


def test_true_claims_are_called_false_as_rarely_as_is_said() -> None:
    assert sum(bound > CLAIM for bound in audits(NOISE, 200)) <= 20
    assert not any(bound > CLAIM for bound in audits(NOISE, 200, chance=1e-6))


def test_quarter_of_the_noise_is_found_every_time() -> None:
    assert all(bound > CLAIM for bound in audits(NOISE / 4, 20))


def mean_with(
    clip: float = 1.0, noise: float = 0.5, divisor: float | None = 32.0
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """A release of clipped rows; without a divisor it follows the number of rows."""
    draws = np.random.default_rng(7)

    def release(values: NDArray[np.float64]) -> NDArray[np.float64]:
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        total = (values * np.minimum(1, clip / norms)).sum(0) + draws.normal(0, noise, values.shape[1])
        return np.asarray(total / (len(values) if divisor is None else divisor))

    return release


def test_mechanism_that_keeps_its_claim_is_sound() -> None:
    found = calibration(mean_with(), clip=1.0, noise_multiplier=0.5, divisor=32)
    assert found.is_sound
    assert found.std == pytest.approx(1, abs=0.05) and found.gap == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("sabotaged", [
    mean_with(noise=0.25),
    mean_with(clip=math.inf),
    mean_with(clip=2.0),
    mean_with(divisor=None),
    lambda values: mean_with()(values) / 32,
    mean_with(divisor=16),
], ids=["halved noise", "no clip", "double clip", "realised divisor", "divided twice", "half the divisor"])
def test_sabotage_is_found(sabotaged: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
    found = calibration(sabotaged, clip=1.0, noise_multiplier=0.5, divisor=32)
    assert not found.is_sound


def through_site_dp(**settings: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """One round of a federation, a site a row."""
    given = {"clip": 1.0, "noise_multiplier": 0.5, "cohort": 16, "max_noise": math.inf, **settings}

    def release(values: NDArray[np.float64]) -> NDArray[np.float64]:
        vector, _ = released(torch.from_numpy(values).float(), [fr.passes.site_dp(**given)])
        return np.asarray(vector.double().numpy())

    return release


@pytest.mark.parametrize(("settings", "is_sound"), [({}, True), ({"noise_multiplier": 0.25}, False)])
def test_site_level_pass_is_calibrated(settings: dict[str, float], is_sound: bool) -> None:
    found = calibration(through_site_dp(**settings), clip=1.0, noise_multiplier=0.5, divisor=16, units=16)
    assert found.is_sound is is_sound
