"""Secure sums in a round: what is summed, who may be lost, what is refused. The protocol itself is tested in
tests/unit/secrecy.
"""

import itertools

import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.core.graph import Op
from fedray.errors import QuorumError, ScheduleError, SecurityConflict
from fedray.passes import secure_sum
from tests.unit.passes.secure_cases import fitted, numbers, oracle
from tests.unit.runtime.toy import sites

START_BOUND, START_CAP = 16.0, 2.0**14
REAL = {"active": [1, 3, 5, 7, 9], "curious": [1, 3, 5, 7]}


def names(count):
    return [f"h{number:02d}" for number in range(count)]


def is_masked(plan):
    """Tell whether masks are added: mode=real, read off the plan."""
    return any(type(node.fn).__name__ == "Mask" for node in plan.nodes if node.op is Op.CALL)


@pytest.mark.parametrize("server", ["active", "curious"])
def test_masked_sums_equal_the_integer_oracle_bit_for_bit(server):
    result = fitted([secure_sum("real", server=server)])
    assert is_masked(result.plan) and result.plan.site_stages == REAL[server]
    assert torch.equal(result.state["mean"], oracle(names(5), 5, START_BOUND))


def test_weights_enter_as_whole_numbers_and_wide_sums_are_exact():
    shown = {}

    def look(state):
        return state

    result = fitted([secure_sum("real")], algorithm=keeping())
    rows = {site: 3.0 + int(site[1:]) for site in names(5)}
    assert torch.equal(result.state["weighted"], oracle(names(5), 5, START_BOUND, rows, START_CAP))
    assert result.state["total"] == sum(1e9 * number + 0.125 for number in range(5))
    assert result.state["ones"] == 5 == result.state["count"]


def keeping():
    """Keep what the metrics say in the server's state."""
    inner = numbers()

    def round(server, site):
        found = inner.round(server, site)
        return fr.Outputs(server={**found.server, **{
            "weighted": found.metrics["weighted"], "total": found.metrics["sum"],
            "ones": found.metrics["ones"], "count": found.metrics["count"],
        }})

    start = torch.zeros(7)
    first = {"params": start, "mean": start, "weighted": start, "total": 0.0, "ones": 0, "count": 0}
    return fr.Algorithm(lambda _: first, round, name="keeping")


def test_an_ideal_sum_has_the_bits_of_a_real_one_over_several_rounds():
    found = [fitted([secure_sum(mode)], rounds=3).state for mode in ("ideal", "real")]
    assert tree.equal(*found)


@pytest.mark.parametrize(("stage", "is_counted"), [(1, False), (3, False), (5, False), (7, True), (9, True)])
def test_every_pattern_of_one_and_two_lost_sites_ends_in_the_exact_sum_or_no_round(stage, is_counted):
    for count in (1, 2):
        for gone in itertools.combinations(names(5), count):
            counted = names(5) if is_counted else [site for site in names(5) if site not in gone]
            if count == 2:  # t = floor(2 * 5 / 3) + 1 = 4
                with pytest.raises(QuorumError, match="E_THRESHOLD|E_COHORT"):
                    fitted([secure_sum("real", min_cohort=3)], lost={stage: gone})
                continue
            result = fitted([secure_sum("real", min_cohort=3)], lost={stage: gone})
            assert torch.equal(result.state["mean"], oracle(counted, 5, START_BOUND)), gone
            assert result.metrics[0].counted == len(counted)


@pytest.mark.parametrize("lost", [{5: ["h01"], 9: ["h06"]}, {1: ["h00"], 5: ["h03"]}, {3: ["h07"], 7: ["h02"]}])
def test_sites_lost_at_different_stages_leave_the_sum_of_those_that_delivered(lost):
    gone = {site for stage, some in lost.items() if stage <= 5 for site in some}
    counted = [site for site in names(8) if site not in gone]
    result = fitted([secure_sum("real", min_cohort=3)], count=8, lost=lost)
    assert torch.equal(result.state["mean"], oracle(counted, 8, START_BOUND))


def test_a_curious_server_needs_half_of_the_sites():
    result = fitted([secure_sum("real", server="curious", min_cohort=3)], lost={5: ["h00", "h01"]})
    assert torch.equal(result.state["mean"], oracle(names(5)[2:], 5, START_BOUND))


def test_a_round_that_ends_without_a_result_is_tried_again_with_fresh_keys():
    schedule = fr.synchronous(quorum=0.01, retries=1)
    from tests.unit.passes.secure_cases import losing

    with fr.simulate(sites(5)) as federation, losing(federation, {7: ["h00", "h01"]}, attempt=0):
        result = fr.fit(numbers(), federation, init={}, rounds=1, passes=[secure_sum("real", min_cohort=3)],
                        schedule=schedule)  # fmt: skip
    assert result.metrics[0].attempt == 1
    assert torch.equal(result.state["mean"], oracle(names(5), 5, START_BOUND))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_cohort_below_the_least_is_refused(count):
    with pytest.raises(QuorumError, match="E_COHORT.*min_cohort"):
        fitted([secure_sum("real")], count=count)


def test_survivors_below_the_least_are_never_unmasked():
    with pytest.raises(QuorumError, match="E_COHORT"):
        fitted([secure_sum("real", min_cohort=5)], count=6, lost={5: ["h00", "h01"]})
