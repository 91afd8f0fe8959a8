"""`fedray run runtime=ray_cluster` whose driver is killed, then `fedray resume`: no round is lost."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.cluster import several_nodes
from tests.cluster.test_command import SLOW

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.slow]
ROUNDS, LIMIT_S = 12, 200.0
TOY = ("experiment=debug", "report=none", "data.scale=0.02", "evaluate.bins=50", f"rounds={ROUNDS}",
       "evaluate.every=2", "model._target_=slow.net")
ALLOW = ("--allow", "slow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "slow.py").write_text(SLOW)
    return folder


def environment(folder):
    known = several_nodes.environment()
    return {**known, "PYTHONPATH": os.pathsep.join([known["PYTHONPATH"], str(folder)])}


def fedray(folder, *words):
    return subprocess.Popen([sys.executable, "-m", "fedray", *words, *ALLOW], cwd=folder, text=True,
                            env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def done(process):
    out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, out
    return out


def rows(run, kind):
    return [json.loads(line)["round"] for line in (run / f"{kind}.jsonl").read_text().splitlines()]


def test_run_whose_driver_is_killed_is_resumed_from_its_aggregator(folder):
    done(fedray(folder, "run", *TOY, "runtime=in_process", "runs_dir=here"))
    with several_nodes.running(2, PYTHONPATH=environment(folder)["PYTHONPATH"]) as address:
        cluster = ("runtime=ray_cluster", f"runtime.address={address}", "runtime.packs=2")
        process = fedray(folder, "run", *TOY, *cluster, "checkpoint.every_s=1e6")
        for line in process.stdout:
            if line.startswith("round"):
                break
        os.kill(psutil.Process(process.pid).children()[0].pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 1 and "fedray resume" in out
        run = folder / "runs" / "latest"
        assert not list((run / "checkpoints").glob("server-*"))
        done(fedray(folder, "resume", "runs/latest"))
    wanted = folder / "here" / "latest"
    assert (run / "model.safetensors").read_bytes() == (wanted / "model.safetensors").read_bytes()
    for kind in ("rounds", "evaluations"):
        assert rows(run, kind) == rows(wanted, kind)
