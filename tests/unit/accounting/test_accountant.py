"""Epsilon and delta against the known answers of the design, and what they do without the package."""

import math
import sys
from typing import Any

import numpy as np
import pytest

from fedray.accounting import Mechanism, accountant, matrix, renyi, spent
from fedray.accounting.gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu
from fedray.accounting.skellam import skellam_divergence, skellam_epsilon, skellam_rdp
from fedray.errors import ConfigError

# sampling rate, noise multiplier, steps, delta, epsilon of privacy loss distributions, of Renyi divergences
TABLE = [
    (0.01, 1.0, 1000, 1e-5, 1.82824, 2.10137),
    (0.01, 1.1, 10000, 1e-5, 5.19262, 5.63201),
    (256 / 60000, 1.1, 14062, 1e-5, 2.38169, 2.59656),
    (0.1, 1.0, 100, 1e-5, 7.04660, 7.90385),
    (0.05, 0.8, 200, 1e-6, 8.86566, 9.90526),
    (0.25, 2.0, 100, 1e-3, 4.61182, 5.26008),
    (0.25, 8.0, 50, 5e-3, 0.37901, 0.47270),
    (0.5, 1.5, 20, 1e-3, 6.00253, 6.89535),
    (0.004, 0.7, 2500, 1e-5, 2.80757, 3.48361),
    (1.0, 1.0, 1, 1e-5, 4.37718, 4.72851),
    (1.0, 10.0, 50, 1e-5, 2.94323, 3.18899),
    (1.0, 4.0, 100, 1e-5, 13.20671, 14.13223),
]
EXACT = [row for row in TABLE if row[0] == 1.0]


def mechanism(noise_multiplier: float = 1.0, **settings: Any) -> Mechanism:
    given = {"kind": "gaussian", "unit": "site", "noise_by": "server", "trusted": "server", **settings}
    return Mechanism(noise_multiplier=noise_multiplier, **given)


def skellam(variance: float, shift: float, **settings: Any) -> Mechanism:
    return mechanism(math.sqrt(variance) / shift, kind="skellam", variance=variance, l2=shift, l1=shift,
                     **settings)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "noise", "steps", "delta", "table", "_"), TABLE)
def test_epsilon_is_that_of_privacy_loss_distributions(
    rate: float, noise: float, steps: int, delta: float, table: float, _: float
) -> None:
    pytest.importorskip("dp_accounting")
    found = accountant.epsilon({mechanism(noise, sampling_rate=rate): steps}, delta)
    assert table - 1e-3 <= found <= table + 0.011


@pytest.mark.parametrize(("rate", "noise", "steps", "delta", "_", "table"), TABLE)
def test_looser_epsilon_is_that_of_renyi_divergences(
    rate: float, noise: float, steps: int, delta: float, _: float, table: float
) -> None:
    pytest.importorskip("dp_accounting")
    found = accountant.epsilon_by_renyi({mechanism(noise, sampling_rate=rate): steps}, delta)
    assert found == pytest.approx(table, abs=0.03)


@pytest.mark.parametrize(("_rate", "noise", "steps", "delta", "table", "_"), EXACT)
def test_releases_without_sampling_have_the_closed_form(
    _rate: float, noise: float, steps: int, delta: float, table: float, _: float
) -> None:
    assert gaussian_epsilon(math.sqrt(steps) / noise, delta) == pytest.approx(table, abs=6e-6)


def test_delta_and_epsilon_are_inverse_to_each_other() -> None:
    for mu in (0.01, 0.3, 1.0, 5.0, 60.0):
        epsilon = gaussian_epsilon(mu, 1e-6)
        assert gaussian_delta(mu, epsilon) == pytest.approx(1e-6, rel=1e-6)
        assert gaussian_mu(epsilon, 1e-6) == pytest.approx(mu, rel=1e-9)


def test_sampled_delta_and_epsilon_are_inverse_to_each_other() -> None:
    pytest.importorskip("dp_accounting")
    events = {mechanism(2.0, sampling_rate=0.1): 20}
    assert accountant.delta(events, accountant.epsilon(events, 1e-4)) == pytest.approx(1e-4, rel=1e-6)


def test_gaussian_releases_of_several_noises_are_one() -> None:
    events = [mechanism(3.0), mechanism(4.0, kind="matrix", rounds=50, sensitivity=3.0)]
    assert accountant.epsilon(events, 1e-5) == gaussian_epsilon(math.hypot(1 / 3, 1 / 4), 1e-5)


def test_sampled_and_unsampled_releases_cost_more_together_than_either() -> None:
    pytest.importorskip("dp_accounting")
    whole, sampled = {mechanism(5.0): 10}, {mechanism(1.0, sampling_rate=0.1): 20}
    together = accountant.epsilon({**whole, **sampled}, 1e-5)
    alone = accountant.epsilon(whole, 1e-5), accountant.epsilon(sampled, 1e-5)
    assert max(alone) < together < sum(alone)


def test_coarse_epsilon_is_no_smaller_than_the_fine_one() -> None:
    pytest.importorskip("dp_accounting")
    events = {mechanism(1.0, sampling_rate=0.05): 100}
    fine, coarse = accountant.epsilon(events, 1e-5), accountant.epsilon(events, 1e-5, coarse=True)
    assert fine <= coarse < fine + 0.004


def test_steps_of_a_round_count_each() -> None:
    once = {mechanism(10.0, steps=50): 1}
    assert accountant.epsilon(once, 1e-5) == accountant.epsilon({mechanism(10.0): 50}, 1e-5)


def test_nothing_released_costs_nothing() -> None:
    assert accountant.epsilon({}, 1e-5) == 0.0 and accountant.delta({}, 1.0) == 0.0


def test_mechanism_of_unknown_size_cannot_be_accounted() -> None:
    with pytest.raises(ValueError, match="at_site"):
        accountant.epsilon([mechanism(sampling_rate=None, batch_size=32)], 1e-5)


def test_without_the_package_closed_forms_work_and_sampling_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "dp_accounting"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    assert accountant.epsilon([mechanism(1.0)], 1e-5) == pytest.approx(4.37718, abs=6e-6)
    assert accountant.epsilon([skellam(100, 10)], 1e-5) > 0
    with pytest.raises(ConfigError, match=r"pip install 'fedray\[privacy\]'"):
        accountant.epsilon([mechanism(1.0, sampling_rate=0.123)], 1e-5)


@pytest.mark.parametrize(("variance", "shift", "exact", "gaussian", "bound"), [
    (100, 10, 4.26959, 4.37718, 4.75449),
    (400, 10, 1.98295, 1.99309, 2.16865),
    (10000, 100, 4.37603, 4.37718, 4.72864),
])
def test_skellam_of_one_coordinate_lies_below_its_bound(
    variance: int, shift: int, exact: float, gaussian: float, bound: float
) -> None:
    assert skellam_epsilon(variance, shift, 1e-5) == pytest.approx(exact, abs=6e-6)
    assert gaussian_epsilon(shift / math.sqrt(variance), 1e-5) == pytest.approx(gaussian, abs=6e-6)
    assert accountant.epsilon([skellam(variance, shift)], 1e-5) == pytest.approx(bound, abs=0.03)


@pytest.mark.parametrize(("shift", "exact", "bound"), [(10, 3.6147, 4.039), (1, 0.039946, 0.040525)])
def test_skellam_divergence_of_order_8_lies_below_its_bound(shift: int, exact: float, bound: float) -> None:
    assert skellam_divergence(8, 100, shift) == pytest.approx(exact, rel=2e-5)
    assert float(skellam_rdp(np.array([8.0]), 100, shift, shift)[0]) == pytest.approx(bound, rel=1e-9)


def test_sampled_skellam_of_fine_steps_is_as_dear_as_a_sampled_gaussian() -> None:
    pytest.importorskip("dp_accounting")
    fine = mechanism(1.1, kind="skellam", variance=1.1e6**2, l2=1e6, l1=1e8, sampling_rate=0.01)
    gaussian = renyi.divergences(mechanism(1.1, sampling_rate=0.01))
    whole = [place for place, order in enumerate(renyi.ORDERS) if 2 <= order <= 40 and order == int(order)]
    assert renyi.divergences(fine)[whole] == pytest.approx(gaussian[whole], rel=1e-3)


def test_square_root_coefficients_are_those_of_the_series() -> None:
    assert matrix.square_root(8) == pytest.approx(
        [1, 0.5, 0.375, 0.3125, 0.2734375, 0.24609375, 0.22558594, 0.20947266], abs=5e-9)


@pytest.mark.parametrize(("rounds", "times", "bands", "sensitivity", "error", "product"), [
    (100, 1, 100, 1.591022, 1.490022, 2.370658),
    (100, 5, 20, 3.174815, 1.824700, 5.793084),
    (50, 10, 5, 3.953542, 2.247468, 8.885458),
    (50, 50, 1, math.sqrt(50), math.sqrt(25.5), 35.7071),
    (100, 1, 1, 1.0, 7.1063, 7.1063),
])
def test_matrix_mechanism_has_the_known_error(
    rounds: int, times: int, bands: int, sensitivity: float, error: float, product: float
) -> None:
    found = matrix.sensitivity(bands, times), matrix.rms_error(bands, rounds)
    assert found == (pytest.approx(sensitivity, abs=1e-6), pytest.approx(error, abs=5e-5))
    assert found[0] * found[1] == pytest.approx(product, abs=5e-5)


def test_of_many_close_histories_few_are_accounted_finely_and_none_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fine: list[int] = []

    def figure(steps: frozenset[tuple[Mechanism, int]], delta: float, coarse: bool) -> float:
        fine.append(not coarse)
        number = next(iter(steps))[1]
        return 3 - number / 1e4 + 0.003 * coarse

    monkeypatch.setattr(spent, "_epsilon", figure)
    monkeypatch.setattr(spent, "_look", lambda steps, delta: 3.3)
    sampled = mechanism(sampling_rate=0.1)
    histories = [{sampled: number} for number in range(1, 41)]
    assert 3 - 1e-4 <= spent.largest(histories, 1e-5) <= 3 + 0.003
    assert sum(fine) == spent.MOST_FINE
    assert spent.largest(histories[:3], 1e-5) == pytest.approx(3 - 1e-4)
