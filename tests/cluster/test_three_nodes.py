"""The same run on a Ray cluster of three nodes: equal bits, and the packs really are on several nodes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.equivalence import study

pytestmark = [pytest.mark.ray, pytest.mark.cluster]


def test_a_cluster_of_three_nodes_gives_the_bits_of_one_process():
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_AUTH_MODE": "token",
        "FEDRAY_INSECURE_CLUSTER": "1",  # no TLS: see test_secured.py
    }
    command = [sys.executable, "-m", "tests.cluster.three_nodes"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    lines = [line.split() for line in done.stdout.splitlines()]
    lines = [line for line in lines if line and line[0] in study.ALGORITHMS]
    hashes = [[name, study.expected(name).params_sha256] for name in study.ALGORITHMS]
    assert [line[:2] for line in lines] == hashes, done.stderr[-3000:]
    assert all(int(line[2]) >= 2 for line in lines), "packs are spread over nodes"
    assert "FEDRAY_INSECURE_CLUSTER=1: joined without mutual TLS" in done.stderr
    assert "One trust domain: All nodes of this Ray cluster can run code on each other" in done.stderr
