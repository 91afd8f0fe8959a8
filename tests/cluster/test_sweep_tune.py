"""Tuned sweeps on Ray: Optuna proposes, ASHA stops the poor ones, the book says what came of each."""

import json
import signal
from collections import Counter
from pathlib import Path

import pytest

from fedray import cli
from fedray.sweep.trials import Book
from tests.conftest import actors_alive

pytest.importorskip("optuna", reason="the extra `tune` is not installed")
pytest.importorskip("tensorboardX", reason="the extra `tune` is not installed")

OWN = ("--allow", "tests")
WORDS = ("experiment=debug", "report=none", "evaluate.bins=50", "rounds=9",
         "data._target_=tests.cluster.sweep_data.hospitals",
         "model._target_=tests.cluster.sweep_data.logistic")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch, ray_session):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)
    yield
    # Tune's handler, left behind, would swallow the next Ctrl-C
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR1)) == before


def book_of(folder):
    return list(Book(folder / "trials.jsonl").lines().values())


def test_tuned_sweep_stops_the_poor_writes_one_book_and_goes_on_from_it(tmp_path):
    log = tmp_path / "opened"
    words = [*WORDS, f"+data.log={log}", "local.lr=tag(log, interval(1e-6,1))"]
    assert cli.main(["sweep", *OWN, "--tune", "8", "--metric", "loss", "--jobs", "2", *words]) == 0
    (folder,) = Path("runs").glob("*-sweep-debug")
    lines = book_of(folder)
    assert len(lines) == 8 and {line.status for line in lines} == {"done", "stopped"}
    assert set(Counter(log.read_text().splitlines()).values()) == {1}  # one data load for all trials
    for line in lines:
        splits = [json.loads(text)["split"] for text in (folder / line.run / "evaluations.jsonl").open()]
        assert splits.count("test") == (line.status == "done")  # who is stopped has read no test row
        state = (folder / line.run / "STATUS").read_text()
        assert state.startswith("done" if line.status == "done" else "interrupted\nstopped early after round")
    ended = [line.valid["loss"] for line in lines if line.status == "done"]
    assert min(ended) == min(line.valid["loss"] for line in lines)
    told = json.loads((folder / "summary.json").read_text())
    assert (told["metric"], told["mode"]) == ("loss", "min") and told["best"] is not None
    cut = "".join((folder / "trials.jsonl").read_text().splitlines(keepends=True)[:6])
    (folder / "trials.jsonl").write_text(cut)
    assert cli.main(["sweep", *OWN, "--resume", str(folder)]) == 0
    again = book_of(folder)
    assert [line.trial for line in again[:6]] == [line.trial for line in lines[:6]] and len(again) == 8
    assert not actors_alive(20.0)


def test_failed_trials_cost_themselves_alone_and_say_why(tmp_path, capfd):
    faults = f"+model.fault=choice(none,raise,'kill:{tmp_path}/killed')"
    words = [*WORDS, f"+data.log={tmp_path}/opened", faults]
    assert cli.main(["sweep", *OWN, "--tune", "12", *words]) == 1
    (folder,) = Path("runs").glob("*-sweep-debug")
    lines = Book(folder / "trials.jsonl").all()
    assert len(lines) == 12 and {line.status for line in lines} >= {"done", "failed"}
    errors = {line.error.partition(" Fix")[0] for line in lines if line.status == "failed"}
    (raised,) = [error for error in errors if "ZeroDivisionError" in error]
    assert errors == {raised, "the process of the trial ended before it did"}
    assert "Traceback" not in capfd.readouterr().err


def test_metric_that_is_not_there_fails_the_trial_and_names_those_that_are(tmp_path):
    words = [*WORDS, f"+data.log={tmp_path}/opened", "++data.standardise=true", "local.lr=interval(0.1,1)"]
    assert cli.main(["sweep", *OWN, "--tune", "1", "--metric", "beauty", *words]) == 1
    (folder,) = Path("runs").glob("*-sweep-debug")
    (line,) = book_of(folder)
    assert line.status == "failed" and "validation rows give" in line.error and "auroc" in line.error
