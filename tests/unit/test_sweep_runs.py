"""Whole sweeps in this process: one data load, results of single runs, what is left, Hydra's own -m."""

import json
import pickle
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fedray import cli, config, experiment, track
from fedray.config import compose_run
from fedray.data.site import Dataset, SiteData
from fedray.learn import together
from fedray.learn.together import train_together as train
from fedray.sweep.job import Jobs
from fedray.sweep.kept import Kept, KeptSite, data_key
from fedray.sweep.space import grid
from fedray.sweep.together import run_together
from fedray.sweep.trials import Book
from tests.cluster import sweep_data

TOY = ("experiment=debug", "report=none", "evaluate.bins=50", "rounds=1")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@dataclass(frozen=True)
class Doubled:
    factor: int

    def __call__(self, data):
        return data.with_columns(y=data["y"] * self.factor)


def interrupted():
    raise KeyboardInterrupt


def counted(*more):
    own = "data._target_=tests.cluster.sweep_data.hospitals"
    return [*TOY, "--allow", "tests", own, "+data.log=opened", *more]


def openings():
    return [line.split()[1] for line in Path("opened").read_text().splitlines()]


def only_sweep():
    (folder,) = Path("runs").glob("*-sweep-debug")
    return folder


def test_trials_of_a_sweep_open_each_site_once_and_give_the_bits_of_single_runs():
    assert cli.main(["sweep", "--apart", *counted("local.lr=0.1,0.3")]) == 0
    assert len(openings()) == len(set(openings())) == 4
    for line in Book(only_sweep() / "trials.jsonl").lines().values():
        alone = experiment.start(compose_run(line.overrides, allow=["tests"]), live=False)
        swept = json.loads((only_sweep() / line.run / "result.json").read_text())
        assert swept["params_sha256"] == alone.result.params_sha256 and line.metrics == alone.metrics


def test_trials_of_a_sweep_that_train_together_come_to_what_they_come_to_alone():
    assert cli.main(["sweep", *counted("local.lr=0.1,0.3", "seed=0,1")]) == 0
    assert len(openings()) == len(set(openings())) == 4
    lines = Book(only_sweep() / "trials.jsonl").lines().values()
    names = {f"local.lr={lr},seed={seed}" for lr in (0.1, 0.3) for seed in (0, 1)}
    assert {line.run for line in lines} == names
    for line in lines:
        alone = experiment.start(compose_run(line.overrides, allow=["tests"]), live=False)
        assert line.metrics["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-5)


def test_trials_on_other_data_follow_each_other_so_that_each_set_is_opened_once():
    assert cli.main(["sweep", *counted("seed=0,1", "data.seed=7,8")]) == 0
    assert len(openings()) == 8


def test_standardising_a_kept_data_set_twice_does_not_standardise_it_again():
    words = [*TOY, "data.prepared=false", "data.standardise=true"]
    assert cli.main(["sweep", "--apart", *words, "local.lr=0.1,0.3"]) == 0
    swept = json.loads((only_sweep() / "local.lr=0.3" / "result.json").read_text())["params_sha256"]
    alone = experiment.start(compose_run([*words, "local.lr=0.3"]), live=False)
    assert swept == alone.result.params_sha256


def test_trials_on_columns_of_one_scale_read_the_same_rows_and_train_as_one_program(monkeypatch):
    programs = []
    watched = lambda asked, cache: programs.append(len(asked)) or train(asked, cache)  # noqa: E731
    monkeypatch.setattr(together, "train_together", watched)
    words = [*TOY, "data.prepared=false", "data.standardise=true"]
    assert cli.main(["sweep", *words, "local.lr=0.1,0.3"]) == 0
    assert 2 in programs  # those of the rehearsal are on made-up rows, of each trial alone


def test_a_transform_is_computed_once_for_all_trials_and_another_one_anew():
    kept, data = Kept(), SiteData({"y": torch.zeros(3)})
    kept(config.to_plain(config.compose(*TOY, "runtime=in_process")), lambda: Dataset({"a": int}))
    first, again, other = (kept.shared(transform) for transform in (Doubled(2), Doubled(2), Doubled(3)))
    assert first(data) is again(data) and other(data) is not first(data)


def test_what_the_open_data_answer_is_asked_once_and_anew_of_other_data_or_of_a_cluster():
    asked, made = [], Dataset({"a": SiteData({"y": torch.zeros(2)}, {})}, name="one")
    trees = [
        {"runtime": {"kind": kind}, "data": {"seed": seed}, "allow": [], "algorithm": {}}
        for kind, seed in (("in_process", 0), ("in_process", 0), ("in_process", 1), ("cluster", 1),
                           ("cluster", 1))
    ]
    kept, learnt = Kept(), []
    for tree in trees:
        kept(tree, lambda: made)
        kept.once("rows", lambda: asked.append(1))
        learnt.append(kept.learnt)
    assert len(asked) == 4
    assert learnt[0] is learnt[1] and learnt[1] is not learnt[2]


def test_trial_that_is_interrupted_ends_without_a_traceback(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    chosen = grid(["seed=0,1"])
    configs = [{"seed": 0}, {"seed": 1}]
    lines = list(run_together(chosen, configs, Book(tmp_path / "trials.jsonl"), lambda trial: interrupted))
    assert [line.status for line in lines] == ["failed", "failed"] and not told


def test_kept_site_tells_what_its_opener_tells_and_is_pickled_closed():
    opener = sweep_data.Counted(lambda: 1, "a", "opened")
    site = KeptSite(sweep_data.Counted(int, "a", "opened"))
    assert site.site == opener.site and site() == 0 and site() == 0
    copy = pickle.loads(pickle.dumps(site))
    assert copy() == 0 and openings() == ["a", "a"]
    with pytest.raises(AttributeError):
        _ = site.contract


def test_data_of_a_cluster_is_left_where_it_is():
    tree = config.to_plain(config.compose(*TOY))
    data = Dataset({"a": int})
    tree["runtime"]["kind"] = "cluster"
    assert Kept()(tree, lambda: data) is data


def test_key_of_the_data_covers_what_the_data_depends_on():
    trees = [config.to_plain(config.compose(*TOY, *words)) for words in
             ((), ("local.lr=1",), ("data.seed=8",), ("algorithm=pooled",), ("data.standardise=true",))]
    keys = [data_key(tree) for tree in trees]
    assert keys[0] == keys[1] == keys[4] and len(set(keys)) == 3


def test_trial_whose_parts_cannot_be_made_costs_itself_alone(capsys):
    words = counted("model._target_=tests.cluster.sweep_data.logistic", "+model.fault=raise,none")
    assert cli.main(["sweep", *words]) == 1
    folder = only_sweep()
    assert [line.status for line in Book(folder / "trials.jsonl").lines().values()] == ["failed", "done"]
    assert "again with: fedray sweep --resume" in capsys.readouterr().err


def test_failure_in_training_does_not_end_the_sweep(monkeypatch):
    calls = []

    class Full:
        def __getattr__(self, name):
            calls.append(name)
            if len(calls) == 1:
                raise OSError("no space left")
            return lambda *_: None
    monkeypatch.setattr(track, "jsonl", lambda *_, **__: Full())
    assert cli.main(["sweep", *TOY, "seed=0,1"]) == 1
    first, second = Book(only_sweep() / "trials.jsonl").lines().values()
    assert (first.status, second.status) == ("failed", "done") and first.error.startswith("OSError at ")


def test_sweep_that_was_cut_short_goes_on_with_what_is_missing():
    assert cli.main(["sweep", "--apart", *TOY, "seed=0,1,2"]) == 0
    folder = only_sweep()
    text = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text(text[0] + text[1][:40])  # killed while it wrote
    assert cli.main(["sweep", "--apart", "--resume", str(folder)]) == 0
    lines = list(Book(folder / "trials.jsonl").lines().values())
    assert [line.run for line in lines] == ["seed=0", "seed=1~2", "seed=2~2"]
    assert json.loads((folder / "summary.json").read_text())["configurations"][0]["done"] == 3


def test_directory_of_an_attempt_is_not_mistaken_for_one_with_a_longer_name(tmp_path):
    (tmp_path / "seed=10").mkdir()
    trials = grid([*TOY, "seed=1,10"])
    jobs = Jobs(tmp_path, {trial.id: compose_run(trial.overrides) for trial in trials})
    assert [jobs.order(trial).composed.run_dir.name for trial in trials] == ["seed=1", "seed=10~2"]


def test_random_sweep_runs_its_draws_under_every_seed():
    assert cli.main(["sweep", *TOY, "--random", "2", "local.lr=tag(log, interval(0.01,1))", "seed=0,1"]) == 0
    told = json.loads((only_sweep() / "summary.json").read_text())["configurations"]
    assert [row["seeds"] for row in told] == [["0", "1"]] * 2 and all(row["done"] == 2 for row in told)


def test_hydras_multirun_trains_each_job_in_an_absolute_directory(capsys):
    own = ["hydra.sweep.dir=mine", "hydra/launcher=basic"]
    assert cli.main(["run", "-m", *TOY, "local.lr=0.1,0.3", *own]) == 0
    names = {path.name for path in Path("mine").iterdir()}
    assert {"local.lr=0.1", "local.lr=0.3", "multirun.yaml", "trials.jsonl", "summary.json"} <= names
    assert "0" not in names  # Hydra's own folders are not left behind, empty
    assert "[HYDRA] Launching 2 jobs locally" in capsys.readouterr().out
    assert f"dir: {Path('mine').resolve()}" in Path("mine/multirun.yaml").read_text()


def test_hydras_multirun_gives_the_bits_of_fedray_sweep_and_takes_its_subdir():
    words = [*TOY, "local.lr=0.1,0.3"]
    own = ["hydra.sweep.dir=mine", "hydra.sweep.subdir=job_${hydra.job.num}"]
    assert cli.main(["run", "-m", *words, *own]) == 0
    assert cli.main(["sweep", "--apart", *words]) == 0
    for number, name in enumerate(("local.lr=0.1", "local.lr=0.3")):
        one, other = (json.loads((path / "result.json").read_text())["params_sha256"]
                      for path in (Path(f"mine/job_{number}"), only_sweep() / name))
        assert one == other


def test_hydras_multirun_prints_json_alone_where_that_is_asked_for_and_gives_argv_back(capsys):
    before = list(sys.argv)
    assert cli.main(["run", "-m", *TOY, "seed=0,1", "--json"]) == 0
    assert [line["status"] for line in json.loads(capsys.readouterr().out)] == ["done", "done"]
    assert sys.argv == before
    assert {"seed=0", "seed=1"} <= {path.name for path in only_sweep().iterdir()}
    assert len((only_sweep() / "trials.jsonl").read_text().splitlines()) == 2


def test_hydras_multirun_goes_on_after_a_job_that_fails_and_can_be_resumed():
    words = counted("model._target_=tests.cluster.sweep_data.logistic", "+model.fault=raise,none")
    assert cli.main(["run", "-m", *words, "hydra.sweep.dir=mine"]) == 1
    lines = Book(Path("mine/trials.jsonl")).lines().values()
    assert [line.status for line in lines] == ["failed", "done"]
    assert cli.main(["sweep", "--allow", "tests", "--resume", "mine", "--retry-failed"]) == 1
    assert len(Path("mine/trials.jsonl").read_text().splitlines()) == 3
    assert cli.main(["run", "-m", *words, "hydra.sweep.dir=mine"]) == 2  # a sweep is there
