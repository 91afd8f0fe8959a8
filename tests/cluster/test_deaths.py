"""Who dies on a cluster, by a real signal, and what the run comes to: the bits of an undisturbed one.

The cluster is a process of its own, and so is each driver. A kill is inside a site stage (after training,
before the answer); the driver says that it has happened. Packs, nodes, the head and links, and all the other
points of a round, are `experiments/chaos.py`'s: see test_chaos.py.
"""

import collections
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster import several_nodes
from tests.cluster.driving import INSIDE_S, PATIENCE_S, ROUNDS
from tests.equivalence import study

pytestmark = [pytest.mark.ray, pytest.mark.cluster]
LIMIT_S = 200.0  # of one run with its start; Ray alone takes five seconds of it, and more on a busy machine
ASKED = 18  # sites a round


@pytest.fixture(scope="module")
def address():
    with several_nodes.running(2) as address:
        yield address


def started(address, folder, run, **asked):
    words = [address, json.dumps({"run": run, "name": "scaffold", "folder": str(folder), **asked})]
    return several_nodes.driver(*words)


def told(process, limit_s=LIMIT_S):
    """Return what a driver has said, as one mapping of lists, and how it ended."""
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    found = collections.defaultdict(list)
    for line in out.splitlines():
        if line.startswith("{"):
            for name, value in json.loads(line).items():
                found[name].append(value)
    found["err"], found["code"] = err[-3000:], process.returncode
    return found


def expected(name="scaffold", rounds=ROUNDS):
    return study.train(name, rounds=rounds)


def trainings(folder):
    """Return how often each site was trained in each round; made-up ones are left out."""
    lines = [tuple(line.split()) for line in (Path(folder) / "trained").read_text().splitlines()]
    return collections.Counter(line for line in lines if line[1] in study.hospitals())


def has_ended(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def ledger(folder):
    entries = map(json.loads, (Path(folder) / "rounds-ledger.jsonl").read_text().splitlines())
    return [entry["round"] for entry in entries if "round" in entry]


def asked(address, *words):
    """Run `fedray cluster`; return what came of it."""
    command = [sys.executable, "-m", "fedray", "cluster", *words, "--address", address]
    return subprocess.run(command, text=True, timeout=LIMIT_S, env=several_nodes.environment(),
                          capture_output=True, check=False)  # fmt: skip


def cluster(address, *words):
    """Return what `fedray cluster` prints."""
    done = asked(address, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def leftovers(address):
    """Return the runs whose aggregator is there."""
    return json.loads(cluster(address, "runs", "--json").splitlines()[-1])


def test_aggregator_killed_is_rebuilt_by_its_driver_in_the_same_run(address, tmp_path):
    found = told(started(address, tmp_path, "rebuilt", kill="aggregator", inside=4))
    assert found["sha256"] == [expected().params_sha256], found["err"]
    assert found["killed"] == [found["pids"][0]["aggregator"]] != [found["pids"][1]["aggregator"]]
    assert found["round"] == list(range(ROUNDS)) == ledger(tmp_path)  # nothing is told or written twice
    assert found["server"] == [record.hashes["server"] for record in expected().metrics]
    assert leftovers(address) == {}


def test_driver_killed_is_followed_by_one_that_takes_what_it_had_not_seen(address, tmp_path):
    first = told(started(address, tmp_path, "followed", kill="driver", inside=4))
    assert first["code"] == -signal.SIGKILL and not list(tmp_path.glob("server-*"))
    second = told(started(address, tmp_path, "followed", resume=True, inside=4))
    assert second["sha256"] == [expected().params_sha256], second["err"]
    assert second["pids"][0]["aggregator"] == first["pids"][0]["aggregator"]
    assert second["pids"][0]["pack0"] == first["pids"][0]["pack0"]
    assert second["round"] == second["rounds"][0] == list(range(ROUNDS)) == ledger(tmp_path)
    assert set(trainings(tmp_path).values()) == {1}  # no round was run again
    assert leftovers(address) == {}


def test_second_driver_is_refused_by_the_name_of_the_first_and_what_is_left_can_be_ended(address, tmp_path):
    first = started(address, tmp_path, "contested", rounds=10**6)
    while not (tmp_path / "trained").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    second = told(started(address, tmp_path, "contested", resume=True))
    assert second["code"] == 1 and f"is driven by process {first.pid} on " in second["err"], second["err"]
    refused = asked(address, "stop", "contested")
    assert f"is driven by process {first.pid} on " in refused.stderr and "--force" in refused.stderr
    assert first.poll() is None
    first.kill()
    first.communicate()
    assert list(leftovers(address)) == ["contested"]
    assert "contested: driven by" in cluster(address, "runs")
    assert "checkpoints stay" in cluster(address, "stop", "contested", "--force")
    assert leftovers(address) == {}


def test_pack_that_stands_still_is_lost_after_the_patience_and_started_again(address, tmp_path):
    found = told(started(address, tmp_path, "still", kill="pack1", inside=4, signal=int(signal.SIGSTOP)))
    assert found["sha256"] == [expected().params_sha256], found["err"]
    assert PATIENCE_S < found["seconds"][0] < PATIENCE_S + 40
    stopped = found["killed"][0]
    assert found["pids"][1]["pack1"] != stopped
    limit = time.monotonic() + 30
    while not has_ended(stopped) and time.monotonic() < limit:
        time.sleep(0.1)
    assert has_ended(stopped)


@pytest.mark.slow
def test_site_that_hangs_while_its_process_lives_is_the_deadlines_business(address, tmp_path):
    schedule = {"deadline_s": INSIDE_S / 3, "quorum": 0.01, "on_failure": "skip"}
    found = told(started(address, tmp_path, "hangs", inside=4, schedule=schedule))
    assert len(found["sha256"]) == 1 and found["round"] == list(range(ROUNDS)), found["err"]
    assert found["pids"][0] == found["pids"][1]  # nobody was taken for dead
    assert found["counted"][4] < ASKED


@pytest.mark.slow
def test_nodes_that_stand_still_for_five_seconds_do_no_harm(address, tmp_path):
    process = started(address, tmp_path, "cut", inside=4)
    while not (tmp_path / "inside").exists():
        time.sleep(0.02)
    raylets = [each for each in psutil.process_iter() if each.name() == "raylet"]
    raylets = [each for each in raylets if f"--gcs-address={address}" in each.cmdline()]
    (raylet,) = [each for each in raylets if "--head" not in each.cmdline()]
    stopped = [raylet, *raylet.children(recursive=True)]
    for each in stopped:
        each.suspend()
    time.sleep(min(5.0, PATIENCE_S - 1))
    for each in stopped:
        each.resume()
    found = told(process)
    assert found["sha256"] == [expected().params_sha256], found["err"]
    assert found["pids"][0] == found["pids"][1]


@pytest.mark.slow
def test_secure_rounds_are_never_run_again(address, tmp_path):
    found = told(started(address, tmp_path, "masked", kill="aggregator", inside=4, secure=True))
    assert found["round"] == list(range(ROUNDS)), found["err"]
    entries = map(json.loads, (tmp_path / "rounds-ledger.jsonl").read_text().splitlines())
    attempts = {entry["round"]: entry["attempt"] for entry in entries if "round" in entry}
    assert attempts[4] > 0 and {attempts[number] for number in range(ROUNDS) if number != 4} == {0}
    assert leftovers(address) == {}


@pytest.mark.slow
def test_answer_that_is_lost_on_its_way_is_given_again_and_nobody_trains_twice(tmp_path):
    """Ray loses answers of calls that were executed, and says that they may or may not have been."""
    lost = {"CoreWorkerService.grpc_client.PushTask": {"num_failures": 6, "resp_failure_prob": 25}}
    chaos = {"RAY_testing_rpc_failure": json.dumps(lost)}
    with several_nodes.running(2, **chaos) as address:
        found = told(started(address, tmp_path, "unsure", patience_s=60.0))
    assert found["sha256"] == [expected().params_sha256], found["err"]
    assert found["asked_again"][0] > 0  # else nothing was lost, and nothing is shown
    assert set(trainings(tmp_path).values()) == {1} and found["pids"][0] == found["pids"][1]
