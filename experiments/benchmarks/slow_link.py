"""What does a round cost over a slow link between two regions, beside plain TCP over the same link?

    python -m experiments.benchmarks.slow_link [--megabytes 10,50] [--folds regional,fast,exact] [--rounds 5]

Needs root: two regions of test hosts (experiments/testbed), joined by a link of 80 ms and 100 Mbit. In the
one is the aggregator with half of the sites, in the other are the other sites; Ray has token and mutual TLS.
Sites make an update of the model's size without training, so what is measured is the way of the model there
and of the sums back. After each round two plain TCP streams of the model's size pass the same link, one
there, then one back, each from connecting to its last byte. Bytes are those of the link's own counters, with
headers and acknowledgements, in models. The first round, which brings the plan, is left out.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

import fedray as fr
from experiments.benchmarks.made_up import Rows, averaging
from experiments.testbed import Hosts, Link, wide_area
from experiments.testbed.ray_on_hosts import RayOnHosts
from experiments.testbed.stream import stream_s
from fedray.cluster.site_map import REGION_LABEL, SiteMap

RESULTS = Path(__file__).parent / "results" / "slow_link.json"
REGIONS = ("hq", "far")
QUIET_S = 0.5  # after a round: acknowledgements are still under way
STREAM_PORT = 5201


class InTurns:
    """A tracker that says how long each round took, and waits for a word before the next."""

    def __init__(self) -> None:
        self.began = 0.0

    def start(self, plan: Any, facts: Any) -> None:
        """Wait for the word to begin."""
        self._wait({})

    def round(self, record: Any) -> None:
        """Tell a round."""
        self._wait({"seconds": time.monotonic() - self.began, "round": record.round})

    def evaluation(self, record: Any) -> None:
        """Nothing is evaluated."""

    def finish(self, result: Any) -> None:
        """Tell the end."""
        print(json.dumps({"sha256": result.params_sha256}), flush=True)

    def _wait(self, told: dict[str, Any]) -> None:
        print(json.dumps(told), flush=True)
        sys.stdin.readline()
        self.began = time.monotonic()


def drive(address: str, megabytes: int, fold: str, rounds: int, sites: int) -> None:
    """Train on the cluster, a round each time that a line comes in."""
    data = {f"h{number:03d}": Rows(10 + number) for number in range(sites)}
    homes = {site: REGIONS[2 * number >= sites] for number, site in enumerate(data)}
    placed = {site: {"region": region, "labels": {REGION_LABEL: region}} for site, region in homes.items()}
    site_map = SiteMap.of({"regions": {name: {} for name in REGIONS}, "sites": placed})
    with fr.connect(site_map, data, address=address, packs=1, group_size=1) as federation:
        model = {"w": torch.zeros(megabytes * 10**6 // 4)}
        fr.fit(averaging(), federation, init=model, rounds=rounds + 1, fold=fold, tracker=InTurns())


@dataclass(frozen=True)
class Case:
    """What is measured: a model and a way to add."""

    megabytes: int
    fold: str


class Driver:
    """The program on the head, as seen from here."""

    def __init__(self, hosts: Hosts, cluster: RayOnHosts, given: argparse.Namespace, case: Case) -> None:
        words = ["--drive", cluster.address, "--megabytes", str(case.megabytes), "--folds", case.fold]
        words += ["--rounds", str(given.rounds), "--sites", str(given.sites)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        module = [sys.executable, "-m", "experiments.benchmarks.slow_link"]
        self.process: Any = hosts[cluster.head].start(*module, *words, **pipes)
        self.told()

    def told(self) -> dict[str, Any]:
        """Return the next line that it prints."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the driver ended with {self.process.wait()}")
        return dict(json.loads(line))

    def round(self) -> dict[str, Any]:
        """Let it run one round."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.told()

    def end(self) -> None:
        """Let it end."""
        self.process.communicate("\n", timeout=60)


def measure(hosts: Hosts, cluster: RayOnHosts, given: argparse.Namespace, case: Case) -> dict[str, Any]:
    """Return rounds and streams in turns: seconds, and models over the link."""
    driver, link, found = Driver(hosts, cluster, given, case), hosts.link(*REGIONS), []
    driver.round()  # brings the plan
    for _ in range(given.rounds):
        found.append(one_round(hosts, driver, link, case))
        figures = ", ".join(f"{name} {value:.2f}" for name, value in found[-1].items())
        print(f"  {case.megabytes} MB {case.fold}: {figures}", flush=True)
    driver.end()
    medians = {f"median_{name}": statistics.median(each[name] for each in found) for name in found[0]}
    return {"megabytes": case.megabytes, "fold": case.fold, "rounds": found, **medians}


def one_round(hosts: Hosts, driver: Driver, link: Link, case: Case) -> dict[str, float]:
    """Return what a round and the two streams after it took."""
    size, sides = case.megabytes * 10**6, (hosts["head"], hosts["far1"])
    time.sleep(QUIET_S)
    before = [link.traffic(way).bytes for way in ("out", "in")]
    seconds = driver.round()["seconds"]
    time.sleep(QUIET_S)
    down, up = (link.traffic(way).bytes - old for way, old in zip(("out", "in"), before, strict=True))
    streams = stream_s(*sides, size, STREAM_PORT) + stream_s(*sides[::-1], size, STREAM_PORT)
    return {"round_s": seconds, "streams_s": streams, "ratio": seconds / streams, "models_down": down / size,
            "models_up": up / size, "models": (down + up) / size, "load": os.getloadavg()[0]}  # fmt: skip


def write(file: Path, found: list[dict[str, Any]]) -> None:
    """Write what was found into the file, in place of what it had of the same cases."""
    before = json.loads(file.read_text()) if file.exists() else []
    now = [(each["megabytes"], each["fold"], each["facts"]["far_nodes"]) for each in found]
    kept = [each for each in before
            if (each["megabytes"], each["fold"], each["facts"]["far_nodes"]) not in now]  # fmt: skip
    file.write_text(json.dumps(kept + found, indent=1) + "\n")


def main() -> None:
    """Measure, print, and write results/slow_link.json."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--megabytes", default="10,50")
    parser.add_argument("--folds", default="regional,fast,exact")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sites", type=int, default=50)
    parser.add_argument("--rtt-ms", type=float, default=80.0)
    parser.add_argument("--mbit", type=float, default=100.0)
    parser.add_argument("--out", default=str(RESULTS))
    parser.add_argument("--far-nodes", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE, a setting of Ray's")
    parser.add_argument("--drive", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drive:
        drive(given.drive, int(given.megabytes), given.folds, given.rounds, given.sites)
        return
    link = wide_area(given.rtt_ms / 1000, given.mbit * 1e6)
    far = [f"far{number + 1}" for number in range(given.far_nodes)]
    settings = dict(line.split("=", 1) for line in given.set)
    asked = {name: value for name, value in vars(given).items() if name not in ("drive", "out")}
    facts = {"machine": platform.platform(), "cores": os.cpu_count(), "ray": ray.__version__, **asked}
    found = []
    with Hosts({"hq": ["head"], "far": far}, links={REGIONS: link}) as hosts:
        labels = {host.name: {"fedray.region": host.region} for host in hosts}
        options = {"labels": labels, "object_store_mib": 600, "environment": settings}
        cluster = RayOnHosts(hosts, "head", has_tls=True, **options)
        cluster.start()
        for megabytes in map(int, given.megabytes.split(",")):
            for fold in given.folds.split(","):
                found.append(measure(hosts, cluster, given, Case(megabytes, fold)) | {"facts": facts})
                write(Path(given.out), found)
    print(json.dumps([{key: each[key] for key in each if key not in ("rounds", "facts")} for each in found]))


if __name__ == "__main__":
    main()
