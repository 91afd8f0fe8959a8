"""log.jsonl: what is in it and what never is, how long it gets, and `fedray logs`."""

import errno
import json
import logging
import threading

import pytest

from fedray import cli
from fedray.errors import DataError
from fedray.observe import log
from fedray.observe.observer import Observer
from fedray.runtime.observed import Note, Observed, Span
from tests.unit import sample_run
from tests.unit.disks import fill, small_disk

SECRET = "Mrs Miller, 83"


def observed(run, rounds=4, notes=(), failing=()):
    """Let an observer see a made-up run; `failing` are (round, site, kind)."""
    with Observer(run, rounds, beats=False) as observer:
        observer.start(sample_run.plan(), {"sites": 60, "where": "ray", "first_round": 0})
        for number in range(rounds):
            failures = [sample_run.failure(site, number, kind) for at, site, kind in failing if at == number]
            spans = (Span("pack1", "compute", 1.0, 2.0, number, 1, ("h017", "h018")),)
            seen = Observed(spans=spans, notes=[note for note in notes if note.round == number])
            observer.round(sample_run.round_record(number, failures, observed=seen))
    return log.read(run)


def shown(capsys, *words):
    code = cli.main(["logs", *words])
    return code, capsys.readouterr().out.splitlines()


def test_failure_of_a_site_says_where_of_which_kind_and_on_which_host(run):
    lines = observed(run, failing=[(2, "h017", "ValueError"), (2, "h030", "late")])
    found = {line["site"]: line for line in lines if "site" in line}
    mine = found["h017"]
    assert (mine["round"], mine["stage"], mine["host"], mine["kind"]) == (2, 1, "pack1", "ValueError")
    assert (mine["level"], mine["where"], mine["run"]) == ("ERROR", "train.py:12", run.name)
    assert (found["h030"]["level"], "host" in found["h030"]) == ("WARNING", False)


def test_site_that_fails_in_every_round_is_told_seldom(run):
    lines = observed(run, rounds=200, failing=[(number, "h017", "ValueError") for number in range(200)])
    assert [line["times"] for line in lines if "site" in line] == [1, 2, 3, 4, 8, 16, 32, 64, 128]


def test_lines_of_hosts_and_of_this_process_are_merged_in_the_order_of_their_times(run):
    note = Note(4e9, "WARNING", "pack1", "memory is short", 1, 1)
    with Observer(run, 1, beats=False) as observer:
        observer.start(sample_run.plan(), {"sites": 60})
        observer.round(sample_run.round_record(0, observed=Observed(notes=[note])))
        logging.getLogger("fedray.runtime.loop").warning("of the driver", extra={"round": 0})
        logging.getLogger("fedray.passes.secure_hub").warning("of the aggregator")
    lines = log.read(run)
    expected = ["of the driver", "of the aggregator", "memory is short"]
    assert [line["message"] for line in lines][-3:] == expected
    assert [line["source"] for line in lines][-3:] == ["driver", "aggregator", "host"]
    assert lines[-1]["time"] == "2096-10-02T07:06:40.000+00:00"


def broken():
    logging.getLogger("fedray.runtime.loop").error("broke", exc_info=ValueError(SECRET))
    raise ValueError(SECRET)


def test_no_message_of_an_error_that_is_not_ours_is_in_the_log(run):
    with pytest.raises(ValueError, match=SECRET), Observer(run, 4, beats=False):
        broken()
    assert SECRET not in (run / log.FILE).read_text() + (run / "status.json").read_text()
    assert log.read(run)[-1] | {"time": ""} == {
        "time": "", "level": "ERROR", "source": "driver", "run": run.name, "kind": "ValueError",
        "message": "the run failed"}  # fmt: skip


def test_message_of_an_error_of_ours_is_in_the_log(run):
    with pytest.raises(DataError), Observer(run, 4, beats=False):
        raise DataError("site h01 has no column y")
    assert log.read(run)[-1]["message"] == "the run failed: site h01 has no column y"


def test_trial_in_another_thread_has_a_log_of_its_own(run):
    with Observer(run, 4, beats=False):
        warning = logging.getLogger("fedray.runtime.loop").warning
        thread = threading.Thread(target=warning, args=("elsewhere",))
        thread.start()
        thread.join()
    assert log.read(run) == []


def test_logging_is_as_it_was_after_the_run(run):
    logger = logging.getLogger("fedray")
    before = logger.level, list(logger.handlers)
    observed(run)
    assert (logger.level, logger.handlers) == before


NOTES = [Note(2e9, "ERROR", "pack1", "first error of the stage", 1, 1, kind="KeyError",
              traceback="run-pack1.txt")]  # fmt: skip


def test_logs_shows_the_first_error_on_top(run, capsys):
    observed(run, notes=NOTES, failing=[(3, "h017", "ValueError")])
    code, lines = shown(capsys)
    assert code == 0 and lines[0].startswith("first error: ") and lines[1] == ""
    assert "round 3, stage 1, h017, pack1  ValueError at train.py:12: left out of the round" in lines[0]
    assert any("all of it in run-pack1.txt on that host" in line for line in lines[2:])


@pytest.mark.parametrize(("words", "expected"), [
    (("--site", "h017"), {"h017"}), (("--site", "pack1"), {"h017", None}),
    (("--round", "1"), {None}), (("--level", "error"), {"h017", None}),
    (("--site", "h018", "--level", "error"), set())])
def test_logs_shows_the_lines_of_a_site_a_round_or_a_level(run, capsys, words, expected):
    observed(run, notes=NOTES, failing=[(3, "h017", "ValueError"), (3, "h030", "late")])
    code, lines = shown(capsys, "latest", "--json", *words)
    found = [json.loads(line) for line in lines]
    assert code == 0 and {line.get("site") for line in found} == expected


def test_following_ends_with_the_run_and_shows_what_came_meanwhile(run, capsys, monkeypatch):
    observed(run)
    (run / "STATUS").write_text("running\n")
    (run / "status.json").unlink()
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        with (run / log.FILE).open("a") as file:
            file.write(json.dumps({"time": log.iso(3e9), "level": "INFO", "source": "driver",
                                   "message": f"late {len(looks)}"}) + "\n")
        if len(looks) == 2:
            (run / "STATUS").write_text("done\n")

    monkeypatch.setattr("fedray.observe.commands.time.sleep", sleep)
    _, lines = shown(capsys, "--follow")
    assert [line.rpartition("  ")[2].strip()[-6:] for line in lines[-2:]] == ["late 1", "late 2"]


def test_run_without_a_log_is_named_with_what_to_read(run, capsys):
    assert cli.main(["logs"]) == 2
    assert "fix: read runs/latest/log.txt" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "told"), [
    (("--site", "h071"), "fix: --site h018, h017"), (("--site", "x"), "fix: --site h017, h018, pack1"),
    (("--site", "h017", "--round", "99"), "fix: --round 0 to 3")])
def test_site_or_round_that_is_not_there_is_refused_with_those_that_are(run, capsys, words, told):
    observed(run)
    assert cli.main(["logs", *words]) == 2
    assert told in capsys.readouterr().err


def test_site_that_is_there_and_of_which_nothing_was_said_is_no_error(run, capsys):
    observed(run)
    assert cli.main(["logs", "--site", "h017", "--round", "2"]) == 0
    assert "nothing of level info or above was said of h017 in round 2" in capsys.readouterr().err


def test_line_that_cannot_be_read_is_left_out_and_counted(run, capsys):
    observed(run)
    whole = (run / log.FILE).read_text()
    (run / log.FILE).write_text(whole + '{"time": "2026-1' + whole + "[1]\n\0\0\n")
    code, lines = shown(capsys, "--round", "1")
    assert code == 0 and len(lines) == 2
    assert cli.main(["logs"]) == 0
    assert "log.jsonl: 3 lines cannot be read and are left out" in capsys.readouterr().err


def test_line_that_a_kill_cut_off_does_not_spoil_the_first_one_of_a_resumed_run(run):
    observed(run)
    before = len(log.read(run))
    with (run / log.FILE).open("a") as file:
        file.write('{"time": "2026-11-27T06:45:13.1')
    observed(run)
    found, bad = log.arrived(run)
    assert (len(found), bad) == (2 * before, 0)


def full(monkeypatch):
    """Let no file take a line."""

    def refuse(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedray.observe.lines.append_whole", refuse)


def test_full_disk_loses_lines_which_the_next_one_counts(run, monkeypatch):
    with Observer(run, 4, beats=False) as observer:
        with monkeypatch.context() as patched:
            full(patched)
            logging.getLogger("fedray.runtime.loop").info("lost")
            observer.log.failures(sample_run.round_record(0, [sample_run.failure()]))
        observer.log.say("there is room again")
    told = [line["message"] for line in log.read(run)]
    assert told == ["lines before this one found no room: 2", "there is room again"]


def failing_on_a_full_disk(observer, monkeypatch):
    full(monkeypatch)
    observer.start(sample_run.plan(), {"sites": 60})
    seen = Observed(spans=(Span("pack1", "compute", 1.0, 2.0, 0, 1, ("h017",)),))
    observer.round(sample_run.round_record(0, observed=seen))
    raise DataError("site h01 has no column y")


def test_full_disk_does_not_hide_how_a_run_ended_and_is_said(run, monkeypatch, caplog):
    with pytest.raises(DataError, match="no column y"), Observer(run, 4, beats=False) as observer:
        failing_on_a_full_disk(observer, monkeypatch)
    assert "4 lines of" in caplog.text and "timeline.jsonl are not on the disk" in caplog.text
    assert "log.jsonl found no room: the disk is full" in caplog.text


def test_run_on_a_full_disk_goes_on(tmp_path):
    with small_disk(tmp_path / "disk", 64) as folder:
        fill(folder)
        with Observer(folder, 200, beats=False) as observer:
            observer.start(sample_run.plan(), {"sites": 60})
            for number in range(200):
                spans = (Span("pack1", "compute", 1.0, 2.0, number, 1, ("h017",)),)
                observer.round(sample_run.round_record(number, observed=Observed(spans=spans)))
        assert observer.facts["done"] == 200
        assert [path.name for path in folder.iterdir() if path.suffix == ".part"] == []
