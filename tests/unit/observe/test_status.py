"""status.json and `fedray status`: a run that goes on, one that is over, and one whose process is gone."""

import json
import os
import subprocess
import sys
import time

import pytest

from fedray import cli
from fedray.observe import status
from fedray.observe.observer import Observer
from tests.unit import sample_run

NOW = {"time": 0.0, "doing": "round", "round": 4, "since": 0.0, "stage": 1, "asked": 60, "answered": 45}


def running(run, **changes):
    """Write what a run of this very process would have written; changes are of status.json."""
    (run / "STATUS").write_text("running\n")
    now = {**NOW, "since": time.time() - 12, "hosts": [
        {"host": "pack0", "doing": "", "sites": 45, "since": None, "seen": time.time() - 2},
        {"host": "pack1", "doing": "run", "sites": 15, "since": time.time() - 12, "seen": time.time() - 13}]}
    observer = Observer(run, 10, lambda: now, beats=False)
    with observer:
        observer.start(sample_run.plan(), {"sites": 60, "where": "ray", "first_round": 0})
        for number in range(4):
            failures = [sample_run.failure(kind="late"), sample_run.failure(kind="ValueError")]
            observer.round(sample_run.round_record(number, failures if number == 3 else ()))
        observer.saved(2)
        observer.write()
        told = json.loads((run / status.FILE).read_text())
    (run / status.FILE).write_text(json.dumps(told | changes))


def shown(capsys, *words):
    assert cli.main(["status", *words]) == 0
    return capsys.readouterr().out


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_running_run_says_where_it_is_who_is_late_and_how_long_it_takes(run, capsys):
    running(run)
    text = shown(capsys)
    assert text.splitlines()[:3] == [
        "runs/latest: running", "  4 of 10 rounds done",
        "  in round 5 for 0:12, stage 1: 45 of 60 sites have answered"]  # fmt: skip
    for part in ("58 of 60 sites counted, 1 late, 1 x ValueError", "hosts: 2, 1 of them heard of in the last",
                 "pack1: 0:13 ago, run for 0:12", "pack0: 2.", "sent 1.6 MB up, 800.0 kB down",
                 "checkpoint after round 3, 0.", "about 4.9 s left, at 0.8",
                 "last error: ", "h017 ValueError at train.py:12"):  # fmt: skip
        assert part in text
    assert "fedray resume" not in text


def test_crashed_run_says_that_its_process_is_gone_and_how_to_go_on(run, capsys):
    running(run, pid=ended_process())
    text = shown(capsys)
    assert "crashed: its process (" in text and "go on with: fedray resume runs/latest" in text
    assert "in round 5" not in text and "left, at" not in text


def test_other_process_with_the_number_of_a_crashed_one_is_not_taken_for_it(run, capsys):
    running(run, started="12345")
    assert json.loads(shown(capsys, "--json"))["state"] == "crashed"


@pytest.mark.parametrize(("age_s", "state"), [(2.0, "running"), (120.0, "silent")])
def test_run_on_another_machine_is_told_by_its_heartbeat(run, capsys, age_s, state):
    running(run, machine="elsewhere", pid=1, heartbeat=time.time() - age_s)
    assert json.loads(shown(capsys, "--json"))["state"] == state


@pytest.mark.parametrize("state", ["done", "failed", "interrupted"])
def test_run_that_is_over_says_how_it_ended(run, capsys, state):
    running(run)
    (run / "STATUS").write_text(f"{state}\nfor a reason\n")
    text = shown(capsys)
    assert text.startswith(f"runs/latest: {state}: for a reason\n")
    assert ("go on with: fedray resume" in text) == (state != "done")


def test_json_has_ages_and_all_hosts(run, capsys):
    running(run)
    found = json.loads(shown(capsys, "latest", "--json"))
    assert [host["host"] for host in found["hosts"]] == ["pack0", "pack1"]
    assert found["hosts"][1]["seen_age_s"] == pytest.approx(13, abs=1)
    assert 0 <= found["checkpoint"]["age_s"] < 5 and found["left_s"] == pytest.approx(6 * 0.815)


def test_run_that_has_not_begun_is_running(run, capsys):
    (run / "STATUS").write_text("running\n")
    assert shown(capsys) == "runs/latest: running\n"


def test_heartbeat_is_written_once_a_second_while_nothing_else_happens(run):
    with Observer(run, 10, lambda: NOW | {"hosts": []}):
        first = json.loads((run / status.FILE).read_text())
        limit = time.monotonic() + 10
        while (now := json.loads((run / status.FILE).read_text())) == first and time.monotonic() < limit:
            time.sleep(0.02)
    assert 0.9 < now["heartbeat"] - first["heartbeat"] < 5
    assert now["pid"] == os.getpid() and status.is_alive(now["pid"], now["started"])


def test_unknown_run_is_named(run, capsys):
    assert cli.main(["status", "runs/nothing"]) == 2
    assert "there is no run of this name" in capsys.readouterr().err


def test_status_and_logs_load_neither_torch_nor_ray(run):
    running(run)
    code = ("import sys; from fedray.cli import main; code = main(['status']) or main(['logs']); "
            "assert not {'torch', 'ray', 'pandas'} & set(sys.modules), 'heavy'; sys.exit(code)")
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("age_s", "state"), [(1.0, "running"), (90.0, "silent: no heartbeat for 1:30")])
def test_status_that_cannot_be_read_is_named_with_what_is_known_otherwise(run, capsys, age_s, state):
    running(run)
    (run / status.FILE).write_text('{"format": 1, "pid"')
    os.utime(run / status.FILE, (time.time() - age_s,) * 2)
    (run / "rounds.jsonl").write_text('{"round": 0}\n{"round": 1}\n{"rou')
    lines = shown(capsys).splitlines()
    assert lines[0] == f"runs/latest: {state}" and lines[2] == "  2 rounds done"
    assert "status.json cannot be read" in lines[1]


def test_status_that_a_full_disk_keeps_old_says_so(run, capsys):
    running(run, heartbeat=time.time() - 300)
    assert "told 5:00 ago; a full disk takes nothing newer" in shown(capsys)


@pytest.mark.parametrize("before", ["interrupted", "failed", "crashed"])
def test_run_that_is_being_resumed_says_so_until_it_begins(run, capsys, before):
    running(run, **({"pid": ended_process()} if before == "crashed" else {}))
    (run / "STATUS").write_text("running\n" if before == "crashed" else f"{before}\nfor a reason\n")
    with status.resuming(run):
        text = shown(capsys)
        (run / "STATUS").write_text("running\n")
        with Observer(run, 10, beats=False):
            assert shown(capsys).splitlines()[0] == "runs/latest: running"
    assert text.splitlines()[0] == f"runs/latest: resuming (it was {before}): its first round has not begun"
    assert "go on with" not in text


def test_resuming_that_is_refused_or_killed_leaves_the_state_as_it_was(run, capsys):
    running(run)
    (run / "STATUS").write_text("interrupted\n")
    with pytest.raises(ValueError, match="refused"), status.resuming(run):
        raise ValueError("refused")
    assert shown(capsys).splitlines()[0] == "runs/latest: interrupted"
    status.write(run / status.RESUMING, {"pid": ended_process(), "started": "1", "time": time.time(),
                                         "machine": status.machine()})  # fmt: skip
    assert shown(capsys).splitlines()[0] == "runs/latest: interrupted"
