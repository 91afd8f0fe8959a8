"""`fedray run` on a cluster by a site map: the bits of one process, and the placement beside the run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.placed_command import command

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.slow]


def test_a_run_by_a_site_map_has_the_bits_of_one_process(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_AUTH_MODE": "token",
        "FEDRAY_INSECURE_CLUSTER": "1",  # no TLS among these nodes
    }
    words = [sys.executable, "-m", "tests.cluster.placed_command", str(tmp_path)]
    for each in (words, command(tmp_path / "here", "runtime=in_process")):
        done = subprocess.run(each, env=environment, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    there, here = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "here"))
    assert there["params_sha256"] == here["params_sha256"]
    text = (tmp_path / "run" / "placement.txt").read_text()
    assert "region eu" in text and "h003" in text
