"""MIME and MIMELite beside a loop that is written from the paper, in numpy."""

import hashlib

import numpy as np
import pytest
import torch

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


def slope(w, i, rows=slice(None)):
    x, y = tables()[i][0][rows], tables()[i][1][rows]
    return x.T @ (x @ w - y) / len(y)


def order_of(round, i, size, steps):
    """The batches of a site: `randperm` of a generator that is named by seed, round and site."""
    if size is None:
        return [slice(None)] * steps
    digest = hashlib.sha256(f"fedray|0|{round}|{i}|".encode()).digest()
    draws = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    found = []
    while len(found) < steps:
        found += torch.randperm(SIZES[i], generator=draws).split(size)
    return [rows.numpy() for rows in found[:steps]]


def mime_by_hand(lite, beta, weighted=False, server_lr=1.0, rates=(LR,) * 5, size=None, control="batch"):
    """Karimireddy et al., Algorithm 1 with SGDm as (U, V), its steps quoted."""
    x, s = np.zeros(NUM_FEATURES + 1), np.zeros(NUM_FEATURES + 1)  # "input: initial x and s"
    for t, (cohort, eta) in enumerate(zip(COHORTS, rates, strict=True)):  # "sample subset S of clients"
        rows = {i: SIZES[i] if weighted else 1 for i in cohort}
        p = {i: rows[i] / sum(rows.values()) for i in cohort}
        c = sum(p[i] * slope(x, i) for i in cohort)  # "communicate c = 1/|S| sum grad f_j(x) (only Mime)"
        found = {}
        for i in cohort:
            y = x.copy()  # "initialize local model y_i <- x"
            for zeta in order_of(t, i, size, STEPS[i]):  # "sample mini-batch zeta from local data"
                g = slope(y, i, zeta)  # "(MimeLite) g_i = grad f_i(y_i; zeta)"
                if not lite:  # "(Mime) g_i = grad f_i(y_i; zeta) - grad f_i(x; zeta) + c"
                    g = g - slope(x, i, zeta if control == "batch" else slice(None)) + c
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


def batched(size):
    return fr.learn.budgeted(fr.learn.sgd(squares, lr=LR, steps=9, batch_size=size), STEPS)


@pytest.mark.parametrize("control", ["batch", "rows"])
def test_the_correction_of_a_step_is_on_its_batch_or_on_all_rows(control):
    result, _ = trained(fr.algorithms.mime(batched(4), control=control))
    x, _ = mime_by_hand(False, 0.9, size=4, control=control)
    other, _ = mime_by_hand(False, 0.9, size=4, control={"batch": "rows", "rows": "batch"}[control])
    assert np.abs(vector(result.params) - x).max() < 1e-12
    assert np.abs(x - other).max() > 1e-3


def test_mimelite_takes_batches_too():
    result, _ = trained(fr.algorithms.mimelite(batched(4)))
    x, s = mime_by_hand(True, 0.9, size=4)
    assert np.abs(vector(result.params) - x).max() < 1e-12
    assert np.abs(vector(result.state.momentum) - s).max() < 1e-12


def ridge(params, batch):
    return squares(params, batch) + 0.25 * params["w"].square().sum()


def test_a_penalty_of_the_local_update_is_part_of_every_gradient():
    whole = fr.learn.sgd(ridge, lr=LR, steps=3, batch_size=4)
    apart = fr.learn.sgd(squares, lr=LR, steps=3, batch_size=4, l2=0.5, unpenalised=("b",))
    found = [vector(trained(fr.algorithms.mime(local))[0].params) for local in (whole, apart)]
    assert np.abs(found[0] - found[1]).max() < 1e-12


def halving(round):
    return LR * 0.5**round


@pytest.mark.parametrize("lite", [True, False])
def test_the_rate_may_follow_a_schedule_of_the_round(lite):
    result, _ = trained(MAKE[lite](fr.learn.budgeted(fr.learn.sgd(squares, lr=halving, steps=9), STEPS)))
    x, _ = mime_by_hand(lite, 0.9, rates=[halving(t) for t in range(5)])
    assert np.abs(vector(result.params) - x).max() < 1e-12


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="must be plain SGD|has no gradient"):
        MAKE[lite](local)


def test_another_control_is_refused():
    with pytest.raises(ValueError, match="control='site'"):
        fr.algorithms.mime(uneven(), control="site")


def test_a_momentum_of_one_is_refused():
    with pytest.raises(ValueError, match="momentum=1"):
        fr.algorithms.mime(uneven(), 1.0)
