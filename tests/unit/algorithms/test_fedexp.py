"""FedExP beside a loop that is written from the paper, in numpy."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.algorithms.scaling import scaled, squared_norm
from fedray.testing import check_rows
from tests.unit.algorithms.cases import (
    COHORTS,
    LR,
    NUM_FEATURES,
    SIZES,
    STEPS,
    quadratic,
    settled,
    tables,
    trained,
    two_quadratics,
    uneven,
    vector,
    with_statistics,
)


def fedexp_by_hand(eps=1e-3, weighted=False):
    """Jhunjhunwala et al., Algorithm 1, its steps quoted. Returns the last two iterates and every eta_g."""
    w, before, rates = np.zeros(NUM_FEATURES + 1), None, []
    for cohort in COHORTS:  # "Server sends w^(t) to all clients"
        deltas = {}
        for i in cohort:
            x, y = tables()[i]
            own = w.copy()
            for _ in range(STEPS[i]):  # "w_i^(t,k+1) <- w_i^(t,k) - eta_l grad F_i"
                own = own - LR * x.T @ (x @ own - y) / len(y)
            deltas[i] = w - own  # "Delta_i^(t) <- w^(t) - w_i^(t,tau)"
        rows = {i: SIZES[i] if weighted else 1 for i in cohort}
        p = {i: rows[i] / sum(rows.values()) for i in cohort}  # 1/M
        mean = sum(p[i] * deltas[i] for i in cohort)  # "Delta-bar^(t) = 1/M sum Delta_i^(t)"
        squares = sum(p[i] * (deltas[i] ** 2).sum() for i in cohort)
        rates.append(max(1.0, squares / (2 * ((mean**2).sum() + eps))))  # "eta_g^(t) = max{1, ...}"
        before, w = w, w - rates[-1] * mean  # "w^(t+1) <- w^(t) - eta_g^(t) Delta-bar^(t)"
    return before, w, rates


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("eps", [1e-3, 10.0])
def test_fedexp_equals_the_papers_loop(eps, weighted):
    result, _ = trained(fr.algorithms.fedexp(uneven(), eps, weighted=weighted))
    before, last, rates = fedexp_by_hand(eps, weighted)
    assert np.abs(vector(result.state.iterate) - last).max() < 1e-12
    assert np.abs(vector(result.params) - (before + last) / 2).max() < 1e-12
    assert result.state.rate == pytest.approx(rates[-1], abs=1e-12)


def apart(rounds=4):
    """Two sites that pull to opposite sides: the rate is above one."""
    local = fr.learn.sgd(quadratic, lr=0.1, steps=1)
    zero = {"x": torch.full((), 0.0, dtype=torch.float64)}
    algorithm = fr.algorithms.fedexp(local, 1e-3, average=False)
    return trained(algorithm, two_quadratics((1.0, 1.0), (1.0, -0.75)), rounds, fr.synchronous(), zero)[0]


def test_sites_that_disagree_make_the_rate_larger_than_one():
    x, rates = 0.0, []
    for _ in range(4):
        deltas = [0.1 * (1.0 - x), 0.1 * (-0.75 - x)]
        mean = sum(deltas) / 2
        rates.append(max(1.0, sum(d**2 for d in deltas) / (2 * 2 * (mean**2 + 1e-3))))
        x += rates[-1] * mean
    found = apart()
    assert min(rates) > 1 and found.state.rate == pytest.approx(rates[-1], abs=1e-12)
    assert float(found.params["x"]) == pytest.approx(x, abs=1e-12)


def test_the_last_iterate_is_reported_where_asked():
    result, _ = trained(fr.algorithms.fedexp(uneven(), average=False))
    assert tree.equal(result.params, result.state.iterate)
    assert np.abs(vector(result.params) - fedexp_by_hand()[1]).max() < 1e-12


def resting(round):
    return 0.0


def test_a_round_without_any_change_keeps_the_parameters():
    still = fr.learn.sgd(quadratic, lr=resting, steps=3)
    assert settled(fr.algorithms.fedexp(still), 2) == 0.0


def test_statistics_of_batches_are_averaged_and_in_no_norm():
    model, data = with_statistics()
    local = fr.learn.sgd(model, lr=0.01, steps=1)
    plain = trained(fr.algorithms.fedavg(local, weighted=False), data, 1, fr.synchronous(), model.init(0))[0]
    longer = trained(
        fr.algorithms.fedexp(local, 1e-9, average=False), data, 1, fr.synchronous(), model.init(0)
    )[0]
    cut = plain.params.schema.trainable
    assert longer.state.rate >= 1
    assert torch.equal(plain.params.buffer[:, cut:], longer.params.buffer[:, cut:])
    delta = tree.flatten({"w": torch.ones(3), "mean": torch.full((2,), 100.0)}, buffers=["mean"])
    assert squared_norm(delta) == 3.0
    assert scaled(delta, 2.0)["w"].tolist() == [2.0] * 3 and scaled(delta, 2.0)["mean"][0] == 100.0


@pytest.mark.parametrize("width", [3, 70, 1000])
def test_norms_and_scaled_updates_of_a_group_are_those_of_each_site(width):
    draws = torch.Generator().manual_seed(0)
    values = [
        tree.flatten({"w": torch.randn(width, generator=draws), "m": torch.randn(2, generator=draws)},
                     buffers=["m"])
        for _ in range(30)
    ]  # fmt: skip
    assert check_rows(squared_norm, [(value,) for value in values], tolerance=1e-9) < 1e-9
    check_rows(scaled, [(value, 0.1 + i) for i, value in enumerate(values)], tolerance=1e-6)


def test_an_epsilon_of_zero_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        fr.algorithms.fedexp(uneven(), 0.0)
