"""What do FedProx, SCAFFOLD and Ditto cost beside FedAvg, on the 200 sites of W1?

    python experiments/benchmarks/algorithms.py [--runs 5] [--rounds 5]

Workload W1 (workloads.py) in this process by `fr.fit` without tracker files and checkpoint, one thread, the
algorithms in turn. CPU seconds of a round, median over the rounds after the second; the ratio to FedAvg of
the same turn, then the median of the turns. Bounds of the design: FedProx 1.1, SCAFFOLD 1.15, Ditto 2.1 (it
trains twice). The last line is JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import workloads
from gpu import Clock
from peers import machine
from systems import fedray_fit

import fedray as fr

BOUNDS = {"fedprox": 1.1, "scaffold": 1.15, "ditto": 2.1}


def algorithm(name: str, local: Any, num_sites: int) -> fr.Algorithm:
    """Return an algorithm by its name."""
    if name == "fedprox":
        return fr.algorithms.fedprox(local, mu=0.01)
    if name == "scaffold":
        return fr.algorithms.scaffold(local, num_sites=num_sites)
    if name == "ditto":
        return fr.algorithms.ditto(local, prox=0.1)
    return fr.algorithms.fedavg(local)


def measure(name: str, path: str, rounds: int) -> float:
    """Return the CPU seconds of a round."""
    data, clock = workloads.read(path), Clock()
    local = fr.learn.sgd(fedray_fit.model_of(data.workload), lr=workloads.LEARNING_RATE, epochs=1,
                         batch_size=workloads.BATCH_SIZE)
    init = {leaf: torch.from_numpy(value) for leaf, value in data.init.items()}
    with fr.simulate(fedray_fit.dataset(path, data), runtime="in_process") as federation:
        fr.fit(algorithm(name, local, data.workload.num_sites), federation, init=init, rounds=rounds,
               tracker=clock)
    return statistics.median(clock.seconds("cpu"))


def main() -> int:
    """Print and write the figures; the exit code is 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = ("fedavg", *BOUNDS)
    turns: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w1.npz"
        workloads.write("w1", path)
        for _ in range(given.runs):
            turns.append({name: measure(name, str(path), given.rounds) for name in names})
            print(json.dumps({name: round(seconds, 4) for name, seconds in turns[-1].items()}), flush=True)
    ratios = {name: statistics.median(turn[name] / turn["fedavg"] for turn in turns) for name in BOUNDS}
    seconds = {name: round(statistics.median(turn[name] for turn in turns), 4) for name in names}
    told = {"cpu_per_round": seconds,
            "ratio_to_fedavg": {name: round(ratio, 3) for name, ratio in ratios.items()}, "bounds": BOUNDS,
            "runs": given.runs, "rounds": given.rounds, "machine": machine()}
    out = Path(__file__).resolve().parent / "results" / "algorithms.json"
    out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))
    return 0 if all(ratios[name] <= BOUNDS[name] for name in BOUNDS) else 1


if __name__ == "__main__":
    sys.exit(main())
