"""Sweeps on Ray: workers keep data, a killed worker costs one trial, results equal those of single runs."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import ray

from fedray import cli, experiment
from fedray.config import compose_run
from fedray.sweep.kept import end_keepers, from_keepers, start_keepers
from fedray.sweep.trials import Book
from tests.cluster import sweep_data
from tests.conftest import actors_alive, are_gone

OWN = ("--allow", "tests")
TRIALS = ("experiment=debug", "report=none", "evaluate.bins=50",
          "model._target_=tests.cluster.sweep_data.logistic")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch, ray_session):
    monkeypatch.chdir(tmp_path)


def words(log, *more):
    own = "data._target_=tests.cluster.sweep_data.hospitals"
    return [*TRIALS, own, f"+data.log={log}", *more]


def sweep(*more):
    code = cli.main(["sweep", *OWN, *more])
    folder = max(Path("runs").glob("*-sweep-debug"))
    return code, folder, Book(folder / "trials.jsonl").lines().values()


def openings(log):
    return Counter(Path(log).read_text().splitlines())


def pids_of_openings(log):
    return [int(line.split()[0]) for line in Path(log).read_text().splitlines()]


def test_workers_open_each_site_once_and_give_the_bits_of_single_runs(tmp_path):
    log = tmp_path / "opened"
    code, folder, lines = sweep(*words(log, "local.lr=0.1,0.3", "seed=range(3)"), "--jobs", "2")
    assert code == 0 and len(lines) == 6
    assert set(openings(log).values()) == {1}  # once in each process that opened it
    assert len({line.split()[0] for line in openings(log)}) <= 2
    for line in lines:
        alone = experiment.start(compose_run(line.overrides, allow=["tests"]), live=False)
        swept = json.loads((folder / line.run / "result.json").read_text())
        assert swept["params_sha256"] == alone.result.params_sha256
    assert not actors_alive(20.0)


def test_killed_worker_and_raising_trial_cost_themselves_alone_and_can_be_run_again(tmp_path):
    faults = f"+model.fault=raise,'kill:{tmp_path}/killed',none"
    code, folder, lines = sweep(*words(tmp_path / "opened", faults), "--jobs", "2")
    raised, killed, sound = sorted(lines, key=lambda line: faults.find(line.overrides[-1].partition("=")[2]))
    assert code == 1 and [raised.status, killed.status, sound.status] == ["failed", "failed", "done"]
    assert "ZeroDivisionError" in raised.error
    what, kind = killed.error.rstrip(")").split(" (")
    assert what == "the process of the trial ended before it did"
    assert kind in ("ActorDiedError", "ActorUnavailableError")  # the second where Ray hears of the death late
    assert (folder / killed.run / "STATUS").read_text() == f"failed\n{killed.error}\n"
    assert cli.main(["sweep", *OWN, "--resume", str(folder), "--retry-failed", "--jobs", "2"]) == 1
    again = Book(folder / "trials.jsonl").lines()
    assert [again[line.trial].status for line in (raised, killed, sound)] == ["failed", "done", "done"]
    assert again[killed.trial].run == f"{killed.run}~2" and again[sound.trial].run == sound.run


def test_fail_fast_starts_no_further_trial(tmp_path):
    code, _, lines = sweep(*words(tmp_path / "opened", "+model.fault=raise", "seed=range(6)"), "--jobs", "2",
                           "--fail-fast")
    assert code == 1 and 1 <= len(lines) <= 2  # the second one was running already


def test_multirun_on_ray_actors_uses_one_ray_and_opens_each_site_once(tmp_path):
    before = ray.get_runtime_context().get_job_id()
    log = tmp_path / "opened"
    line = words(log, "local.lr=0.1,0.3", "runtime=ray_local", "runtime.packs=1", "hydra.sweep.dir=mine")
    assert cli.main(["run", "-m", *OWN, *line]) == 0
    assert ray.get_runtime_context().get_job_id() == before
    assert set(openings(log).values()) == {1} and len(openings(log)) == 4
    assert not actors_alive(20.0)
    assert {"local.lr=0.1", "local.lr=0.3", "multirun.yaml"} <= {path.name for path in Path("mine").iterdir()}


def test_site_whose_keeper_is_gone_is_opened_where_it_is_needed(tmp_path):
    data = sweep_data.hospitals(str(tmp_path / "opened"))
    keepers = start_keepers(data)
    kept = from_keepers(data, keepers)
    site = next(iter(kept))
    kept[site]()
    (keeper,) = pids_of_openings(tmp_path / "opened")
    end_keepers(keepers)
    assert keeper != os.getpid() and are_gone([keeper])  # it answers until it is
    assert kept[site]().num_rows == data[site]().num_rows
    assert pids_of_openings(tmp_path / "opened") == [keeper, os.getpid(), os.getpid()]
