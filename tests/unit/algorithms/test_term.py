"""TERM beside a loop that is written from the paper, in numpy, and where it settles on two quadratics."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.algorithms.term import Level, Tilt
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
    uneven,
    vector,
    with_statistics,
)


def term_by_hand(t, weighted=True):
    """Li et al., Algorithm 1 (batch TERM), its steps quoted; a sample is a site, a gradient its update."""
    theta = np.zeros(NUM_FEATURES + 1)
    for cohort in COHORTS:  # "while stopping criteria not reached do"
        loss, change = {}, {}
        for i in cohort:  # "compute the loss f(x_i; theta) and gradient for all i in [N]"
            x, y = tables()[i]
            loss[i] = ((x @ theta - y) ** 2).mean() / 2
            own = theta.copy()
            for _ in range(STEPS[i]):
                own = own - LR * x.T @ (x @ own - y) / len(y)
            change[i] = own - theta
        rows = {i: SIZES[i] if weighted else 1 for i in cohort}
        p = {i: rows[i] / sum(rows.values()) for i in cohort}
        top = max(t * loss[i] for i in cohort)  # log-sum-exp
        tilted = top + np.log(sum(p[i] * np.exp(t * loss[i] - top) for i in cohort))  # t R(t; theta)
        w = {i: np.exp(t * loss[i] - tilted) for i in cohort}  # "w_i <- e^(t (f(x_i; theta) - R))"
        theta = theta + sum(p[i] * w[i] * change[i] for i in cohort)  # "theta <- theta - alpha/N sum w_i ..."
    return theta


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("t", [-2.0, -0.1, 0.1, 3.0])
def test_term_equals_the_papers_loop(t, weighted):
    result, _ = trained(fr.algorithms.term(uneven(), t, weighted))
    assert np.abs(vector(result.params) - term_by_hand(t, weighted)).max() < 1e-12


@pytest.mark.parametrize("weighted", [True, False])
def test_without_tilt_it_is_federated_averaging(weighted):
    plain, _ = trained(fr.algorithms.fedavg(uneven(), weighted=weighted))
    found, _ = trained(fr.algorithms.term(uneven(), 0.0, weighted))
    assert np.abs(vector(plain.params) - vector(found.params)).max() < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("t", [-0.2, 0.5, 3.0])
def test_term_settles_where_the_slope_of_the_tilted_risk_is_zero(t):
    x = settled(fr.algorithms.term(fr.learn.sgd(quadratic, lr=0.08, steps=1), t), 200)
    losses = [0.5 * (x - 1) ** 2, 2.0 * (x + 1) ** 2]
    slope = np.exp(t * losses[0]) * (x - 1) + np.exp(t * losses[1]) * 4 * (x + 1)
    assert abs(slope) < 1e-6 * np.exp(abs(t) * max(losses))


@pytest.mark.slow
def test_a_large_tilt_finds_the_best_worst_site_and_overflows_nowhere():
    # the worst of two losses is smallest where both are equal: (x - 1)^2 / 2 = 2 (x + 1)^2, so x = -1/3
    x = settled(fr.algorithms.term(fr.learn.sgd(quadratic, lr=0.01, steps=1), 50.0), 400)
    assert x == pytest.approx(-1 / 3, abs=0.02)
    steep = trained(fr.algorithms.term(uneven(), 1e4), rounds=2)[0]
    assert np.isfinite(vector(steep.params)).all() and not steep.failures


def test_the_weights_of_a_group_are_those_of_each_site():
    check_rows(Tilt(2.5), [(0.3 * i, 2.0, 16.0) for i in range(30)], tolerance=1e-12)
    check_rows(Level(2.5), [(9.3 * i, 20.0) for i in range(30)], tolerance=0)


def test_in_single_precision_and_as_one_program_a_round_is_the_same():
    model, data = fr.learn.linear(NUM_FEATURES), with_statistics()[1]
    algorithms = [
        fr.algorithms.term(fr.learn.sgd(model, lr=0.05, steps=2, form=form), 0.2)
        for form in ("stacked", "loop")
    ]
    stacked, plain = (trained(a, data, 1, init=model.init(0))[0].params for a in algorithms)
    assert torch.allclose(stacked.buffer, plain.buffer, atol=1e-4) and stacked.buffer.abs().max() > 0.1


def test_a_tilt_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="t=nan"):
        fr.algorithms.term(uneven(), float("nan"))
