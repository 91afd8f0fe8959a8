"""Checkpoints in an object store: S3 on loopback, spoken to over real sockets, by processes that die."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedray as fr
from fedray.errors import CheckpointError, StorageError
from fedray.runtime import storage_objects
from fedray.runtime.answered import Answered
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.host import Contribution, StageCall
from fedray.runtime.storage import open_store
from tests.cluster import gcs
from tests.cluster.s3 import BUCKET, service
from tests.unit.passes.secure_cases import numbers
from tests.unit.runtime.test_round import stateful
from tests.unit.runtime.test_saving import Meanwhile, said, trained
from tests.unit.runtime.toy import ToyLocal, train

REPOSITORY = Path(__file__).resolve().parents[2]
ROUNDS, KILLED_AFTER = 200, 120
RUN = ("experiment=debug", "algorithm=scaffold", "report=none", "data.scale=0.02", "evaluate.bins=50",
       "evaluate.every=1000", f"rounds={ROUNDS}", "checkpoint.every_s=0.3")  # fmt: skip
PATIENCE_S = 250.0


@pytest.fixture(scope="module")
def s3():
    with service() as found:
        yield found


@pytest.fixture
def place(s3, monkeypatch, request):
    """Return an address of the test's own, which this process can reach."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3.door.open()
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').strip(']')}"


@pytest.fixture
def google(monkeypatch):
    """Return an address in a bucket of the other kind of store."""
    with gcs.service() as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        yield f"gs://{gcs.BUCKET}/run"


@pytest.fixture
def command():
    """Return how to start the command in a folder; what was started is gone when the test ends."""
    started = []

    def start(folder, *words):
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        started.append(subprocess.Popen([sys.executable, "-m", "fedray", *words], cwd=folder, text=True,
                                        env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE))  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finished(process):
    told, wrong = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, wrong[-2000:]
    return json.loads(told)


def lines_of(folder):
    return next((path.read_bytes().count(b"\n") for path in folder.glob("runs/2*/rounds.jsonl")), 0)


@pytest.mark.parametrize("kind", ["place", "google"])
def test_objects_are_files_by_name(kind, request):
    place = request.getfixturevalue(kind)
    store = open_store(place)
    assert store.names() == []
    store.write("a", b"1")
    store.write("b", bytes(6_000_000))
    store.write("a", b"2")
    open_store(f"{place}/deeper").write("c", b"3")
    assert store.names() == ["a", "b"] and store.read("a") == b"2" and len(store.read("b")) == 6_000_000
    store.remove("a")
    store.remove("a")
    with pytest.raises(FileNotFoundError):
        store.read("a")


def test_lines_come_back_in_order_and_many_are_put_together(place, s3):
    store = open_store(place)
    for number in range(70):
        store.append("journal", str(number).encode())
    again = open_store(place)
    assert again.lines("journal") == [str(number).encode() for number in range(70)]
    assert again.names() == ["journal"]
    again.append("journal", b"last")
    assert open_store(place).lines("journal")[-2:] == [b"69", b"last"]


def test_what_is_wrong_with_a_store_is_said_with_its_fix(place, s3):
    with pytest.raises(StorageError, match="nobodys/x/a cannot be written.*Fix: make the bucket"):
        open_store("s3://nobodys/x").write("a", b"1")
    s3.door.shut()
    started = time.monotonic()
    with pytest.raises(StorageError, match="cannot be written .*Fix: see that the service can be reached"):
        open_store(place).write("a", b"1")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("kind", ["place", "google"])
def test_run_goes_on_from_the_store_with_equal_bits_in_another_layout(kind, request):
    place = request.getfixturevalue(kind)
    whole = train(stateful(ToyLocal()), rounds=6)
    kept = Checkpoints(place, every_s=0.0)
    train(stateful(ToyLocal()), rounds=4, checkpoint=kept, packs=2)
    assert kept.rounds() == [2, 3]
    resumed = train(stateful(ToyLocal()), rounds=6, checkpoint=Checkpoints(place), resume=True, packs=3)
    assert resumed.metrics[0].round == 4 and resumed.params_sha256 == whole.params_sha256


@pytest.mark.parametrize("name", ["server-3.json", "server-3.safetensors", "sites-3-pack0.json",
                                  "sites-3-pack1.safetensors"])  # fmt: skip
def test_damaged_object_is_named_and_the_checkpoint_before_is_used(place, s3, caplog, name):
    whole = train(stateful(ToyLocal()), rounds=6)
    train(stateful(ToyLocal()), rounds=4, checkpoint=Checkpoints(place, every_s=0.0), packs=2)
    key = f"{place.partition(f'{BUCKET}/')[2]}/{name}"
    body = s3.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
    s3.client().put_object(Bucket=BUCKET, Key=key, Body=body[: len(body) // 2])
    resumed = train(stateful(ToyLocal()), rounds=6, checkpoint=Checkpoints(place), resume=True)
    assert resumed.metrics[0].round == 3 and resumed.params_sha256 == whole.params_sha256
    assert f"round 3 is damaged: {name} in {place}" in caplog.text


def test_store_that_is_away_for_a_while_does_not_end_a_run(place, s3, caplog):
    whole = train(stateful(ToyLocal()), rounds=8)
    kept = Checkpoints(place, every_s=0.0)
    result = trained(kept, tracker=Meanwhile(round_2=s3.door.shut, round_4=s3.door.open))
    assert result.params_sha256 == whole.params_sha256 and kept.rounds()[-1] == 7
    lines = said(caplog)
    assert len(lines) == 2 and "no checkpoint of round 2" in lines[0] and "written again" in lines[1]
    assert "The last good one is of round 1" in lines[0]


def test_store_that_does_not_answer_is_given_up_and_ends_no_run(place, s3, caplog, monkeypatch):
    monkeypatch.setattr(storage_objects, "REQUEST_S", 1.0)
    monkeypatch.setattr(storage_objects, "TRIES", 1)
    whole = train(stateful(ToyLocal()), rounds=8)
    kept = Checkpoints(place, every_s=0.0)
    with contextlib.ExitStack() as stack:
        sleeps = Meanwhile(round_1=lambda: stack.enter_context(s3.asleep()), round_2=stack.close)
        result = trained(kept, tracker=sleeps)
    assert result.params_sha256 == whole.params_sha256 and kept.rounds() == [0, 7]
    lines = said(caplog)
    assert len(lines) == 2 and "no checkpoint of round 1" in lines[0] and "written again" in lines[1]


def test_round_that_is_drawn_once_does_not_go_on_without_the_store(place, s3):
    masked = [fr.passes.secure_sum("real")]
    kept = Checkpoints(place, every_s=1e9, patience_s=0.1)
    with pytest.raises(CheckpointError, match="round 1 .*drawn once.*last good one is of round 0"):
        trained(kept, numbers(), Meanwhile(round_1=s3.door.shut), init={}, passes=masked)
    s3.door.open()
    assert kept.rounds() == [0]


def test_journal_of_answers_is_known_to_a_host_on_another_machine(place):
    call = StageCall(run="run", plan="plan", seed=0, round=0, attempt=0, stage=1, cohort=("h1", "h2"))
    Answered(place, "pack0", {}).record(call, Contribution(delivered=("h1", "h2"), failures=()), ())
    again = Answered(place, "pack0", {})
    assert again.again(call) == ["h1", "h2"] and Answered(place, "pack1", {}).again(call) == []


@pytest.mark.slow
def test_run_killed_after_many_rounds_goes_on_from_its_address_alone(place, s3, tmp_path, command):
    """SCAFFOLD, whose sites keep state; the folder of the first run is gone."""
    here, there, whole = (tmp_path / name for name in ("here", "there", "whole"))
    for folder in (here, there, whole):
        folder.mkdir()
    undisturbed = command(whole, "run", "--json", *RUN)
    killed = command(here, "run", "--json", *RUN, f"checkpoint.storage={place}")
    while lines_of(here) < KILLED_AFTER:
        assert killed.poll() is None, killed.communicate()[1][-2000:]
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    (run,) = {key.split("/")[1] for key in s3.keys(place.partition(f"{BUCKET}/")[2])}
    shutil.rmtree(here)
    resumed = finished(command(there, "resume", f"{place}/{run}", "--json"))
    expected = finished(undisturbed)
    assert resumed["params_sha256"] == expected["params_sha256"] and resumed["rounds"] == ROUNDS
    folder = there / "runs" / run
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(ROUNDS))
    assert open_store(f"{place}/{run}").read("STATUS") == b"done\n"
