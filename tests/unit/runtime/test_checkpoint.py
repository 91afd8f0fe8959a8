"""Checkpoints: a run that stops between any two rounds goes on with equal bits."""

import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.algorithms.scaffold import ScaffoldState
from fedray.errors import CheckpointError
from fedray.runtime import checkpoint
from fedray.runtime.checkpoint import Checkpoints
from tests.unit.runtime.test_round import averaging, stateful
from tests.unit.runtime.toy import INIT, ToyLocal, sites, train


@pytest.mark.parametrize("make", [averaging, stateful])
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path, make, stop):
    whole = train(make(ToyLocal()), rounds=5, schedule=fr.synchronous(cohort=0.5))
    train(
        make(ToyLocal()), rounds=stop, schedule=fr.synchronous(cohort=0.5), checkpoint=Checkpoints(tmp_path)
    )
    resumed = train(
        make(ToyLocal()),
        rounds=5,
        schedule=fr.synchronous(cohort=0.5),
        checkpoint=Checkpoints(tmp_path),
        resume=True,
        packs=3,
    )
    assert resumed.params_sha256 == whole.params_sha256
    assert [record.round for record in resumed.metrics] == list(range(stop, 5))


def test_packs_of_one_region_are_resumed_each_from_its_own_file(tmp_path):
    names = list(sites())
    layout = {"regions": {"eu": names[:8], "us": names[8:]}, "packs": 2}
    train(stateful(ToyLocal()), rounds=2, checkpoint=Checkpoints(tmp_path), **layout)
    resumed = train(stateful(ToyLocal()), checkpoint=Checkpoints(tmp_path), resume=True, **layout)
    assert len(list(tmp_path.glob("sites-1-*.json"))) == 4
    assert resumed.params_sha256 == train(stateful(ToyLocal())).params_sha256


def test_another_plan_is_refused(tmp_path):
    train(averaging(ToyLocal()), rounds=1, checkpoint=Checkpoints(tmp_path))
    with pytest.raises(CheckpointError, match="another plan"):
        train(averaging(ToyLocal(lr=0.2)), rounds=2, checkpoint=Checkpoints(tmp_path), resume=True)


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        train(averaging(ToyLocal()), rounds=2, checkpoint=Checkpoints(tmp_path), resume=True)


def test_the_last_two_checkpoints_stay_and_half_written_ones_do_not_count(tmp_path):
    saved = Checkpoints(tmp_path, every_s=0.0)
    train(stateful(ToyLocal()), rounds=5, checkpoint=saved)
    assert saved.rounds() == [3, 4]
    (tmp_path / "server-4.json").unlink()
    assert saved.rounds() == [3]


def test_every_kind_of_state_comes_back_with_its_bits():
    state = {
        "a": ScaffoldState(tree.flatten(INIT), (torch.arange(3), 0.1 + 0.2), 7),
        "b": [None, "x", float("inf"), True],
    }
    tensors = {}
    spec = checkpoint.encode(state, tensors, "s")
    assert tree.equal(checkpoint.decode(spec, tensors, checkpoint.record_kinds(state)), state)


def test_a_broken_checkpoint_is_named(tmp_path):
    train(averaging(ToyLocal()), rounds=1, checkpoint=Checkpoints(tmp_path))
    (tmp_path / "server-0.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"none of the 1 .*server-0\.safetensors"):
        train(averaging(ToyLocal()), rounds=2, checkpoint=Checkpoints(tmp_path), resume=True)


def test_site_state_is_written_by_the_host_and_not_by_the_server(tmp_path):
    train(stateful(ToyLocal()), sites(4), rounds=1, checkpoint=Checkpoints(tmp_path), packs=2)
    server = (tmp_path / "server-0.json").read_text()
    assert "h00" not in server and len(list(tmp_path.glob("sites-0-*.json"))) == 2


def test_a_checkpoint_cannot_name_code_to_run():
    spec = {"record": "subprocess:Popen", "fields": [["args", "true"]]}
    with pytest.raises(CheckpointError, match="subprocess:Popen"):
        checkpoint.decode(spec, {}, {})
