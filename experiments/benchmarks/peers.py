"""What does a round cost with fedray, with other libraries and with a plain torch loop, on the same work?

    python experiments/benchmarks/peers.py --workload w1 --peers flwr,pfl,fluke [--pairs 5] [--rounds N]
    python experiments/benchmarks/peers.py --workload w1 --peers none     # under a minute

Each system is a program of its own that reads the same file (data, initial weights) and trains with batch
32, one epoch, SGD 0.05 and one torch thread a process. In a pair every system runs once, one after the
other. CPU is user and system time of the whole process tree per round, as the mean over the rounds after the
first; start-up, the first round and what follows the last round are excluded and stated in the JSON.
Learning is checked on the final weights by one function for all systems. Writes
results/WORKLOAD.json (WORKLOAD-alone.json without peers) and prints a table; the last line is JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import measuring
import running
import tables
import workloads
from environments import PEERS, python_of
from running import ROOT, System, SystemFailed

RESULTS = Path(__file__).resolve().parent / "results"
OURS = (*(System(name=kind, module="loop", words=(kind,)) for kind in ("plain", "lean")),
        *(System(name=f"fedray_{mode}", module="fedray_fit", words=(mode,))
          for mode in ("in_process", "ray", "bare")))
BESIDE = ("lean", "fedray_bare")  # left out of a run without peers where a round takes seconds: one minute
SLOW = ("w3", "w4")
FIGURES = ("cpu_per_round", "wall_per_round", "peak_mb", "peak_uss_mb", "first_round_wall_s",
           "first_round_cpu_s", "closing_cpu_s")
FLOPS = ("rows of a round x sum over layers of 2 x weights x output positions x (2 in the first layer, "
         "else 3): forward, gradient of the weight, gradient of the input")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--workload", choices=list(workloads.WORKLOADS), required=True)
    parser.add_argument("--peers", default="none", help=f"none, or some of {','.join(PEERS)}")
    parser.add_argument("--systems", help="only these of ours: "
                        + ",".join(system.name for system in OURS))
    parser.add_argument("--pairs", type=int, help="5 with peers, 1 without")
    parser.add_argument("--rounds", type=int, help="those of the workload; fewer without peers")
    given = parser.parse_args(words)
    given.peers = [] if given.peers == "none" else given.peers.split(",")
    if unknown := [name for name in given.peers if name not in PEERS]:
        parser.error(f"no such peer: {', '.join(unknown)}; choose from {', '.join(PEERS)}")
    if given.systems and (unknown := set(given.systems.split(",")) - {system.name for system in OURS}):
        parser.error(f"no such system: {', '.join(sorted(unknown))}")
    workload = workloads.WORKLOADS[given.workload]
    given.pairs = given.pairs or (5 if given.peers else 1)
    given.rounds = given.rounds or (workload.rounds if given.peers else workload.quick_rounds)
    if given.rounds < 2:
        parser.error("a steady figure needs at least 2 rounds")
    return given


def selected(given: argparse.Namespace) -> list[System]:
    """Return the systems to run, peers first made where they are missing."""
    is_short = not given.peers and given.workload in SLOW
    names = [system.name for system in OURS if not (is_short and system.name in BESIDE)]
    names = given.systems.split(",") if given.systems else names
    ours = [system for system in OURS if system.name in names]
    return [*ours, *(System(name=name, module=PEERS[name].module, python=python_of(name))
                     for name in given.peers)]


def measure(given: argparse.Namespace, systems: list[System], path: Path) -> dict[str, Any]:
    """Run all pairs and return the figures of each run, versions, and GEMM rates."""
    import learning

    data = workloads.read(path)
    runs: dict[str, list[dict[str, float]]] = {system.name: [] for system in systems}
    versions: dict[str, dict[str, str]] = {}
    failed: dict[str, str] = {}
    rates = []
    for pair in range(given.pairs):
        rates.append(measuring.gemm_rate())
        for system in systems:
            try:
                found = running.run(system, path, given.rounds)
            except SystemFailed as error:
                failed[system.name] = str(error)
                print(error, file=sys.stderr, flush=True)
                continue
            versions[system.name] = found.versions
            figures = {"pair": pair, **{name: getattr(found, name) for name in FIGURES}}
            figures["metric"] = learning.metric(data, found.weights)
            runs[system.name].append(figures)
            print(f"pair {pair + 1}/{given.pairs} {system.name:18} cpu {found.cpu_per_round:.4f} s  "
                  f"wall {found.wall_per_round:.4f} s  peak {found.peak_mb:.0f} MB  "
                  f"{data.workload.metric} {figures['metric']:.4f}", flush=True)
    return {"runs": {name: own for name, own in runs.items() if own}, "versions": versions, "failed": failed,
            "gemm_flops_per_s": tables.spread(rates),
            "flops_per_round": data.flops_per_round(range(1, given.rounds))}


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT,
                           check=False)
    changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True,
                             text=True, cwd=ROOT, check=False)
    commit = asked.stdout.strip() or "unknown"
    return {"platform": platform.platform(), "cpu": model, "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2), "python": platform.python_version(),
            "torch": metadata.version("torch"), "commit": commit + ("+" if changed.stdout.strip() else "")}


def main() -> int:
    """Measure, print and write; the exit code is 1 if a system failed or none of fedray's ran."""
    given = arguments()
    systems = selected(given)
    measuring.end_orderly()
    facts = {"machine": machine(), "workload": given.workload, "pairs": given.pairs, "rounds": given.rounds,
             "seeds": "data, weights, batch order and cohorts as in workloads.py; fedray seed 0",
             "flops": FLOPS}
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        path = Path(folder) / f"{given.workload}.npz"
        workloads.write(given.workload, path)
        found = measure(given, systems, path)
    if not found["runs"]:
        return 1
    gemm = found["gemm_flops_per_s"]["median"]
    figures = tables.summary(found["runs"], found["flops_per_round"], gemm)
    name = given.workload + ("" if given.peers else "-alone")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**facts, **found, **figures}, indent=1) + "\n")
    print(f"\n{json.dumps(facts['machine'])}\nGEMM {gemm / 1e9:.0f} GFLOP/s, "
          f"{found['flops_per_round'] / 1e9:.3f} GFLOP a round, {given.rounds} rounds, "
          f"{given.pairs} pair(s)\n")
    print(tables.table(given.workload, workloads.WORKLOADS[given.workload].metric, figures), "\n")
    print(json.dumps(tables.last_line(given.workload, figures)))
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
