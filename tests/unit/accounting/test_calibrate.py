"""The noise for an epsilon against the design's tables, and the refusal of noise that drowns the signal."""

from dataclasses import replace

import pytest

from fedray.accounting import Mechanism, accountant, calibrate
from fedray.errors import ConfigError

SITE = Mechanism(kind="gaussian", noise_multiplier=4.244, unit="site", noise_by="server", trusted="server",
                 divisor=200)


@pytest.mark.parametrize(("epsilon", "noise", "on_mean"), [
    (1, 26.380, {8: 3.30, 50: 0.53, 200: 0.132, 1000: 0.026}),
    (3, 9.833, {8: 1.23, 50: 0.20, 200: 0.049, 1000: 0.0098}),
    (8, 4.244, {8: 0.53, 50: 0.085, 200: 0.021, 1000: 0.0042}),
    (20, 2.051, {8: 0.26, 50: 0.041, 200: 0.010, 1000: 0.0021}),
])
def test_noise_of_whole_hospitals_is_that_of_the_table(
    epsilon: float, noise: float, on_mean: dict[int, float]
) -> None:
    found = calibrate.noise_multiplier(epsilon, 1e-5, steps=50)
    told = {n: calibrate.noise_of(replace(SITE, noise_multiplier=found, divisor=n), 1) for n in on_mean}
    assert found == pytest.approx(noise, abs=5e-4)
    assert {n: each.per_coordinate for n, each in told.items() if each} == pytest.approx(on_mean, rel=0.04)


@pytest.mark.parametrize(("units", "batch", "steps", "noises"), [
    (200, 32, 200, {1: 6.365, 3: 2.627, 8: 1.333}),
    (500, 64, 320, {1: 6.989, 3: 2.819, 8: 1.403}),
    (2000, 128, 640, {1: 5.536, 3: 2.226, 8: 1.152}),
])
@pytest.mark.slow
def test_noise_of_one_hospital_alone_is_that_of_the_table(
    units: int, batch: int, steps: int, noises: dict[int, float]
) -> None:
    pytest.importorskip("dp_accounting")
    delta, rate = 1 / (10 * units), batch / units
    found = {epsilon: calibrate.noise_multiplier(epsilon, delta, steps=steps, sampling_rate=rate)
             for epsilon in noises}
    assert found == pytest.approx(noises, abs=1.1e-3)


def test_solved_noise_spends_the_epsilon_and_no_more() -> None:
    pytest.importorskip("dp_accounting")
    made = calibrate.solve(replace(SITE, sampling_rate=0.25, unit="patient"), 2.0, 1e-4, 10)
    assert 1.99 < accountant.epsilon({made: 10}, 1e-4) <= 2.0


def test_solved_skellam_keeps_its_sensitivity_and_follows_with_its_variance() -> None:
    ring = replace(SITE, kind="skellam", variance=1.0, l2=1000.0, l1=5000.0)
    made = calibrate.solve(ring, 3.0, 1e-5, 10)
    assert made.variance == pytest.approx((made.noise_multiplier * 1000) ** 2)
    assert 2.99 < accountant.epsilon({made: 10}, 1e-5) <= 3.0


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_epsilon_and_delta_that_are_none_are_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ConfigError, match="give an epsilon above 0"):
        calibrate.noise_multiplier(epsilon, delta)


def test_noise_beside_indicators_is_that_of_the_paper() -> None:
    assert calibrate.beside_indicator(1.0, 10.0) == pytest.approx(1.001252, abs=5e-7)


def test_few_sites_cannot_carry_indicators() -> None:
    with pytest.raises(ConfigError, match="more sites"):
        calibrate.beside_indicator(1.0, 8 / 20)


def test_noise_of_a_small_network_over_200_hospitals_is_three_clip_bounds_long() -> None:
    noise = calibrate.noise_of(SITE, 20_000)
    assert noise is not None and noise.norm == pytest.approx(3.0, abs=0.01)
    calibrate.refuse_hopeless(SITE, 20_000)


def test_hopeless_noise_is_refused_with_a_way_out() -> None:
    hopeless = replace(SITE, divisor=8)
    with pytest.raises(ConfigError, match=r"75 clip bounds long.*privacy for each patient.*max_noise="):
        calibrate.refuse_hopeless(hopeless, 20_000)
    calibrate.refuse_hopeless(replace(hopeless, max_noise=float("inf")), 20_000)


def test_noise_without_a_divisor_is_not_judged() -> None:
    assert calibrate.noise_of(replace(SITE, divisor=None), 10**9) is None


def own_noise(rounds: int, epsilon: float = 3.0) -> Mechanism:
    return Mechanism(kind="sampled_gaussian", noise_multiplier=None, epsilon=epsilon, batch_size=32,
                     epochs=1.0, sampling_rate=None, steps=None, rounds=rounds, unit="record",
                     noise_by="sites", trusted="nobody")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "rounds"), [(0.3, 20), (1.0, 1), (3.0, 50), (8.0, 10)])
def test_each_size_of_site_is_solved_by_few_looks_at_losses_alone(
    monkeypatch: pytest.MonkeyPatch, epsilon: float, rounds: int
) -> None:
    pytest.importorskip("dp_accounting")
    looks: list[float] = []
    losses, coarse = accountant._losses, accountant.epsilon
    monkeypatch.setattr(accountant, "_losses", lambda *given: looks.append(1) or losses(*given))
    monkeypatch.setattr(accountant, "divergences", None)  # a search does not ask it
    calibrate.solve.cache_clear()
    made = [own_noise(rounds, epsilon).at_site(size) for size in (40, 61, 133, 500)]
    assert len(looks) <= 4 * len(made)
    monkeypatch.undo()
    spent = [coarse({each: rounds}, 1e-5, coarse=True) for each in made]
    assert all(0.9998 * epsilon <= found <= epsilon for found in spent)


@pytest.mark.parametrize(("guess", "power"), [(1.0, -1.0), (30.0, -2.0), (0.05, -0.5), (1.0, -9.0)])
def test_a_search_finds_the_noise_from_a_poor_guess(guess: float, power: float) -> None:
    calls: list[float] = []

    def spent(noise: float) -> float:
        calls.append(noise)
        return 3.0 * (noise / 2) ** power

    found = calibrate._least(spent, lambda noise: 1 / noise, 3.0, guess)
    assert 3 * (1 - calibrate.TOLERANCE) <= spent(found) <= 3 and len(calls) < 20
    assert calibrate._least(lambda noise: 5.0, lambda noise: 1 / noise, 3.0, guess) == calibrate.MOST_NOISE
    assert calibrate._least(lambda noise: 4.0 if noise < 2 else 0.0, lambda noise: 0.0, 3.0, 1.0) == (
        pytest.approx(2, rel=1e-4)
    )
