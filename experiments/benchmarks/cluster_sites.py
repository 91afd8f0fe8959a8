"""What do 500 packed hospitals, and 20 with an actor each, cost on a cluster of several machines?

    python -m experiments.benchmarks.cluster_sites [--packed 500] [--alone 20] [--rounds 10]

Needs root: three test hosts (experiments/testbed) in two regions, 80 ms and 100 Mbit apart, with token and
mutual TLS. Hospitals are generated; logistic regression, one epoch a round, all sites in every round. Start
is from the driver's first line to the answer of every site; memory is the private memory of the actors that
hold sites, and that of all processes of Ray on the three hosts, each shared page once. The first two rounds
are left out.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import ray

import fedray as fr
from experiments.benchmarks.measuring import memory_of
from experiments.testbed import Hosts, wide_area
from experiments.testbed.ray_on_hosts import RayOnHosts

RESULTS = Path(__file__).parent / "results" / "cluster_sites.json"
REGIONS = {"hq": ["head"], "far": ["far1", "far2"]}
WARM_UP, MIB = 2, 2**20


def drive(address: str, sites: int, is_packed: bool, rounds: int) -> None:
    """Train on the cluster; print a line when all sites have answered, and one at the end."""
    began = time.monotonic()
    hospitals = fr.data.synthetic_icu(num_sites=sites, scale=0.05, seed=7)
    model = fr.learn.logistic(len(hospitals.features))
    local = fr.learn.sgd(model, lr=0.05, epochs=1, batch_size=32)
    layout: dict[str, Any] = {"packs": 6} if is_packed else {"sites_per_actor": 1}
    with fr.connect(address, hospitals, **layout) as federation:
        rows = federation.hello()
        told: dict[str, Any] = {"start_s": time.monotonic() - began, "rows": sum(rows.values())}
        nodes = federation.call("nodes")
        algorithm = fr.algorithms.fedavg(local)
        result = fr.fit(algorithm, federation, init=model.init(0), rounds=rounds + WARM_UP, seed=7)
        seconds = [record.seconds for record in result.metrics][WARM_UP:]
        told |= {"actors": len(nodes), "nodes": len(set(nodes.values())), "sha256": result.params_sha256,
                 "round_s": seconds}  # fmt: skip
        print(json.dumps(told), flush=True)
        sys.stdin.readline()  # memory is read from outside


def measured(hosts: Hosts, cluster: RayOnHosts, sites: int, is_packed: bool, rounds: int) -> dict[str, Any]:
    """Return start, memory and seconds a round."""
    words = ["--drive", cluster.address, "--sites", str(sites), "--rounds", str(rounds)]
    words += ["--is-packed"] if is_packed else []
    module = [sys.executable, "-m", "experiments.benchmarks.cluster_sites"]
    driver: Any = hosts["head"].start(*module, *words, stdin=-1, stdout=-1, text=True)
    line = driver.stdout.readline()
    if not line:
        raise RuntimeError(f"the driver ended with {driver.wait()}")
    told = json.loads(line)
    actors = [memory_of(pid) for host in hosts for pid in host.pids("ray::HostActor")]
    whole = [memory_of(pid) for host in hosts for pid in host.pids("/site-packages/ray/")]
    whole += actors + [memory_of(pid) for host in hosts for pid in host.pids("ray::AggregatorActor")]
    driver.communicate("\n", timeout=120)
    seconds = told.pop("round_s")
    return {"sites": sites, "is_packed": is_packed, **told,
            "median_round_s": statistics.median(seconds), "most_round_s": max(seconds),
            "private_mib_of_actors": sum(one.uss for one in actors) / MIB, "num_actors": len(actors),
            "mib_of_ray_on_all_hosts": sum(one.total for one in whole) / MIB,
            "load": os.getloadavg()[0]}  # fmt: skip


def main() -> None:
    """Measure, print, and write results/cluster_sites.json."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--packed", type=int, default=500)
    parser.add_argument("--alone", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    for name in ("--drive", "--sites"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    parser.add_argument("--is-packed", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drive:
        drive(given.drive, int(given.sites), given.is_packed, given.rounds)
        return
    with Hosts(REGIONS, links={("hq", "far"): wide_area()}) as hosts:
        cluster = RayOnHosts(hosts, "head", has_tls=True, num_cpus=2)
        began = time.monotonic()
        cluster.start()
        joined = time.monotonic() - began
        found = [measured(hosts, cluster, given.packed, True, given.rounds),
                 measured(hosts, cluster, given.alone, False, given.rounds)]  # fmt: skip
    facts = {"machine": platform.platform(), "cores": os.cpu_count(), "ray": ray.__version__,
             "hosts": 3, "seconds_until_the_cluster_was_up": joined}  # fmt: skip
    RESULTS.write_text(json.dumps({**facts, "measured": found}, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
