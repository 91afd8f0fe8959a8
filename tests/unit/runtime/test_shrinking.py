"""Hosts that memory has taken down: named, and started again with fewer sites computed together."""

import pickle
import time
from dataclasses import replace

import pytest

from fedray.runtime.federation import HostSpec, make_host
from fedray.runtime.host import StageCall
from fedray.runtime.shrinking import MEMORY, Shrinking, why
from tests.unit.runtime.test_round import stateful
from tests.unit.runtime.toy import ToyLocal, sites, train

CALL = StageCall(run="r", plan="p", seed=0, round=3, attempt=0, stage=1, cohort=("h00", "h01"))
SPEC = HostSpec("pack0", sites(12))


class OutOfMemoryError(Exception):
    pass


def test_first_loss_without_a_reason_changes_nothing_and_the_second_in_a_call_halves(caplog):
    shrinking = Shrinking([SPEC])
    shrinking.lost("pack0", CALL, "ActorDiedError")
    assert shrinking.spec_of("pack0").halvings == 0 and not caplog.records
    shrinking.lost("pack0", CALL, "ActorDiedError")
    shrinking.lost("pack0", CALL, "ActorDiedError")
    assert shrinking.spec_of("pack0").halvings == 2
    for text in ("round 3, stage 1: host pack0 was lost twice", "12 sites (h00, h01, h02, h03, h04, ...)",
                 "at most 1/4 of a group"):  # fmt: skip
        assert text in caplog.text


def test_losses_in_different_rounds_are_not_taken_for_memory():
    shrinking = Shrinking([SPEC])
    for number in range(4):
        shrinking.lost("pack0", replace(CALL, round=number), "ActorDiedError")
    shrinking.lost("pack0", None, "ActorDiedError")
    assert shrinking.spec_of("pack0").halvings == 0


def test_loss_that_ray_says_is_for_memory_halves_at_once(caplog):
    shrinking = Shrinking([HostSpec("eu", children=(SPEC,))])
    shrinking.lost("eu", CALL, why(OutOfMemoryError("x")))
    spec = shrinking.spec_of("eu")
    assert spec.halvings == spec.children[0].halvings == 1 and MEMORY in caplog.text


@pytest.mark.parametrize(("error", "told"), [
    (RuntimeError("Task was killed due to the node running low on memory."), MEMORY),
    (ConnectionError("perhaps SIGKILL by the OOM killer due to high memory usage"), "ConnectionError"),
])  # fmt: skip
def test_only_what_ray_knows_is_called_memory(error, told):
    assert why(error) == told


@pytest.mark.parametrize(("halvings", "groups"), [(0, [8, 4]), (1, [4, 4, 4]), (2, [2] * 6), (9, [1] * 12)])
def test_groups_are_halved_and_bits_are_not_changed(halvings, groups):
    pack = make_host(replace(SPEC, group_size=8, halvings=halvings), None)
    pack.hello()
    size = pack._group_size({})
    assert [len(group) for group in pack._dealt(tuple(sites(12)), size, {})] == groups
    expected = train(stateful(ToyLocal())).params_sha256
    found = train(stateful(ToyLocal()), group_size=max(1, 8 >> halvings))
    assert found.params_sha256 == expected


def test_half_of_a_group_is_half_of_the_sites_where_these_are_fewer():
    pack = make_host(replace(SPEC, halvings=1), None)
    assert pack._group_size({}) == 6


def test_deadline_travels_as_the_seconds_that_are_left(monkeypatch):
    sent = pickle.dumps(replace(CALL, deadline=time.monotonic() + 30.0))
    other_machine = time.monotonic() - 1e6
    monkeypatch.setattr(time, "monotonic", lambda: other_machine)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    arrived = pickle.loads(sent)
    assert arrived.deadline - other_machine == pytest.approx(30.0, abs=1.0)
    assert replace(arrived, deadline=None) == CALL and pickle.loads(pickle.dumps(CALL)) == CALL
