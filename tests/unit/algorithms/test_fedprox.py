"""FedProx beside a loop that is written from the paper, in numpy, and its fixed points on two quadratics."""

import numpy as np
import pytest

import fedray as fr
from fedray.learn import optimizer
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
    uneven,
    vector,
)


def fedprox_by_hand(mu, weighted=True, server_lr=1.0):
    """Li et al., Algorithm 2. The box has no line numbers; its lines are quoted."""
    w = np.zeros(NUM_FEATURES + 1)
    for cohort in COHORTS:  # "for t = 0, ..., T-1 do": "Server selects a subset S_t of K devices"
        found = {}  # "Server sends w^t to all chosen devices"
        for k in cohort:
            x, y = tables()[k]
            own = w.copy()
            for _ in range(STEPS[k]):  # "finds a w_k^{t+1} which is a gamma_k^t-inexact minimizer of
                slope = x.T @ (x @ own - y) / len(y)  # h_k(w; w^t) = F_k(w) + mu/2 ||w - w^t||^2"
                own = own - LR * (slope + mu * (own - w))
            found[k] = own
        rows = {k: SIZES[k] if weighted else 1 for k in cohort}
        mean = sum(rows[k] * found[k] for k in cohort) / sum(rows.values())  # "w^{t+1} = 1/K sum w_k^{t+1}"
        w = w + server_lr * (mean - w)
    return w


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("mu", [0.0, 0.5, 3.0])
def test_fedprox_equals_the_papers_loop(mu, weighted):
    result, _ = trained(fr.algorithms.fedprox(uneven(), mu, weighted=weighted))
    assert np.abs(vector(result.params) - fedprox_by_hand(mu, weighted)).max() < 1e-12


def test_a_server_optimizer_steps_along_the_mean():
    result, _ = trained(fr.algorithms.fedprox(uneven(), 0.5, optimizer.sgd(0.3)))
    assert np.abs(vector(result.params) - fedprox_by_hand(0.5, server_lr=0.3)).max() < 1e-12


def test_without_the_term_it_is_fedavg_and_with_it_it_is_not():
    plain, _ = trained(fr.algorithms.fedavg(uneven()))
    without, _ = trained(fr.algorithms.fedprox(uneven(), 0.0))
    assert without.params_sha256 == plain.params_sha256
    assert np.abs(fedprox_by_hand(0.5) - fedprox_by_hand(0.0)).max() > 1e-2


# s_i = a_i / (a_i + mu) (1 - (1 - eta (a_i + mu))^K) on the two quadratics with a = (1, 4), b = (1, -1)
@pytest.mark.parametrize(("steps", "rounds", "expected"), [(10, 60, -0.397265), (50, 40, -0.233213)])
def test_fedprox_settles_where_the_algebra_says(steps, rounds, expected):
    shares = [a / (a + 1) * (1 - (1 - 0.05 * (a + 1)) ** steps) for a in (1.0, 4.0)]
    found = settled(fr.algorithms.fedprox(fr.learn.sgd(quadratic, lr=0.05, steps=steps), mu=1.0), rounds)
    assert found == pytest.approx((shares[0] - shares[1]) / sum(shares), abs=1e-7)
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_negative_strength_is_refused():
    with pytest.raises(ValueError, match="mu=-1"):
        fr.algorithms.fedprox(uneven(), -1)
