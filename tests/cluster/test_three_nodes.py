"""The same run on a Ray cluster of three nodes: equal bits, and the packs really are on other nodes."""

import os

import pytest

from tests.equivalence import study

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

SCRIPT = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, connect=False, head_node_args=dict(num_cpus=1,
include_dashboard=False)) for _ in range(2):
    cluster.add_node(num_cpus=1)
try:
    import fedray as fr
    from tests.equivalence import study
    for name in study.ALGORITHMS:
        with fr.connect(cluster.address, study.hospitals(), packs=3) as federation:
            result = fr.fit(study.algorithm(name), federation, init=study.model().init(0),
            rounds=study.ROUNDS, seed=5,
                            schedule=fr.synchronous(cohort=0.75))
            nodes = federation.call("nodes")
        print(name, result.params_sha256, len(set(nodes.values())), flush=True)
finally:
    import ray
    ray.shutdown()
    cluster.shutdown()
"""


def test_a_cluster_of_three_nodes_gives_the_bits_of_one_process():
    import subprocess
    import sys
    from pathlib import Path

    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_AUTH_MODE": "token",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=400
    )
    lines = [
        line.split()
        for line in done.stdout.splitlines()
        if line.split()[:1] and line.split()[0] in study.ALGORITHMS
    ]
    assert [line[:2] for line in lines] == [
        [name, study.expected(name).params_sha256] for name in study.ALGORITHMS
    ], done.stderr[-3000:]
    assert all(int(line[2]) >= 2 for line in lines), "packs are spread over nodes"
