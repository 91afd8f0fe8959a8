"""FedRep beside a loop written from the paper, in numpy: head first, then body, each frozen in turn."""

import numpy as np
import pytest

import fedray as fr
from tests.unit.algorithms.cases import (
    COHORTS,
    LR,
    NUM_FEATURES,
    SAME_STEPS,
    SIZES,
    STEPS,
    gradient,
    leaving,
    personal_models,
    single,
    squares,
    tables,
    trained,
    uneven,
    vector,
)

BODY = np.array([1.0, 1.0, 1.0, 0.0])
HEAD = 1 - BODY


def fedrep_by_hand(weighted=False, head_steps=None, joint=False, cohorts=COHORTS, steps=STEPS):
    """Collins et al., Algorithm 1 (lines quoted). Returns phi (and the heads' start), and every model."""
    phi = np.zeros(NUM_FEATURES + 1)
    heads = {i: np.zeros(NUM_FEATURES + 1) for i in tables()}
    for cohort in cohorts:  # "for t = 1, 2, ..., T do": "Server receives a batch of clients I^t of size rn"
        found = {}
        for i in cohort:  # "Server sends current representation phi^t to these clients"
            head = heads[i].copy()  # "Client i initializes h_i^{t,0} <- h_i^{t-1,tau_h}"
            for _ in range(head_steps or steps[i]):  # "for s = 1 to tau_h do"
                slope = gradient(i, phi * BODY + head)  # "h_i^{t,s} <- GRD(f_i(h_i^{t,s-1}, phi^t), ...)"
                head = head - LR * slope * HEAD
            heads[i], own, moving = head, phi.copy(), head.copy()
            for _ in range(steps[i]):  # "phi_i^{t,s} <- GRD(f_i(h_i^{t,tau_h}, phi_i), phi, alpha)"
                slope = gradient(i, own * BODY + moving)
                own = own - LR * slope * BODY
                moving = moving - LR * slope * HEAD * joint
            found[i] = own
        rows = {i: SIZES[i] if weighted else 1 for i in cohort}
        phi = sum(rows[i] * found[i] for i in cohort) / sum(rows.values())  # "phi^{t+1} = 1/rn sum phi_i"
    return phi, {i: phi * BODY + heads[i] for i in heads}


@pytest.mark.parametrize("weighted", [False, True])
def test_fedrep_equals_the_papers_loop(weighted):
    algorithm = fr.algorithms.fedrep(uneven(), ["b"], weighted=weighted)
    result, found = trained(algorithm, look=personal_models(algorithm))
    phi, models = fedrep_by_hand(weighted)
    assert np.abs(vector(result.params) - phi).max() < 1e-12
    assert max(np.abs(found[i] - models[i]).max() for i in models) < 1e-12


def test_heads_may_take_steps_of_their_own():
    heads = fr.learn.sgd(squares, lr=LR, steps=7)
    result, _ = trained(fr.algorithms.fedrep(uneven(), ["b"], heads))
    assert np.abs(vector(result.params) - fedrep_by_hand(head_steps=7)[0]).max() < 1e-12


def test_joint_steps_would_be_seen():
    """What would come out if the head moved along with the body (FedPer's steps)."""
    assert np.abs(fedrep_by_hand(joint=True)[0] - fedrep_by_hand()[0]).max() > 1e-3


def test_single_precision_comes_to_the_same_after_a_round():
    local, data, init = single()
    algorithm = fr.algorithms.fedrep(local, ["bias"])
    result, found = trained(algorithm, data, 1, init=init, look=personal_models(algorithm))
    phi, models = fedrep_by_hand(cohorts=COHORTS[:1], steps=SAME_STEPS)
    assert np.abs(vector(result.params) - phi).max() < 1e-4
    assert max(np.abs(found[i] - models[i]).max() for i in models) < 1e-4


def test_what_a_site_keeps_meets_a_reduction_through_training_alone():
    local = uneven()
    assert leaving(fr.algorithms.fedrep(local, ["b"]), stop=True) == {
        "delta": {"trained"},
        "metrics": {"trained"},
    }
