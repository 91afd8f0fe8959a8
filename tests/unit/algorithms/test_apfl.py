"""APFL beside a loop written from the paper, in numpy: the share moves, and v is never the mixture."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.core.graph import Placement
from fedray.core.trace import trace
from tests.unit.algorithms.cases import (
    COHORTS,
    INIT,
    LR,
    NUM_FEATURES,
    SAME_STEPS,
    SIZES,
    STEPS,
    gradient,
    kept,
    leaving,
    personal_models,
    single,
    sources,
    squares,
    tables,
    trained,
    uneven,
    vector,
)
from tests.unit.runtime.toy import Breaks


def apfl_by_hand(
    alpha=0.5,
    adaptive=True,
    chain_rule=True,
    weighted=False,
    cohorts=COHORTS,
    steps=STEPS,
    overwrites=False,
):
    """Deng et al., Algorithm 1 (lines quoted). Returns w, and v and alpha of every site."""
    w = np.zeros(NUM_FEATURES + 1)
    v = {i: w.copy() for i in tables()}  # "Input: mixture weights alpha_i, ..., initial local models v_i"
    share = dict.fromkeys(tables(), alpha)
    for cohort in cohorts:  # "randomly select a set of clients U_t", which get w
        found = {}
        for i in cohort:  # "parallel for client i in U_t do"
            own = w.copy()
            for _ in range(steps[i]):  # "if t does not divide tau then"
                a = share[i]
                mixed = a * v[i] + (1 - a) * own  # "v'^(t) = alpha_i v_i^(t) + (1 - alpha_i) w_i^(t)"
                slope = gradient(i, mixed)
                following = a - LR * np.dot(v[i] - own, slope)  # "alpha - eta <v - w, grad f(v')>"
                own, v[i] = (
                    own - LR * gradient(i, own),  # "w_i^(t) = w_i^(t-1) - eta grad f_i(w_i^(t-1))"
                    v[i] - LR * (a if chain_rule else 1.0) * slope,  # "v_i - eta grad_v f_i(v'_i^(t-1))"
                )
                share[i] = min(1.0, max(0.0, following)) if adaptive else a
            if overwrites:
                v[i] = share[i] * v[i] + (1 - share[i]) * own
            found[i] = own
        rows = {i: SIZES[i] if weighted else 1 for i in cohort}
        w = sum(rows[i] * found[i] for i in cohort) / sum(rows.values())  # "w = 1/|U_t| sum w_j"
    return w, v, share


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("adaptive", "chain_rule"), [(True, True), (False, True), (True, False)])
def test_apfl_equals_the_papers_loop(alpha, adaptive, chain_rule):
    algorithm = fr.algorithms.apfl(uneven(), alpha, adaptive, chain_rule)
    look = personal_models(algorithm)
    result, (own, states) = trained(algorithm, look=lambda f: (look(f), kept(f)))
    w, v, share = apfl_by_hand(alpha, adaptive, chain_rule)
    assert np.abs(vector(result.params) - w).max() < 1e-12
    for i in {i for cohort in COHORTS for i in cohort}:
        assert np.abs(states[i] - np.append(v[i], share[i])).max() < 1e-12
        assert np.abs(own[i] - (share[i] * v[i] + (1 - share[i]) * w)).max() < 1e-12


def test_a_weighted_mean_is_there():
    result, _ = trained(fr.algorithms.apfl(uneven(), weighted=True))
    assert np.abs(vector(result.params) - apfl_by_hand(weighted=True)[0]).max() < 1e-12


def test_single_precision_comes_to_the_same_after_a_round():
    local, data, init = single(form="auto")
    result, found = trained(fr.algorithms.apfl(local), data, 1, init=init, look=kept)
    w, v, share = apfl_by_hand(cohorts=COHORTS[:1], steps=SAME_STEPS)
    assert np.abs(vector(result.params) - w).max() < 1e-4
    assert max(np.abs(found[i] - np.append(v[i], share[i])).max() for i in COHORTS[0]) < 1e-4


def test_a_fixed_share_and_an_overwritten_model_would_be_seen():
    right = apfl_by_hand(0.3)
    for wrong in (apfl_by_hand(0.3, adaptive=False), apfl_by_hand(0.3, overwrites=True)):
        assert max(np.abs(right[1][i] - wrong[1][i]).max() for i in tables()) > 1e-3
    assert not {0.3} & set(right[2].values())


def test_the_shared_part_is_uniform_fedavg_to_the_bit():
    plain, _ = trained(fr.algorithms.fedavg(uneven(), weighted=False))
    result, _ = trained(fr.algorithms.apfl(uneven()))
    assert result.params_sha256 == plain.params_sha256
    assert [record.metrics for record in result.metrics] == [record.metrics for record in plain.metrics]


def test_the_share_stays_between_zero_and_one():
    steep = fr.learn.sgd(squares, lr=0.4, steps=6)
    _, found = trained(fr.algorithms.apfl(steep, alpha=0.9), rounds=4, schedule=fr.synchronous(), look=kept)
    shares = [state[-1] for state in found.values()]
    assert all(0 <= share <= 1 for share in shares) and {0.0, 1.0} & set(shares)


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_site_that_was_not_counted_keeps_model_and_share(how):
    class Broken(Breaks):
        def with_objective(self, objective):
            return Broken(self.inner.with_objective(objective), self.at, self.in_round, self.how)

    broken = Broken(uneven(), ("b",), 2, how)
    schedule = fr.synchronous(cohort=3, sampling="cyclic", quorum=0.5)
    _, found = trained(fr.algorithms.apfl(broken), rounds=3, schedule=schedule, look=kept)
    _, v, share = apfl_by_hand(cohorts=["abc", "ade", "cd"])
    assert max(np.abs(found[i] - np.append(v[i], share[i])).max() for i in v) < 1e-12


def test_what_a_site_keeps_meets_a_reduction_through_training_alone():
    algorithm = fr.algorithms.apfl(uneven())
    assert leaving(algorithm, stop=True) == {"delta": {"trained"}, "metrics": {"trained"}}
    assert "state" in sources(trace(algorithm).outputs[Placement.SITES, "state"])


def test_what_leaves_is_the_same_whatever_a_site_keeps():
    """What the graph cannot say of a training that holds both models: w moves by f(w) alone."""
    first, _ = trained(fr.algorithms.apfl(uneven(), alpha=0.1))
    second, _ = trained(fr.algorithms.apfl(uneven(), alpha=0.9, chain_rule=False))
    assert first.params_sha256 == second.params_sha256


def test_names_that_are_needed_and_shares_that_are_none_are_refused():
    with pytest.raises(ValueError, match="name the parameters otherwise"):
        trained(fr.algorithms.apfl(uneven()), init={**INIT, "alpha": torch.zeros(1).double()})
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        fr.algorithms.apfl(uneven(), 1.5)
    with pytest.raises(ValueError, match="has no with_objective"):
        fr.algorithms.apfl(Breaks(uneven(), (), 0, "nan"))
