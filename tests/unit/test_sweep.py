"""Sweeps: which trials a command line means, what the book keeps, and what is run again."""

import json

import pytest

from fedray import cli
from fedray.errors import ConfigError, HostError
from fedray.sweep.space import grid, listed
from fedray.sweep.trials import Book, Trial, guarded, line_of, run_all


def test_grid_is_every_combination_the_last_axis_fastest():
    trials = grid(["rounds=3", "local.lr=0.1,0.3", "seed=range(2)"])
    assert [trial.varying for trial in trials] == [("local.lr=0.1", "seed=0"), ("local.lr=0.1", "seed=1"),
                                                   ("local.lr=0.3", "seed=0"), ("local.lr=0.3", "seed=1")]
    assert all(trial.overrides[0] == "rounds=3" for trial in trials)


def test_list_in_brackets_is_one_value():
    assert [trial.overrides for trial in grid(["model.hidden=[8,8]"])] == [("model.hidden=[8,8]",)]


def test_unreadable_words_and_intervals_are_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        grid(["nonsense", "local.lr=interval(0,1)", "seed=0,1"])
    assert len(caught.value.problems) == 2


def test_list_of_overrides_gives_a_trial_per_line():
    trials = listed(["# two trials", "", "seed=0 rounds=3", "seed=1"])
    assert [trial.overrides for trial in trials] == [("seed=0", "rounds=3"), ("seed=1",)]


def test_id_does_not_depend_on_the_order_of_overrides():
    assert Trial(("a=1", "b=2")).id == Trial(("b=2", "a=1")).id != Trial(("a=1", "b=3")).id


def test_name_is_readable_and_at_most_80_characters():
    long = Trial(tuple(f"model.setting{i}=some/value" for i in range(9)))
    assert Trial(("seed=1",)).name == "seed=1"
    assert len(long.name) == 80 and long.name.endswith(long.id) and "/" not in long.name


def test_book_gives_back_the_last_line_of_each_trial(tmp_path):
    book, trial = Book(tmp_path / "trials.jsonl"), Trial(("seed=0",))
    book.add(line_of(trial, 1.0, {"status": "failed", "error": "gone"}))
    book.add(line_of(trial, 2.0, {"status": "done", "metrics": {"auroc": 0.8}}))
    assert book.lines()[trial.id].metrics == {"auroc": 0.8}
    assert book.lines()[trial.id].overrides == ("seed=0",)


def test_sweep_goes_on_with_what_is_missing_and_retries_failures_when_asked(tmp_path):
    book, trials = Book(tmp_path / "trials.jsonl"), grid(["seed=0,1,2"])
    book.add(line_of(trials[0], 1.0, {"status": "done"}))
    book.add(line_of(trials[1], 1.0, {"status": "failed"}))
    assert book.missing(trials, retry_failed=False) == [trials[2]]
    assert book.missing(trials, retry_failed=True) == [trials[1], trials[2]]


def test_failed_trial_is_written_down_and_the_next_one_runs(tmp_path):
    def run(trial):
        if trial.overrides == ("seed=0",):
            raise HostError("a host is gone")
        return {"status": "done"}
    book = Book(tmp_path / "trials.jsonl")
    lines = list(run_all(grid(["seed=0,1"]), book, run))
    assert [line.status for line in lines] == ["failed", "done"]
    assert [line.error for line in book.lines().values()] == ["a host is gone", ""]


@pytest.mark.parametrize(("status", "fail_fast", "count"), [("failed", True, 1), ("failed", False, 3),
                                                            ("interrupted", False, 1)])
def test_interrupt_and_fail_fast_end_a_sweep(tmp_path, status, fail_fast, count):
    book = Book(tmp_path / "trials.jsonl")
    lines = run_all(grid(["seed=0,1,2"]), book, lambda trial: {"status": status}, fail_fast)
    assert len(list(lines)) == count


@pytest.mark.parametrize("words", [["sweep", "seed=0,1", "local.lr=-1,-2"], ["run", "-m", "seed=0,-1"],
                                   ["sweep", "sweep=nothing"], ["sweep", "--list", "missing.txt"],
                                   ["sweep", "--resume", "nowhere"], ["sweep", "hydra/launcher=joblib"],
                                   ["sweep", "--random", "3", "rounds=2"],
                                   ["sweep", "--jobs", "0", "seed=0,1"],
                                   ["sweep", "--random", "2", "--tune", "2", "seed=0,1"],
                                   ["sweep", "--resume", "runs", "seed=0,1"],
                                   ["sweep", "local.lr=0.1", "local.lr=0.1,0.2", "local.lr=0.3,0.4"],
                                   ["run", "-m", "hydra/launcher=joblib", "seed=0,1"],
                                   ["run", "-m", "hydra.sweeper.params.seed=0", "seed=0,1"]])
def test_bad_sweep_is_refused_before_anything_is_made(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    assert "fix: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_finished_sweep_runs_nothing_again(tmp_path, capsys):
    trials, book = grid(["seed=0,1"]), Book(tmp_path / "trials.jsonl")
    entries = [{"overrides": trial.overrides, "varying": trial.varying} for trial in trials]
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": entries}))
    for trial in trials:
        book.add(line_of(trial, 1.0, {"status": "done", "metrics": {"auroc": 0.8}}))
    assert cli.main(["sweep", "--resume", str(tmp_path), "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["seed=0", "seed=1"]


def test_error_of_other_code_costs_one_trial_and_tells_where_but_no_value():
    def fail(_):
        raise KeyError("ward 7")
    outcome = guarded(fail, None)
    assert outcome["status"] == "failed" and "ward" not in outcome["error"]
    assert outcome["error"].startswith("KeyError at test_sweep.py:")


def test_line_that_a_kill_cut_off_is_left_out_and_written_over(tmp_path):
    book, trials = Book(tmp_path / "trials.jsonl"), grid(["seed=0,1"])
    book.add(line_of(trials[0], 1.0, {"status": "done"}))
    with book.path.open("a") as file:
        file.write('{"trial": "cut o')
    assert book.missing(trials, retry_failed=False) == [trials[1]]
    book.add(line_of(trials[1], 1.0, {"status": "done"}))
    assert book.missing(trials, retry_failed=False) == [] and len(book.path.read_text().splitlines()) == 2


def test_book_has_one_writer_at_a_time(tmp_path):
    first, second = Book(tmp_path / "trials.jsonl"), Book(tmp_path / "trials.jsonl")
    with first.claim(), pytest.raises(ConfigError, match="another process"), second.claim():
        pass
    with second.claim():
        assert second.lines() == {}


def test_trial_that_was_stopped_early_is_not_run_again(tmp_path):
    book, trials = Book(tmp_path / "trials.jsonl"), grid(["seed=0"])
    book.add(line_of(trials[0], 1.0, {"status": "stopped"}))
    assert book.missing(trials, retry_failed=True) == []
