"""The head of a cluster is killed in a round and started again: the run is resumed, with equal bits."""

import contextlib
import json
import secrets
import shutil
import socket
import subprocess
import time

import pytest

from experiments.faults.judge import slowness
from tests.cluster import several_nodes
from tests.cluster.driving import ROUNDS
from tests.cluster.test_deaths import expected, has_ended, ledger, told

pytestmark = [
    pytest.mark.ray,
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed"),
]
RESUMED_WITHIN_S = 30.0


@contextlib.contextmanager
def redis(folder):
    """Run a Redis; yield the environment of a cluster that keeps its GCS there."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    password = secrets.token_hex(8)
    words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(["redis-server", *words, "--requirepass", password], stdout=subprocess.DEVNULL)
    try:
        yield {"RAY_REDIS_ADDRESS": f"127.0.0.1:{port}", "TEST_REDIS_PASSWORD": password,
               "RAY_external_storage_namespace": folder.name,
               "RAY_gcs_rpc_server_reconnect_timeout_s": "120"}  # fmt: skip
    finally:
        process.kill()
        process.wait()


def test_head_killed_and_started_again_with_redis_is_found_by_the_driver_that_resumes(tmp_path):
    with redis(tmp_path) as environment, several_nodes.running(2, **environment) as nodes:
        asked = {"run": "head", "name": "scaffold", "folder": str(tmp_path), "inside": 4, "every_s": 0.0}
        first = several_nodes.driver(nodes.address, json.dumps(asked))
        limit = time.monotonic() + 120
        while not (tmp_path / "inside").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        nodes.tell("kill head")
        assert has_ended(next(iter(nodes.raylets.values())))
        first.kill()
        first.communicate()
        nodes.tell("start head")
        back = time.monotonic()
        second = told(several_nodes.driver(nodes.address, json.dumps({**asked, "resume": True})))
        took = time.monotonic() - back
    assert second["sha256"] == [expected().params_sha256], second["err"]
    assert second["round"][-1] == ROUNDS - 1 and sorted(set(ledger(tmp_path))) == list(range(ROUNDS))
    assert took < RESUMED_WITHIN_S * slowness() + second["seconds"][0]
