"""Train every algorithm on a Ray cluster of three nodes on this machine; print name, hash, nodes used.

python -m tests.cluster.three_nodes
"""

import ray
from ray.cluster_utils import Cluster

import fedray as fr
from tests.equivalence import study


def main():
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        for name in study.ALGORITHMS:
            with fr.connect(cluster.address, study.hospitals(), packs=3) as federation:
                result = fr.fit(
                    study.algorithm(name),
                    federation,
                    init=study.model().init(0),
                    rounds=study.ROUNDS,
                    seed=5,
                    schedule=fr.synchronous(cohort=0.75),
                )
                nodes = federation.call("nodes")
            print(name, result.params_sha256, len(set(nodes.values())), flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
