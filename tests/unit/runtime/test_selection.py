"""Power-of-choice beside a loop that is written from the paper, in numpy; who may see what is told."""

from dataclasses import replace

import numpy as np
import pytest

import fedray as fr
from fedray.core.explain import egress_rows
from fedray.errors import QuorumError, ScheduleError, VerifyError
from fedray.rng import Key
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.selection import HighestLoss, power_of_choice
from tests.unit.algorithms.cases import (
    INIT,
    LR,
    NUM_FEATURES,
    SIZES,
    STEPS,
    sites,
    tables,
    trained,
    uneven,
    vector,
)

ROUNDS = 5


def schedule(candidates=4, **settings):
    return power_of_choice(uneven(), candidates, cohort=2, **settings)


def power_of_choice_by_hand(candidates_of):
    """Cho et al., section 4, its steps quoted; `candidates_of(t)` is A. Returns w and who was asked."""
    w, asked = np.zeros(NUM_FEATURES + 1), []
    for t in range(ROUNDS):
        a = candidates_of(t)  # "Sample the candidate client set": d without replacement, with p_k
        loss = {}
        for k in a:  # "Estimate local losses": "the server sends the current global model to A, and these
            x, y = tables()[k]  # clients compute and send back to the server their local loss F_k(w)"
            loss[k] = ((x @ w - y) ** 2).mean() / 2
        # "Select highest loss clients": "the active client set is the m = max(CK, 1) with the largest F_k(w)"
        chosen = sorted(sorted(a, key=lambda k: -loss[k])[:2])
        asked.append(tuple(chosen))
        models = []
        for k in chosen:
            x, y = tables()[k]
            own = w.copy()
            for _ in range(STEPS[k]):
                own = own - LR * x.T @ (x @ own - y) / len(y)
            models.append(own)
        w = sum(models) / len(models)  # equation 3: 1/m sum over the active set
    return w, asked


def drawn(t, candidates=4):
    return schedule(candidates).cohort_of(t, 0, tuple(SIZES), SIZES)


def test_power_of_choice_equals_the_papers_loop():
    result, _ = trained(fr.algorithms.fedavg(uneven(), weighted=False), schedule=schedule())
    w, asked = power_of_choice_by_hand(drawn)
    assert len(set(asked)) > 1 and all(len(drawn(t)) == 4 for t in range(ROUNDS))
    assert np.abs(vector(result.params) - w).max() < 1e-12
    assert [record.asked for record in result.metrics] == [2] * ROUNDS


def test_the_lowest_losses_would_be_told_apart():
    found = HighestLoss(None, 4).chosen({"a": 1.0, "b": 3.0, "c": 2.0}, 2, Key(0, 0, "x"))
    assert found == ("b", "c")


def test_as_many_candidates_as_asked_is_plain_sampling():
    plain = fr.synchronous(cohort=2, sampling="weighted")
    one, two = (trained(fr.algorithms.fedavg(uneven()), schedule=each)[0] for each in (plain, schedule(2)))
    assert one.params_sha256 == two.params_sha256


def test_equal_losses_are_chosen_by_lot():
    told = dict.fromkeys("abcdef", 1.0)
    found = [HighestLoss(None).chosen(told, 2, Key(seed, 0, "x")) for seed in range(200)]
    assert {site for each in found for site in each} == set(told)
    assert found == [HighestLoss(None).chosen(told, 2, Key(seed, 0, "x")) for seed in range(200)]


def test_what_candidates_tell_is_listed_with_its_bytes():
    result, _ = trained(fr.algorithms.fedavg(uneven()), schedule=schedule())
    first = egress_rows(result.plan)[0]
    told = (first["stage"], first["name"], first["kind"], first["visible"], first["site_bytes"])
    assert told == ("before", "candidate_loss", "gather", "yes", 8)
    assert "candidate_loss" in fr.egress(result.plan)
    plain = fr.compile(fr.algorithms.fedavg(uneven()))
    assert result.plan.digest != plain.digest and "candidate_loss" not in fr.egress(plain)


def test_the_bytes_of_the_candidates_are_counted():
    with fr.simulate(sites(), packs=2) as federation:
        result = fr.fit(fr.algorithms.fedavg(uneven()), federation, init=INIT, rounds=3, schedule=schedule())
        assert federation.aggregator.root.bytes_up["candidate_loss"] == 3 * 4 * 8
    assert result.bytes_up > 3 * 4 * 8


@pytest.mark.parametrize("packs", [1, 5])
def test_the_layout_changes_no_bit(packs):
    expected, _ = trained(fr.algorithms.fedavg(uneven()), schedule=schedule())
    with fr.simulate(sites(), packs=packs) as federation:
        algorithm = fr.algorithms.fedavg(uneven())
        result = fr.fit(algorithm, federation, init=INIT, rounds=ROUNDS, schedule=schedule())
    assert result.params_sha256 == expected.params_sha256


def test_a_resumed_run_chooses_as_the_first(tmp_path):
    expected, _ = trained(fr.algorithms.fedavg(uneven()), schedule=schedule())
    kept = Checkpoints(tmp_path)
    for rounds in (2, ROUNDS):
        with fr.simulate(sites(), packs=2) as federation:
            result = fr.fit(fr.algorithms.fedavg(uneven()), federation, init=INIT, rounds=rounds,
                            schedule=schedule(), checkpoint=kept, resume=rounds == ROUNDS)  # fmt: skip
    assert result.params_sha256 == expected.params_sha256


class Silent:
    """A loss that some sites cannot tell."""

    def __init__(self, smallest):
        self.smallest = smallest

    def loss(self, params, data):
        if len(data["y"]) < self.smallest:
            raise ArithmeticError("broken")
        return uneven().loss(params, data)


def test_a_candidate_that_does_not_answer_is_not_asked_and_named():
    result, _ = trained(
        fr.algorithms.fedavg(uneven()), rounds=1, schedule=power_of_choice(Silent(20), 5, cohort=2)
    )
    assert {failure.site for failure in result.metrics[0].failures} == set("abcd")
    assert (result.metrics[0].asked, result.metrics[0].counted) == (1, 1)


def test_where_nobody_answers_the_round_is_refused_or_skipped():
    silent = power_of_choice(Silent(1000), 5, cohort=2)
    with pytest.raises(QuorumError):
        trained(fr.algorithms.fedavg(uneven()), rounds=1, schedule=silent)
    skipped, _ = trained(
        fr.algorithms.fedavg(uneven()), rounds=1, schedule=replace(silent, on_failure="skip")
    )
    assert skipped.metrics[0].status == "skipped" and not vector(skipped.params).any()


def test_a_policy_that_forbids_to_see_a_site_holds_before_the_round_too():
    strict = fr.passes.require(released={"delta", "metrics"})
    fr.compile(fr.algorithms.fedavg(uneven()), [strict])
    with pytest.raises(fr.errors.PolicyError, match="candidate_loss"):
        fr.compile(fr.algorithms.fedavg(uneven()), [strict], schedule())


def test_one_name_for_two_values_is_refused():
    with pytest.raises(VerifyError, match="candidate_loss"):
        fr.compile(schedule().choice.program, (), schedule())


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(ScheduleError, match="candidates=0"):
        schedule(0)
    with pytest.raises(ScheduleError, match="at least the cohort"):
        schedule(1).cohort_of(0, 0, tuple(SIZES), SIZES)
