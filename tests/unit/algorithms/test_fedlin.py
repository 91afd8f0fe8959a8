"""FedLin beside a loop that is written from the paper, in numpy, and where it settles."""

import numpy as np
import pytest

import fedray as fr
from tests.unit.algorithms.cases import (
    COHORTS,
    LR,
    NUM_FEATURES,
    SIZES,
    STEPS,
    quadratic,
    settled,
    squares,
    tables,
    trained,
    uneven,
    vector,
)


def local(lr=LR):
    return fr.learn.budgeted(fr.learn.sgd(squares, lr=lr, steps=9), STEPS)


def slope(w, i):
    x, y = tables()[i]
    return x.T @ (x @ w - y) / len(y)


def fedlin_by_hand(weighted=False, rates=(LR,) * 5):
    """Mitra et al., Algorithm 1 without sparsification, its steps quoted."""
    x = np.zeros(NUM_FEATURES + 1)
    for cohort, eta in zip(COHORTS, rates, strict=True):  # "for t = 1, ..., T"
        rows = {i: SIZES[i] if weighted else 1 for i in cohort}
        p = {i: rows[i] / sum(rows.values()) for i in cohort}
        shared = sum(p[i] * slope(x, i) for i in cohort)  # "g_t = 1/m sum grad f_i(x_t)"
        found = {}
        for i in cohort:  # "for i in S: x_{i,0} = x_t"
            own = x.copy()
            eta_i = eta / STEPS[i]  # "eta_i = eta / tau_i"
            for _ in range(STEPS[i]):  # "x_{i,l+1} = x_{i,l} -
                own = own - eta_i * (slope(own, i) - slope(x, i) + shared)  # eta_i (grad f_i - ... + g_t)"
            found[i] = own
        x = sum(p[i] * found[i] for i in cohort)  # "x_{t+1} = 1/m sum x_{i,tau_i}"
    return x


@pytest.mark.parametrize("weighted", [True, False])
def test_fedlin_equals_the_papers_loop(weighted):
    result, _ = trained(fr.algorithms.fedlin(local(), weighted))
    assert np.abs(vector(result.params) - fedlin_by_hand(weighted)).max() < 1e-12


def halving(round):
    return LR * 0.5**round


def test_the_rate_may_follow_a_schedule_of_the_round():
    result, _ = trained(fr.algorithms.fedlin(local(halving)))
    assert np.abs(vector(result.params) - fedlin_by_hand(rates=[halving(t) for t in range(5)])).max() < 1e-12


def test_fedlin_reaches_the_optimum_with_unequal_steps_under_full_participation():
    few = fr.learn.budgeted(fr.learn.sgd(quadratic, lr=0.2, steps=30), {"h1": 3})
    assert settled(fr.algorithms.fedlin(few), 80) == pytest.approx(-0.6, abs=1e-8)


@pytest.mark.parametrize("make", [
    lambda: fr.algorithms.fedlin(uneven()),  # does not say how many steps it takes
    lambda: fr.algorithms.fedlin(fr.learn.sgd(squares, lr=LR, momentum=0.9)),
    lambda: fr.algorithms.fedlin(fr.learn.adamw(squares)),
])  # fmt: skip
def test_other_local_steps_are_refused(make):
    with pytest.raises(ValueError, match="must be plain SGD|has no"):
        make()
