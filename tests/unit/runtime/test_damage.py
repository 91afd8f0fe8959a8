"""Damaged checkpoints: each file of one is cut off, changed, removed or swapped, and that is noticed."""

import logging
import shutil

import pytest

from fedray.errors import CheckpointError, DamagedError
from fedray.runtime import checkpoint
from fedray.runtime.checkpoint import Checkpoints
from tests.unit.runtime.test_round import averaging, stateful
from tests.unit.runtime.toy import ToyLocal, train

FILES = ("server-{}.json", "server-{}.safetensors", "sites-{}-pack0.json", "sites-{}-pack0.safetensors",
         "sites-{}-pack1.json", "sites-{}-pack1.safetensors")  # fmt: skip


def cut_off(path, before):
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path, before):
    path.write_bytes(b"")


def one_bit(path, before):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_an_earlier_round(path, before):
    shutil.copy(before, path)


def missing(path, before):
    path.unlink()


def trained(folder, rounds, resume=False, **layout):
    kept = Checkpoints(folder, every_s=0.0)
    return train(stateful(ToyLocal()), rounds=rounds, checkpoint=kept, resume=resume, packs=2, **layout)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four rounds with the checkpoints of its last two, and the bits after six."""
    folder = tmp_path_factory.mktemp("checkpoints")
    trained(folder, 4)
    return folder, train(stateful(ToyLocal()), rounds=6).params_sha256


@pytest.mark.parametrize("damage", [cut_off, emptied, one_bit, of_an_earlier_round, missing])
@pytest.mark.parametrize("file", FILES)
def test_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, whole, caplog, file, damage):
    folder, bits = whole
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / file.format(3), tmp_path / file.format(2))
    with caplog.at_level(logging.WARNING, "fedray"):
        resumed = trained(tmp_path, 6, resume=True)
    assert resumed.metrics[0].round == 3 and resumed.params_sha256 == bits
    if (file, damage) != (FILES[0], missing):  # without its last file it is no checkpoint
        assert f"round 3 is damaged: {file.format(3)} in {tmp_path}" in caplog.text
        assert "goes on from the checkpoint of round 2" in caplog.text
    assert Checkpoints(tmp_path).rounds() == [4, 5]


def test_damaged_checkpoint_does_not_count_as_one_that_is_kept(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    one_bit(tmp_path / "server-3.safetensors", None)
    trained(tmp_path, 4, resume=True)
    assert Checkpoints(tmp_path).rounds() == [2, 3]


def test_where_all_are_damaged_the_error_names_each_and_nothing_is_removed(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    one_bit(tmp_path / "server-3.safetensors", None)
    cut_off(tmp_path / "sites-2-pack1.json", None)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"none of the 2 .*round 3: server-3\.safetensors.*"
                                              r"round 2: sites-2-pack1\.json.*Fix: put the files back"):
        trained(tmp_path, 6, resume=True)
    assert sorted(tmp_path.iterdir()) == before


def test_another_plan_is_no_damage(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="another plan"):
        train(averaging(ToyLocal()), rounds=6, checkpoint=Checkpoints(tmp_path), resume=True)
    assert Checkpoints(tmp_path).rounds() == [2, 3]


def test_older_format_is_said(tmp_path):
    (tmp_path / "server-3.json").write_text('{"format": 3, "round": 3}')
    with pytest.raises(CheckpointError, match="has format 3, this is 4") as caught:
        checkpoint.read_server(str(tmp_path), 3, {})
    assert not isinstance(caught.value, DamagedError)


def test_host_whose_part_lies_on_another_disk_says_which_sites_it_misses(tmp_path):
    state = {("state", "h1"): 1.0, ("state", "h2"): 2.0}
    parts = dict(checkpoint.write_sites(str(tmp_path / "there"), 3, "pack0", ["h1", "h2", "h3"], state))
    parts |= checkpoint.write_sites(str(tmp_path / "here"), 3, "pack1", ["h4"], {("state", "h4"): 4.0})
    here = str(tmp_path / "here")
    assert checkpoint.read_sites(here, 3, parts, ["h4"], {}) == {("state", "h4"): 4.0}
    with pytest.raises(DamagedError, match="sites-3-pack0.json .*is missing; 2 sites .*h2 among them"):
        checkpoint.read_sites(here, 3, parts, ["h4", "h2", "h3"], {})


def test_site_that_is_new_starts_as_all_do(tmp_path):
    parts = checkpoint.write_sites(str(tmp_path), 3, "pack0", ["h1"], {("state", "h1"): 1.0})
    found = checkpoint.read_sites(str(tmp_path), 3, parts, ["h1", "h2"], {})
    assert found == {("state", "h1"): 1.0}


def test_rows_that_were_read_lie_on_lines_of_the_cache(tmp_path):
    trained(tmp_path, 1)
    spec, state, _ = checkpoint.read_server(str(tmp_path), 0, {})
    assert state.buffer.data_ptr() % 64 == 0 and spec["round"] == 0


def test_nothing_is_written_for_sites_that_keep_nothing(tmp_path):
    train(averaging(ToyLocal()), rounds=1, checkpoint=Checkpoints(tmp_path), packs=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["server-0.json", "server-0.safetensors"]
