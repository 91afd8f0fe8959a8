"""Train `experiment=eicu_demo` on a cluster, and print one line of JSON: the hash of the parameters, and how
many hospitals were on the machine of each address.

    python eicu_on_cluster.py ADDRESS [OVERRIDE ...]
"""

import json
import sys
from collections import Counter

import ray

import fedray as fr
from fedray import config, experiment


def main(address, *overrides):
    words = ["experiment=eicu_demo", "runtime=ray_cluster", f"runtime.address={address}", *overrides]
    built = experiment.build(experiment.asked_for(config.compose_run(words)))
    with built.federate() as federation:
        ready = experiment.prepare(built, federation).experiment
        training = ready.training
        settings = {"rounds": ready.rounds, "schedule": ready.schedule, "seed": ready.seed}
        result = fr.fit(training.algorithm, federation, init=training.init, **settings)
        nodes = federation.call("nodes")
        sites = {spec.name: len(spec.all_sites) for spec in federation.specs}
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    hospitals = Counter()
    for name, node in nodes.items():
        hospitals[addresses[node]] += sites[name]
    print(json.dumps({"sha256": result.params_sha256, "hospitals": hospitals}))


if __name__ == "__main__":
    main(*sys.argv[1:])
