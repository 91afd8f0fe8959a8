"""What does a round of W1 cost on a GPU, against the same round on the processor?

    python experiments/benchmarks/gpu.py [--runs 5] [--rounds 6] [--device cuda]

The 200 sites, batch size and learning rate of workload W1 (workloads.py), trained in this process by `fr.fit`
without tracker and checkpoint, once on each device in turn. Wall and CPU seconds of a round, the median over
the rounds after the second; a round ends when its sums are in memory, so the GPU has finished. Excluded:
drawing the data, start-up, moving the tables (first round), and the second round. The largest difference of
the final weights is stated. The last line is JSON. Ends with a sentence where torch finds no CUDA device.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import workloads
from peers import machine
from systems import fedray_fit

import fedray as fr
from fedray import tree

WARM_UP = 2
BATCH_SIZE, LR = 32, 0.05  # those of workloads W1-W4


@dataclass
class Clock:
    """A tracker that notes when each round ended."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def start(self, plan: Any, facts: Any) -> None:
        """Note the start."""
        self.round(None)

    def round(self, record: Any) -> None:
        """Note the end of a round."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def evaluation(self, record: Any) -> None:
        """Nothing is evaluated."""

    def finish(self, result: Any) -> None:
        """There is nothing to do."""

    def seconds(self, kind: str) -> list[float]:
        """Return what each round after the warm-up took."""
        ends = getattr(self, kind)[WARM_UP:]
        return [after - before for before, after in pairwise(ends)]


def train(path: str, data: workloads.Data, device: str, rounds: int) -> tuple[Clock, Any]:
    """Train for some rounds and return their clock and the final parameters."""
    clock, model = Clock(), fedray_fit.model_of(data.workload)
    init = tree.flatten({name: torch.from_numpy(value) for name, value in data.init.items()})
    local = fr.learn.sgd(model, lr=LR, batch_size=BATCH_SIZE)
    with fr.simulate(fedray_fit.dataset(path, data), device=device) as federation:
        result = fr.fit(fr.algorithms.fedavg(local), federation, init=init, rounds=rounds, tracker=clock)
    return clock, result


def main() -> int:
    """Measure both devices in turn, print a line for each run and a JSON line at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    if given.rounds < WARM_UP + 1:
        parser.error(f"--rounds={given.rounds}: give {WARM_UP + 1} or more; the first {WARM_UP} are left out")
    if given.device != "cpu" and not torch.cuda.is_available():
        sys.exit("gpu.py measures a GPU, and torch finds no CUDA device on this machine")
    found: dict[str, dict[str, list[float]]] = {}
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        path = str(Path(folder) / "w1.npz")
        workloads.write("w1", Path(path))
        data = workloads.read(path)
        for run in range(given.runs):
            ends = {}
            for device in dict.fromkeys(("cpu", given.device)):
                clock, result = train(path, data, device, given.rounds)
                of_device = found.setdefault(device, {"wall": [], "cpu": []})
                for kind, seconds in of_device.items():
                    seconds.append(statistics.median(clock.seconds(kind)))
                ends[device] = result.params
                facts[f"row_invariant {device}"] = result.row_invariant
                print(f"run {run} {device}: wall {of_device['wall'][-1]:.4f} s, "
                      f"CPU {of_device['cpu'][-1]:.4f} s a round", flush=True)
            gap = float((ends["cpu"].buffer - ends[given.device].buffer).abs().max())
            facts["largest weight difference"] = max(gap, facts.get("largest weight difference", 0.0))
    print(json.dumps(told(given, found, facts)))
    return 0


def told(given: argparse.Namespace, found: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Return the last line."""
    spread = {
        device: {f"{kind}_per_round": {"min": min(seconds), "median": statistics.median(seconds),
                                       "max": max(seconds)} for kind, seconds in kinds.items()}
        for device, kinds in found.items()
    }  # fmt: skip
    ratios = [a / b for a, b in zip(found["cpu"]["wall"], found[given.device]["wall"], strict=True)]
    name = torch.cuda.get_device_name(given.device) if given.device != "cpu" else None
    return {"workload": "w1", "runs": given.runs, "rounds": given.rounds, "machine": machine(), "gpu": name,
            "threads": 1, **facts, "seconds": spread, "ratio_wall_cpu_over_gpu": statistics.median(ratios)}


if __name__ == "__main__":
    sys.exit(main())
