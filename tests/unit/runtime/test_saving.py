"""A run whose disk fills up: it goes on, says so once, leaves no half file, and writes again when it can."""

import itertools
import os
import time

import pytest

import fedray as fr
from fedray.errors import CheckpointError, StorageError
from fedray.runtime.checkpoint import Checkpoints
from tests.unit.disks import fill, small_disk
from tests.unit.passes.secure_cases import numbers
from tests.unit.runtime.test_round import stateful
from tests.unit.runtime.toy import INIT, ToyLocal, sites, train

ROUNDS = 8


class Meanwhile:
    """A tracker that calls a function after some rounds."""

    def __init__(self, **after):
        self.after = {int(round.removeprefix("round_")): call for round, call in after.items()}

    def start(self, plan, facts):
        pass

    def round(self, record):
        self.after.get(record.round, int)()

    def evaluation(self, record):
        pass

    def finish(self, result):
        pass


def trained(kept, algorithm=None, tracker=None, rounds=ROUNDS, resume=False, init=INIT, **settings):
    with fr.simulate(sites(), packs=2) as federation:
        return fr.fit(algorithm or stateful(ToyLocal()), federation, init=init, rounds=rounds,
                      checkpoint=kept, tracker=tracker, resume=resume, **settings)  # fmt: skip


def said(caplog):
    return [record.message for record in caplog.records if record.name == "fedray.runtime.saving"]


def test_full_disk_does_not_end_a_run_and_the_last_good_checkpoint_stays(tmp_path, caplog):
    whole = train(stateful(ToyLocal()), rounds=ROUNDS)
    with small_disk(tmp_path / "disk", 512) as folder:
        kept = Checkpoints(folder / "checkpoints", every_s=0.0)
        result = trained(kept, tracker=Meanwhile(round_2=lambda: fill(folder, leaving=4096)))
        assert result.params_sha256 == whole.params_sha256
        assert kept.rounds() == [0, 1]
        assert {name.split(".")[0].split("-")[1] for name in os.listdir(kept.address)} == {"0", "1"}
        lines = said(caplog)
        assert len(lines) == 2
        for text in ("no checkpoint of round 2", str(folder), "bytes are free there", "Fix: free",
                     "The last good one is of round 1", "s old", "tried again"):  # fmt: skip
            assert text in lines[0]
        assert f"the run ends without a checkpoint of its last round, {ROUNDS - 1}" in lines[1]
        (folder / "filler").unlink()
        again = trained(kept, resume=True)
        assert again.metrics[0].round == 2 and again.params_sha256 == whole.params_sha256


def test_checkpoints_are_written_again_once_there_is_room(tmp_path, caplog):
    with small_disk(tmp_path / "disk", 512) as folder:
        kept = Checkpoints(folder / "checkpoints", every_s=0.0)
        tracker = Meanwhile(round_2=lambda: fill(folder), round_5=(folder / "filler").unlink)
        trained(kept, tracker=tracker)
        assert kept.rounds() == [ROUNDS - 2, ROUNDS - 1]
    lines = said(caplog)
    assert len(lines) == 2 and "no checkpoint of round 2" in lines[0]
    assert "written again: that of round 5 is there" in lines[1]


def test_round_that_is_drawn_once_waits_for_its_checkpoint_and_no_other_follows(tmp_path, caplog):
    masked = [fr.passes.secure_sum("real")]
    with small_disk(tmp_path / "disk", 512) as folder:
        kept = Checkpoints(folder / "checkpoints", every_s=1e9, patience_s=0.2)
        tracker = Meanwhile(round_1=lambda: fill(folder))
        told = "round 1 .*drawn once.*bytes are free.*last good one is of round 0"
        with pytest.raises(CheckpointError, match=told):
            trained(kept, numbers(), tracker, init={}, passes=masked)
        assert kept.rounds() == [0] and len(said(caplog)) == 1


def test_round_that_waits_goes_on_when_there_is_room_again(tmp_path, monkeypatch):
    masked = [fr.passes.secure_sum("real")]
    with small_disk(tmp_path / "disk", 512) as folder:
        kept = Checkpoints(folder / "checkpoints", every_s=1e9, patience_s=60.0)
        monkeypatch.setattr("time.sleep", lambda seconds: (folder / "filler").unlink())
        result = trained(kept, numbers(), Meanwhile(round_1=lambda: fill(folder)), 4, init={}, passes=masked)
        assert result.rounds == 4 and kept.rounds() == [2, 3]


def test_place_that_cannot_be_written_to_is_refused_before_any_site_is_asked(tmp_path):
    (tmp_path / "file").write_text("")

    def opened():
        raise AssertionError("a site was asked")

    kept = Checkpoints(tmp_path / "file")
    with fr.simulate({"h0": opened}) as federation, pytest.raises(StorageError, match="file.*cannot be"):
        fr.fit(stateful(ToyLocal()), federation, init=INIT, rounds=1, checkpoint=kept)


def test_checkpoints_are_due_by_a_clock_that_nobody_sets(tmp_path):
    now = itertools.count(step=10.0)
    kept = Checkpoints(tmp_path, every_s=35.0, clock=lambda: next(now), keep=9)
    trained(kept)
    assert 1 < len(kept.rounds()) < ROUNDS


def test_time_of_day_that_jumps_by_hours_makes_no_site_late_and_changes_no_bit(tmp_path, monkeypatch):
    whole = train(stateful(ToyLocal()), rounds=ROUNDS)
    real, jumps = time.time, itertools.cycle([0.0, 6 * 3600.0, -6 * 3600.0, 86400.0])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    kept = Checkpoints(tmp_path, every_s=0.0)
    result = trained(kept, schedule=fr.synchronous(deadline_s=30.0))
    assert result.params_sha256 == whole.params_sha256 and not result.failures
    assert kept.rounds() == [ROUNDS - 2, ROUNDS - 1]
