"""Ditto beside a loop that is written from the paper, in numpy; its personal models never leave."""

import numpy as np
import pytest

import fedray as fr
from fedray.core.graph import Placement
from fedray.core.trace import trace
from fedray.learn import optimizer
from tests.unit.algorithms.cases import (
    AT_ZERO,
    COHORTS,
    LR,
    NUM_FEATURES,
    SIZES,
    STEPS,
    kept,
    leaving,
    quadratic,
    sources,
    tables,
    trained,
    two_quadratics,
    uneven,
    vector,
)
from tests.unit.runtime.toy import Breaks


def ditto_by_hand(prox, cohorts=COHORTS, server_lr=1.0, anchor="received"):
    """Li et al., Algorithm 1 (its lines quoted), G being FedAvg. Returns w and the v_k of every site."""
    w = np.zeros(NUM_FEATURES + 1)
    personal = {k: w.copy() for k in tables()}  # "Input: ..., w^0, {v_k^0}"
    for cohort in cohorts:  # "for t = 0, ..., T-1 do": "Server randomly selects a subset of devices S_t,
        sent, models = w, {}  # and sends w^t to them"
        for k in cohort:  # "for device k in S_t in parallel do"
            x, y = tables()[k]
            own = sent.copy()
            for _ in range(STEPS[k]):  # "Solve the local sub-problem of G inexactly starting from w^t"
                own = own - LR * x.T @ (x @ own - y) / len(y)
            models[k] = own
        mean = sum(SIZES[k] * models[k] for k in cohort) / sum(SIZES[k] for k in cohort)
        w = sent + server_lr * (mean - sent)  # "Server aggregates {Delta_k^t}"
        to = {"received": sent, "next": w}[anchor]
        for k in cohort:
            x, y = tables()[k]
            for _ in range(STEPS[k]):  # "Update v_k for s local iterations:
                slope = (
                    x.T @ (x @ personal[k] - y) / len(y)
                )  # v_k = v_k - eta (grad F_k(v_k) + lambda (v_k - w^t))"
                personal[k] = personal[k] - LR * (slope + prox * (personal[k] - to))
    return w, personal


@pytest.mark.parametrize("prox", [0.0, 0.7, 2.0])
def test_ditto_equals_the_papers_loop(prox):
    result, found = trained(fr.algorithms.ditto(uneven(), prox), look=kept)
    w, personal = ditto_by_hand(prox)
    assert np.abs(vector(result.params) - w).max() < 1e-12
    assert max(np.abs(found[k] - personal[k]).max() for k in personal) < 1e-12


def test_personal_models_are_pulled_to_the_model_received_this_round():
    _, found = trained(fr.algorithms.ditto(uneven(), 0.7), look=kept)
    received, following = ditto_by_hand(0.7)[1], ditto_by_hand(0.7, anchor="next")[1]
    assert all(np.abs(found[k] - received[k]).max() < 1e-12 for k in received)
    assert all(np.abs(received[k] - following[k]).max() > 1e-4 for k in received)


def test_the_shared_part_is_fedavg_to_the_bit():
    plain, _ = trained(fr.algorithms.fedavg(uneven()))
    shared, _ = trained(fr.algorithms.ditto(uneven(), 0.7))
    assert shared.params_sha256 == plain.params_sha256
    assert [record.metrics for record in shared.metrics] == [record.metrics for record in plain.metrics]


def test_a_server_optimizer_moves_the_shared_model_alone():
    result, found = trained(fr.algorithms.ditto(uneven(), 0.7, optimizer.sgd(0.3)), look=kept)
    w, personal = ditto_by_hand(0.7, server_lr=0.3)
    assert np.abs(vector(result.params) - w).max() < 1e-12
    assert max(np.abs(found[k] - personal[k]).max() for k in personal) < 1e-12


def test_a_site_that_was_not_counted_keeps_its_personal_model():
    broken = Breaks(uneven(), ("b",), 2, "raise")
    schedule = fr.synchronous(cohort=3, sampling="cyclic", quorum=0.5)
    _, found = trained(fr.algorithms.ditto(broken, 0.7), rounds=3, schedule=schedule, look=kept)
    personal = ditto_by_hand(0.7, cohorts=["abc", "ade", "cd"])[1]
    assert max(np.abs(found[k] - personal[k]).max() for k in personal) < 1e-12


def test_no_reduction_depends_on_what_a_site_keeps():
    algorithm = fr.algorithms.ditto(uneven(), 0.7)
    assert leaving(algorithm) == {"delta": {"data", "rng"}, "metrics": {"data", "rng"}}
    graph = trace(algorithm)
    assert sources(graph.outputs[Placement.SITES, "state"]) == {"data", "state", "rng:personal"}


def test_the_walk_would_find_a_kept_value_that_leaves():
    assert "state" in leaving(fr.algorithms.scaffold(uneven(), 5))["drift"]


@pytest.mark.slow
# x* is where FedAvg settles (test_fedavg.py); v_i* minimises a/2 (v - b)^2 + lambda/2 (v - x*)^2
def test_personal_models_settle_where_the_algebra_says():
    local = fr.learn.sgd(quadratic, lr=0.05, steps=10)
    algorithm = fr.algorithms.ditto(local, prox=0.5)
    result, found = trained(algorithm, two_quadratics(), 150, fr.synchronous(), AT_ZERO, kept)
    shares = [1 - (1 - 0.05 * a) ** 10 for a in (1.0, 4.0)]
    x = (shares[0] - shares[1]) / sum(shares)
    assert float(result.params["x"]) == pytest.approx(x, abs=1e-9)
    expected = [(a * b + 0.5 * x) / (a + 0.5) for a, b in ((1.0, 1.0), (4.0, -1.0))]
    assert [float(found[site][0]) for site in ("h0", "h1")] == pytest.approx(expected, abs=1e-9)
