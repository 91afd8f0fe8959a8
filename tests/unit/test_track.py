"""Trackers: lines as they come, Parquet at the end, readers that take either."""

import sys
from types import ModuleType

import pytest

from fedray.errors import StorageError
from fedray.track import combine, frame, jsonl, read, tensorboard
from tests.unit import sample_run
from tests.unit.disks import fill, small_disk


def test_every_round_is_a_line_as_soon_as_it_is_over(tmp_path):
    tracker = jsonl(tmp_path)
    tracker.start(sample_run.plan(), {})
    tracker.round(sample_run.round_record(0, [sample_run.failure()]))
    (row,) = read(tmp_path, "rounds")
    assert row["counted"] == 59 and row["hashes"]["server"] and row["metrics"]["loss"] == 0.7
    assert row["failures"] == [{"site": "h017", "stage": 1, "kind": "ValueError", "where": "train.py:12"}]


def test_rounds_with_noise_have_an_epsilon_and_others_none(tmp_path):
    tracker = jsonl(tmp_path)
    tracker.round(sample_run.round_record(0, epsilon=0.5))
    tracker.round(sample_run.round_record(1))
    assert [row.get("epsilon") for row in read(tmp_path, "rounds")] == [0.5, None]


def test_evaluation_is_one_line_and_one_per_site(tmp_path):
    tracker = jsonl(tmp_path)
    tracker.evaluation(sample_run.evaluation_record(3, sites=5))
    assert read(tmp_path, "evaluations")[0]["metrics"]["calibration_slope"] == 1.05
    assert [row["site"] for row in read(tmp_path, "sites")] == ["h000", "h001", "h002", "h003", "h004"]


def test_value_that_is_not_finite_is_written_as_null(tmp_path):
    jsonl(tmp_path).round(sample_run.round_record(0, metrics={"loss": float("nan")}))
    assert read(tmp_path, "rounds")[0]["metrics"]["loss"] is None


@pytest.mark.parametrize("kind", ["rounds", "evaluations", "sites"])
def test_parquet_alone_reads_like_the_lines(tmp_path, kind):
    sample_run.replay(jsonl(tmp_path), sample_run.result())
    lines = read(tmp_path, kind)
    (tmp_path / f"{kind}.jsonl").unlink()
    assert read(tmp_path, kind) == lines


def test_frame_has_nested_values_as_columns(tmp_path):
    sample_run.replay(jsonl(tmp_path), sample_run.result())
    table = frame(tmp_path, "rounds")
    assert len(table) == 12 and table["metrics.loss"].iloc[0] == 0.7


def test_resumed_run_drops_the_rounds_that_it_does_again(tmp_path):
    sample_run.replay(jsonl(tmp_path), sample_run.result())
    jsonl(tmp_path).start(sample_run.plan(), {"first_round": 5})
    assert [row["round"] for row in read(tmp_path, "rounds")] == [0, 1, 2, 3, 4]
    assert {row["round"] for row in read(tmp_path, "sites")} == {3}
    assert not (tmp_path / "rounds.parquet").exists()


def test_line_cut_off_by_a_kill_is_left_out(tmp_path):
    tracker = jsonl(tmp_path)
    tracker.round(sample_run.round_record(0))
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 1, "met')
    assert [row["round"] for row in read(tmp_path, "rounds")] == [0]


def test_rows_of_different_metrics_go_into_one_parquet(tmp_path):
    tracker = jsonl(tmp_path)
    tracker.round(sample_run.round_record(0, metrics={}))
    tracker.round(sample_run.round_record(1, metrics={"norm": 1.5}))
    tracker.finish(None)
    assert (tmp_path / "rounds.parquet").exists()


def test_run_without_a_site_finishes(tmp_path):
    tracker = jsonl(tmp_path)
    tracker.start(sample_run.plan(), {})
    tracker.finish(None)
    assert read(tmp_path, "sites") == []


def test_small_cell_is_left_out_where_asked(tmp_path):
    jsonl(tmp_path, suppress=True).evaluation(sample_run.evaluation_record(3))
    assert all(row["events"] is None or row["events"] >= 11 for row in read(tmp_path, "sites"))


class Noting:
    def __init__(self):
        self.seen = []

    def start(self, plan, facts):
        self.seen.append("start")

    def round(self, record):
        self.seen.append(record.round)

    def evaluation(self, record):
        self.seen.append(record.split)

    def finish(self, result):
        self.seen.append("finish")


def test_combined_trackers_all_hear_everything():
    first, second = Noting(), Noting()
    sample_run.replay(combine(first, None, second), sample_run.result(rounds=4))
    assert first.seen == second.seen == ["start", 0, 1, 2, 3, "valid", "test", "finish"]


def test_tensorboard_gets_scalars(tmp_path, monkeypatch):
    written = {}

    class SummaryWriter:
        def __init__(self, folder):
            written["folder"] = folder

        def add_text(self, name, text, round):
            written[name] = text

        def add_scalar(self, name, value, round):
            written[name, round] = value

        def close(self):
            written["closed"] = True

    module = ModuleType("tensorboardX")
    module.SummaryWriter = SummaryWriter
    module.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    sample_run.replay(tensorboard(tmp_path), sample_run.result(rounds=4))
    assert written["round/loss", 0] == 0.7 and written["valid/calibration_slope", 3] == 1.05
    assert written["folder"] == str(tmp_path / "tensorboard") and written["closed"]


def test_full_disk_keeps_records_until_there_is_room_and_is_said_once(tmp_path, caplog):
    with small_disk(tmp_path / "disk", 64) as folder:
        tracker = jsonl(folder)
        tracker.start(sample_run.plan(), {})
        tracker.round(sample_run.round_record(0))
        filler = fill(folder)
        for number in range(1, 9):  # more than what is left of the first line's page
            tracker.round(sample_run.round_record(number, [sample_run.failure()] * 9))
        written = read(folder, "rounds")
        assert (folder / "rounds.jsonl").read_text().endswith("\n") and len(written) < 9
        (line,) = [record.message for record in caplog.records]
        assert f"{folder}/rounds.jsonl cannot be added to" in line and "bytes are free" in line
        filler.unlink()
        tracker.round(sample_run.round_record(9))
        assert [row["round"] for row in read(folder, "rounds")] == list(range(10))


def test_records_that_a_full_disk_never_took_are_counted_at_the_end(tmp_path, caplog):
    with small_disk(tmp_path / "disk", 64) as folder:
        tracker = jsonl(folder)
        tracker.start(sample_run.plan(), {})
        fill(folder)
        tracker.round(sample_run.round_record(0))
        tracker.finish(None)
        assert "1 records of the run are not on the disk" in caplog.text
        assert [path.name for path in folder.iterdir() if path.suffix == ".part"] == []


def test_disk_that_is_full_before_the_run_is_named_before_it_starts(tmp_path):
    with small_disk(tmp_path / "disk", 64) as folder:
        tracker = jsonl(folder)
        tracker.start(sample_run.plan(), {})
        tracker.round(sample_run.round_record(0))
        fill(folder)
        with pytest.raises(StorageError, match=f"{folder}/rounds.jsonl cannot be written .*No space left"):
            jsonl(folder).start(sample_run.plan(), {"first_round": 1})
        assert len(read(folder, "rounds")) == 1
