"""A Ray cluster of several nodes on this machine, in a process of its own, which drivers come to and leave.

    python -m tests.cluster.several_nodes NODES       prints a line of JSON, and ends with its standard input
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import driving

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN": "0" * 64,
            "RAY_AUTH_MODE": "token", "PYTHONUNBUFFERED": "1",
            "FEDRAY_INSECURE_CLUSTER": "1"}  # no TLS among these nodes; see test_secured.py  # fmt: skip


@contextlib.contextmanager
def running(nodes: int, **extra: str) -> Iterator[str]:
    """Start a cluster; yield its address."""
    command = [sys.executable, "-m", "tests.cluster.several_nodes", str(nodes)]
    process = subprocess.Popen(command, env={**environment(), **extra}, text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield next((json.loads(text)["address"] for text in process.stdout if text.startswith("{")), "")
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def driver(*words: str, **extra: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "tests.cluster.driving", *words], text=True,
                            env={**environment(), **extra}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def main(count: int) -> None:
    from ray.cluster_utils import Cluster

    quick = {"health_check_period_ms": 1000, "health_check_timeout_ms": 2000,
             "health_check_failure_threshold": 20}  # fmt: skip
    head = {"num_cpus": 2, "include_dashboard": False, "_system_config": quick,
            "object_store_memory": driving.STORE_BYTES}  # fmt: skip
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
    try:
        for _ in range(count - 1):
            cluster.add_node(num_cpus=2, object_store_memory=driving.STORE_BYTES)
        print(json.dumps({"address": cluster.address}), flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
