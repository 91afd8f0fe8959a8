"""Faults on purpose: a schedule of each kind on a real cluster, and a minute and a half of random ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.faults.endless import LEAST_FAULTS
from experiments.testbed import why_not
from experiments.testbed.hosts import program

ROOT = Path(__file__).resolve().parents[2]
LEAST_KINDS = 12
LIMIT_S = 900.0
pytestmark = [
    pytest.mark.cluster, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(LIMIT_S + 60),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.skipif(not program("redis-server"), reason="needs redis-server"),
]  # fmt: skip


def chaos(folder, *words):
    """Return what the command told, and what it printed."""
    command = [sys.executable, "-m", "experiments.chaos", *words, "--out", str(folder / "told.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (folder / "told.json").exists(), done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "told.json").read_text()), done.stdout[-6000:] + done.stderr[-2000:]


def test_one_fault_of_each_kind_breaks_no_invariant(tmp_path):
    told, said = chaos(tmp_path, "--each")
    assert told["failed"] == 0, said
    assert len(told["kinds"]) >= LEAST_KINDS and told["counted"] >= LEAST_KINDS, said


def test_random_faults_leave_the_right_bits_and_no_leak(tmp_path):
    told, said = chaos(tmp_path, "--hours", "0.025")
    assert told["problems"] == [] and told["rounds"] > 0, said
    assert sum(told["faults"].values()) >= LEAST_FAULTS, said
