"""Secure sums whose sites refuse a step, and rounds that are tried again after a sum was opened in vain."""

import pytest
import torch

import fedray as fr
from fedray.errors import QuorumError, SecrecyError
from fedray.passes import secure_sum, trust_statement
from fedray.passes.secure_masks import ConfirmSurvivors, DealShares, Join, OpenShares
from tests.unit.passes.secure_cases import fitted, losing, numbers, oracle
from tests.unit.passes.test_secure_sum import START_BOUND, names
from tests.unit.runtime.toy import sites


@pytest.mark.parametrize(("step", "is_counted"), [
    (DealShares, False), (Join, False), (ConfirmSurvivors, True), (OpenShares, True),
])  # fmt: skip
def test_a_site_that_refuses_a_step_leaves_the_sum_to_the_others(monkeypatch, step, is_counted):
    took = step.step

    def refused(self, party, *told):
        if party.name == "h03":
            raise SecrecyError("E_SHARE", "a package does not open")
        took(self, party, *told)

    monkeypatch.setattr(step, "step", refused)
    result = fitted([secure_sum("real", min_cohort=3)])
    counted = [site for site in names(5) if is_counted or site != "h03"]
    assert torch.equal(result.state["mean"], oracle(counted, 5, START_BOUND))
    assert {failure.kind for failure in result.metrics[0].failures} == {"SecrecyError E_SHARE"}


def without_h00_for_ever(passes, retries):
    """Lose three of eight sites where shares are opened, and one of them in every later try."""
    schedule = fr.synchronous(quorum=0.3, retries=retries)
    with (
        fr.simulate(sites(8)) as federation,
        losing(federation, {9: ["h00", "h01", "h02"]}, attempt=0),
        losing(federation, {1: ["h00"]}, attempt=1),
        losing(federation, {1: ["h00"]}, attempt=2),
    ):
        return fr.fit(numbers(), federation, init={}, rounds=1, passes=passes, schedule=schedule)


def test_a_sum_that_was_opened_in_vain_is_not_opened_for_fewer_and_the_ways_out_are_told():
    told = r"5 sites have opened shares .*E_DIFFERENCING.* Fix: go on when .* back; .*secure.second_set=true"
    with pytest.raises(QuorumError, match=told):
        without_h00_for_ever([secure_sum("real", min_cohort=3)], retries=2)


def test_with_a_second_set_a_round_is_finished_without_a_site_that_never_returns():
    passes = [secure_sum("real", min_cohort=3, second_set=True)]
    with pytest.raises(QuorumError, match="E_DIFFERENCING"):  # the second try asks the same sites again
        without_h00_for_ever(passes, retries=1)
    result = without_h00_for_ever(passes, retries=2)
    record = result.metrics[0]
    left_out = {failure.site for failure in record.failures if failure.stage == 1}  # h00 and those drawn
    counted = sorted(set(names(8)) - left_out)
    assert record.attempt == 2 and record.counted == len(counted) and len(left_out) in (3, 4)
    assert torch.equal(result.state["mean"], oracle(counted, 8, START_BOUND))
    assert "the sum of 3 sites" in trust_statement(result.plan)
