"""Rounds that draw from the system's entropy: answered once, written down before, never replayed."""

import json

import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.core.graph import Op
from fedray.errors import HostError
from fedray.runtime import ray_hosts
from fedray.runtime.attempt import Attempt, Setting
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.federation import HostSpec
from fedray.runtime.host import Load, StageCall
from fedray.runtime.pack import Pack
from fedray.runtime.transport import InProcess
from tests.unit.passes.secure_cases import fitted, numbers
from tests.unit.runtime.toy import INIT, ToyLocal, sites

NAMES = tuple(f"h{number:02d}" for number in range(5))


def plan_of():
    return fr.compile(numbers(), [fr.passes.secure_sum("real")])


def pack_of(plan, folder):
    pack = Pack("pack0", sites(5))
    pack.hello()
    pack.load(Load(plan=plan, initial={}, is_start=True, journal=str(folder)))
    return pack


def call_of(plan, cohort=NAMES, attempt=0):
    return StageCall(run="run", plan=plan.digest, seed=0, round=0, attempt=attempt, stage=1, cohort=cohort)


def downlink_of(plan):
    """Compute what the sites of the first stage are sent."""
    setting = Setting(root=None, latency=None, run="run")
    state = {"params": torch.zeros(7), "mean": torch.zeros(7)}
    attempt = Attempt(setting=setting, plan=plan, schedule=fr.synchronous(), state=state, seed=0, round=0,
                      cohort=NAMES)  # fmt: skip
    attempt._server_stage(0, 5)
    return attempt._downlink(1)


def keys_in(answer):
    return {site: value.numpy().tobytes() for site, value in answer.gathered["secure.public_keys"].items()}


def test_a_plan_with_keys_or_noise_is_one_shot_and_a_plain_one_is_not():
    assert plan_of().is_one_shot and not fr.compile(numbers()).is_one_shot
    assert not fr.compile(numbers(), [fr.passes.secure_sum()]).is_one_shot


def test_a_host_that_is_asked_twice_gives_the_same_bytes(tmp_path):
    plan = plan_of()
    pack, downlink = pack_of(plan, tmp_path), downlink_of(plan)
    first, second = (keys_in(pack.run(call_of(plan), downlink)) for _ in range(2))
    assert first == second and len(set(first.values())) == 5


def test_a_host_that_was_started_again_refuses_what_it_has_answered(tmp_path):
    plan = plan_of()
    downlink = downlink_of(plan)
    pack_of(plan, tmp_path).run(call_of(plan), downlink)
    again = pack_of(plan, tmp_path)
    answer = again.run(call_of(plan), downlink)
    assert not answer.delivered and {failure.kind for failure in answer.failures} == {"answered before"}
    assert again.run(call_of(plan, attempt=1), downlink).delivered == NAMES
    entries = [json.loads(line) for line in (tmp_path / "answered-pack0.jsonl").read_text().splitlines()]
    assert [entry["stage"][3] for entry in entries] == ["0", "1"] and len(entries[0]["sha256"]) == 64


def test_a_site_that_has_answered_is_refused_in_another_cohort_too(tmp_path):
    plan = plan_of()
    pack, downlink = pack_of(plan, tmp_path), downlink_of(plan)
    pack.run(call_of(plan), downlink)
    assert not pack.run(call_of(plan, cohort=NAMES[:3]), downlink).delivered


def test_an_answer_is_on_disk_before_it_is_sent(tmp_path, monkeypatch):
    plan = plan_of()
    pack, synced, path = pack_of(plan, tmp_path), [], tmp_path / "answered-pack0.jsonl"
    monkeypatch.setattr("os.fsync", lambda file: synced.append(path.read_text()))
    pack.run(call_of(plan), downlink_of(plan))
    assert len(synced) == 1 and "h04" in synced[0]


def test_a_journal_that_was_edited_is_refused_and_a_torn_line_is_cut_off(tmp_path):
    plan = plan_of()
    pack_of(plan, tmp_path).run(call_of(plan), downlink_of(plan))
    path = tmp_path / "answered-pack0.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"stage": ["run"')
    assert not pack_of(plan, tmp_path).run(call_of(plan), downlink_of(plan)).delivered
    assert path.read_text() == whole
    path.write_text("edited\n" + whole)
    with pytest.raises(HostError, match="answered-pack0.jsonl.*cannot be read"):
        pack_of(plan, tmp_path)


def test_every_one_shot_round_is_checkpointed_before_the_next(tmp_path):
    masked = [fr.passes.secure_sum("real")]

    def trained(folder, rounds, passes=masked, resume=False):
        kept = Checkpoints(folder, every_s=1e9, keep=9)
        with fr.simulate(sites(6)) as federation:
            return fr.fit(fr.algorithms.scaffold(ToyLocal(), 6), federation, init=INIT, rounds=rounds,
                          passes=passes, checkpoint=kept, resume=resume), kept  # fmt: skip

    result, kept = trained(tmp_path / "whole", 4)
    assert kept.rounds() == [0, 1, 2, 3]
    assert trained(tmp_path / "plain", 4, passes=())[1].rounds() == [3]
    trained(tmp_path / "cut", 2)
    resumed, _ = trained(tmp_path / "cut", 4, resume=True)
    assert tree.equal(result.state, resumed.state)


def test_no_secret_is_in_a_checkpoint(tmp_path):
    kept = Checkpoints(tmp_path, every_s=0)
    with fr.simulate(sites(5)) as federation:
        masked = [fr.passes.secure_sum("real")]
        fr.fit(numbers(), federation, init={}, rounds=1, passes=masked, checkpoint=kept)
    names = {path.name.split(".")[0].split("-")[0] for path in tmp_path.iterdir()}
    assert names == {"server"}  # nothing of the protocol is a slot, so the sites have nothing to write


def test_hosts_are_actors_that_ray_never_runs_again(monkeypatch):
    seen = {}

    class Remote:
        def options(self, **options):
            seen.update(options)
            return self

        def remote(self, spec):
            return spec

    monkeypatch.setattr(ray_hosts, "with_control", lambda _: Remote())
    ray_hosts.start_hosts([HostSpec("pack0", sites(1))])
    assert seen["max_restarts"] == 0 and seen["max_task_retries"] == 0


def test_a_site_that_is_lost_after_the_masked_sum_keeps_what_it_was_counted_with():
    lost = fitted([fr.passes.secure_sum("real", min_cohort=3)], algorithm=remembering(), count=5,
                  lost={9: ["h01"]}, rounds=2)  # fmt: skip
    whole = fitted([fr.passes.secure_sum("real", min_cohort=3)], algorithm=remembering(), count=5, rounds=2)
    assert lost.state["visits"] == whole.state["visits"] == 10.0


def test_a_program_beside_a_run_is_masked_anew_as_often_as_it_is_asked(monkeypatch):
    monkeypatch.setattr(InProcess, "can_restart", True)  # as on Ray, so that hosts keep a journal
    with fr.simulate(sites(5)) as federation:
        for _ in range(4):
            found = fr.compute(numbers(), federation, state={}, passes=[fr.passes.secure_sum("real")])
            assert found["count"] == 5


def remembering():
    def round(server, site):
        visits = site.state + 1.0
        told = fr.sum(fr.map(both, visits, fr.broadcast(server["params"])), name="visits")
        return fr.Outputs(server={"params": server["params"], "visits": told}, site=visits)

    start = {"params": torch.zeros(1), "visits": 0.0}
    return fr.Algorithm(lambda _: start, round, lambda server: 0.0, name="remembering")


def both(visits, params):
    return visits


def test_every_function_of_the_protocol_that_sites_run_has_a_twin():
    for passes in ([fr.passes.secure_sum("real")], [fr.passes.two_server()], [fr.passes.secure_sum()]):
        mapped = [node.fn for node in fr.compile(numbers(), passes).nodes
                  if node.op is Op.CALL and type(node.fn).__module__.startswith("fedray.passes")
                  and node.params["lift"] == "site"]  # fmt: skip
        assert mapped and all(hasattr(fn, "rows") for fn in mapped)
