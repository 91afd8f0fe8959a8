"""MIME and MIMELite beside a loop that is written from the paper, in numpy."""

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
from tests.unit.runtime.toy import Breaks

MAKE = {True: fr.algorithms.mimelite, False: fr.algorithms.mime}


def slope(w, i):
    x, y = tables()[i]
    return x.T @ (x @ w - y) / len(y)


def mime_by_hand(lite, beta, weighted=False, server_lr=1.0, rates=(LR,) * 5):
    """Karimireddy et al., Algorithm 1 with SGDm as (U, V), its steps quoted."""
    x, s = np.zeros(NUM_FEATURES + 1), np.zeros(NUM_FEATURES + 1)  # "input: initial x and s"
    for cohort, eta in zip(COHORTS, rates, strict=True):  # "sample subset S of clients"
        rows = {i: SIZES[i] if weighted else 1 for i in cohort}
        p = {i: rows[i] / sum(rows.values()) for i in cohort}
        c = sum(p[i] * slope(x, i) for i in cohort)  # "communicate c = 1/|S| sum grad f_j(x) (only Mime)"
        found = {}
        for i in cohort:
            y = x.copy()  # "initialize local model y_i <- x"
            for _ in range(STEPS[i]):
                g = slope(y, i) if lite else slope(y, i) - slope(x, i) + c  # "(MimeLite)", "(Mime)"
                y = y - eta * ((1 - beta) * g + beta * s)  # "y_i <- y_i - eta U(g_i, s)"
            found[i] = y
        s = (1 - beta) * c + beta * s  # "s <- V(1/|S| sum grad f_i(x), s)"
        x = x + server_lr * sum(p[i] * (found[i] - x) for i in cohort)  # "x <- 1/|S| sum y_i"
    return x, s


@pytest.mark.parametrize("lite", [True, False])
@pytest.mark.parametrize(("beta", "weighted", "server_lr"), [
    (0.9, False, 1.0), (0.0, False, 1.0), (0.5, True, 1.0), (0.9, False, 0.5),
])  # fmt: skip
def test_mime_equals_the_papers_loop(lite, beta, weighted, server_lr):
    result, _ = trained(MAKE[lite](uneven(), beta, server_lr, weighted))
    x, s = mime_by_hand(lite, beta, weighted, server_lr)
    assert np.abs(vector(result.params) - x).max() < 1e-12
    assert np.abs(vector(result.state.momentum) - s).max() < 1e-12


def halving(round):
    return LR * 0.5**round


@pytest.mark.parametrize("lite", [True, False])
def test_the_rate_may_follow_a_schedule_of_the_round(lite):
    result, _ = trained(MAKE[lite](fr.learn.budgeted(fr.learn.sgd(squares, lr=halving, steps=9), STEPS)))
    x, _ = mime_by_hand(lite, 0.9, rates=[halving(t) for t in range(5)])
    assert np.abs(vector(result.params) - x).max() < 1e-12


def test_mime_reaches_the_optimum_and_mimelite_keeps_a_drift():
    local = fr.learn.sgd(quadratic, lr=0.2, steps=10)
    assert settled(fr.algorithms.mime(local, 0.5), 80) == pytest.approx(-0.6, abs=1e-8)
    assert abs(settled(fr.algorithms.mimelite(local, 0.5), 80) + 0.6) > 1e-3


def test_one_step_of_both_is_momentum_on_all_rows():
    one = fr.learn.sgd(quadratic, lr=0.1, steps=1)
    found = [settled(MAKE[lite](one, 0.9), 20) for lite in (True, False)]
    x = s = 0.0
    for _ in range(20):
        g = ((x - 1) + 4 * (x + 1)) / 2
        x, s = x - 0.1 * (0.1 * g + 0.9 * s), 0.1 * g + 0.9 * s
    assert found == pytest.approx([x, x], abs=1e-12)


@pytest.mark.parametrize("lite", [True, False])
@pytest.mark.parametrize("local", [
    fr.learn.sgd(squares, lr=LR, momentum=0.9), fr.learn.adamw(squares), Breaks(uneven(), (), 0, "nan"),
])  # fmt: skip
def test_other_local_steps_are_refused(lite, local):
    with pytest.raises(ValueError, match="must be plain SGD"):
        MAKE[lite](local)


def test_a_momentum_of_one_is_refused():
    with pytest.raises(ValueError, match="momentum=1"):
        fr.algorithms.mime(uneven(), 1.0)
