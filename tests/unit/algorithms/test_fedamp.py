"""FedAMP beside a loop written from the paper, in numpy; the models of sites leave, and are listed."""

import numpy as np
import pytest

import fedray as fr
from fedray.core.explain import egress_rows
from tests.unit.algorithms.cases import (
    COHORTS,
    LR,
    NUM_FEATURES,
    SAME_STEPS,
    STEPS,
    gradient,
    kept,
    leaving,
    single,
    tables,
    trained,
    uneven,
)

ALPHA, SIGMA, LAMBDA = 0.8, 3.0, 0.5


def fedamp_by_hand(cohorts=COHORTS, steps=STEPS, alpha=ALPHA, pull=LAMBDA / ALPHA):
    """Huang et al., Algorithm 1 (lines quoted). Returns every site's model."""
    w = {i: np.zeros(NUM_FEATURES + 1) for i in tables()}  # "Randomly initialize W^0"
    for cohort in cohorts:  # "for k = 1, 2, ..., K do"
        drawn = {}
        for i in cohort:  # "Optimize A(W): U^k <- W^{k-1} - alpha_k grad A(W^{k-1})", equation 5:
            others = [j for j in cohort if j != i]
            xi = {j: alpha * np.exp(-((w[i] - w[j]) ** 2).sum() / SIGMA) / SIGMA for j in others}
            drawn[i] = (1 - sum(xi.values())) * w[i] + sum(xi[j] * w[j] for j in others)
        for i in cohort:  # "w_i^k <- argmin F_i(w) + lambda/(2 alpha_k) ||w - u_i^k||^2", by gradient steps
            for _ in range(steps[i]):
                w[i] = w[i] - LR * (gradient(i, w[i]) + pull * (w[i] - drawn[i]))
    return w


def test_fedamp_equals_the_papers_loop():
    _, found = trained(fr.algorithms.fedamp(uneven(), ALPHA, SIGMA, LAMBDA), look=kept)
    w = fedamp_by_hand()
    assert max(np.abs(found[i] - w[i]).max() for i in w) < 1e-12
    apart = fedamp_by_hand(alpha=1e-12)  # with the pull to u_i = w_i alone
    assert max(np.abs(apart[i] - w[i]).max() for i in w) > 1e-2


def test_the_twin_in_single_precision_comes_to_the_same_after_two_rounds():
    local, data, init = single()
    algorithm = fr.algorithms.fedamp(local, ALPHA, SIGMA, 2 * LAMBDA)  # its loss is not halved
    _, found = trained(algorithm, data, 2, init=init, look=kept)
    w = fedamp_by_hand(COHORTS[:2], SAME_STEPS)
    assert max(np.abs(found[i] - w[i]).max() for i in "abcde") < 1e-4


def test_equal_sites_stay_equal():
    _, found = trained(
        fr.algorithms.fedamp(uneven(), ALPHA, SIGMA, LAMBDA), schedule=fr.synchronous(), look=kept
    )
    assert np.array_equal(found["c"], found["d"]) and not np.array_equal(found["c"], found["e"])


def test_the_server_sees_every_model_and_says_so():
    plan = fr.compile(fr.algorithms.fedamp(uneven(), ALPHA, SIGMA, LAMBDA))
    (row,) = (row for row in egress_rows(plan) if row["name"] == "model")
    assert row["kind"] == "gather" and leaving(fr.algorithms.fedamp(uneven(), 1, 1, 1))["model"] == {"state"}
    with pytest.raises(fr.errors.PolicyError, match="model"):
        fr.compile(
            fr.algorithms.fedamp(uneven(), ALPHA, SIGMA, LAMBDA), passes=[fr.passes.require(released=set())]
        )


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="above 0"):
        fr.algorithms.fedamp(uneven(), ALPHA, 0.0, LAMBDA)
