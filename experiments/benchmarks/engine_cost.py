"""What does the engine itself cost: 200 sites, a 10 MB model, no training, two packs on Ray?

    python experiments/benchmarks/engine_cost.py [--rounds 10] [--runs 5] [--sites 200] [--fold fast]

CPU of the whole process tree per steady round, and how much the private memory (USS) of the driver and of
the aggregator grows over what they hold when everything is imported and every site has answered, before the
parameters exist (sampled every 50 ms: the largest sum of both). Excluded: start-up and the first round.
A site returns what it has received; the mean must be what was sent. The last line is JSON.
"""

import argparse
import json
import sys
import threading
from pathlib import Path
from typing import Any

import measuring
import running
import tables
from peers import machine

MOST_CPU_S, MOST_GROWTH_MB = 0.5, 60.0  # per round; driver and aggregator together
SAMPLE_S = 0.05


class Watch(threading.Thread):
    """The largest private memory of some processes together."""

    def __init__(self, pids: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self.pids, self.is_over = pids, threading.Event()
        self.idle = self.look()
        self.most = dict(self.idle)

    def look(self) -> dict[str, int]:
        """Return bytes by process, of those that still run."""
        found = {}
        for name, pid in self.pids.items():
            try:
                found[name] = measuring.memory_of(pid).uss
            except measuring.ALREADY_GONE:
                continue
        return found

    def run(self) -> None:
        """Sample until stopped or until the processes are gone."""
        while not self.is_over.wait(SAMPLE_S):
            now = self.look()
            if sum(now.values()) > sum(self.most.values()):
                self.most = now

    def growth_mb(self) -> dict[str, float]:
        """Return the growth of each process at the moment of the largest sum."""
        self.is_over.set()
        self.join()
        return {name: (self.most.get(name, 0) - idle) / 1e6 for name, idle in self.idle.items()}


class Watching:
    """Takes the lines of one run: starts to watch when the program says that it is idle."""

    def __init__(self) -> None:
        self.watch: Watch | None = None
        self.torch_in_driver: bool | None = None

    def __call__(self, told: dict[str, Any]) -> None:
        """Take a line at which the program waits."""
        if told.get("idle"):
            self.torch_in_driver = told["torch_in_driver"]
            self.watch = Watch({"driver": told["driver"], "aggregator": told["pids"]["aggregator"]})
            self.watch.start()


def measure(rounds: int, sites: int, fold: str) -> dict[str, Any]:
    """Run once."""
    watching = Watching()
    system = running.System(name="fedray_ray", module="engine_run", words=(str(sites), fold))
    run = running.run(system, "none", rounds, watching)
    if watching.watch is None:
        raise running.SystemFailed("the program did not say when it was idle")
    growth = watching.watch.growth_mb()
    return {"cpu_per_round": run.cpu_per_round, "wall_per_round": run.wall_per_round, "peak_mb": run.peak_mb,
            "driver_growth_mb": growth["driver"], "aggregator_growth_mb": growth["aggregator"],
            "growth_mb": growth["driver"] + growth["aggregator"],
            "torch_in_driver": watching.torch_in_driver}


def main() -> int:
    """Print and write the figures; the exit code is 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sites", type=int, default=200, help="the bounds are meant for 200")
    parser.add_argument("--fold", choices=("exact", "fast"), default="exact", help="how sums are made")
    given = parser.parse_args()
    measuring.end_orderly()
    facts = {"machine": machine(), "sites": given.sites, "model_mb": 10.4, "packs": 2, "rounds": given.rounds,
             "runs": given.runs, "fold": given.fold}
    runs = []
    for number in range(given.runs):
        runs.append(measure(given.rounds, given.sites, given.fold))
        print(f"run {number + 1}/{given.runs}", json.dumps(runs[-1]), flush=True)
    has_torch = any(run["torch_in_driver"] for run in runs)
    names = [name for name in runs[0] if name != "torch_in_driver"]
    figures = {name: tables.spread([run[name] for run in runs]) for name in names}
    cpu, growth = (figures[name]["median"] for name in ("cpu_per_round", "growth_mb"))
    holds = {f"CPU <= {MOST_CPU_S} s a round": cpu <= MOST_CPU_S,
             f"growth <= {MOST_GROWTH_MB:.0f} MB": growth <= MOST_GROWTH_MB,
             "no torch in the driver": not has_torch}
    out = Path(__file__).resolve().parent / "results" / f"engine_cost_{given.fold}.json"
    told = {**facts, **figures, "torch_in_driver": has_torch, "holds": holds}
    out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(facts["machine"]))
    for what, is_held in holds.items():
        print(f"{what}: {'holds' if is_held else 'FAILS'}")
    print(json.dumps({"cpu_per_round": tables.rounded(cpu), "growth_mb": tables.rounded(growth),
                      "torch_in_driver": has_torch}))
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
