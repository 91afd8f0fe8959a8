"""Real rounds on this machine, through the public API, and the costs of operations that fit them.

`echo` is a round without training: every site returns what it received, so that what is left is the engine.
A run is a few rounds; its figure is the fastest quarter of the rounds, for the machine may
be shared. In process it is CPU (one thread); on Ray it is wall, as the packs work side by side.
"""

import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

import fedray as fr
from fedray.runtime.cluster_model import Costs, fullest

NUM_SITES = 200
ROWS, FEATURES, BATCH = 64, 64, 32
CORES = min(2, os.cpu_count() or 1)
WARM_UP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run: where, how many packs and sites, what a round does. `epochs=0` is an echo of `elements`."""

    runtime: str
    packs: int
    cohort: int
    elements: int = 0
    stages: int = 1
    epochs: int = 0
    regions: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the model."""
        return 4 * (self.elements or 16_641)  # the MLP below

    @property
    def steps(self) -> int:
        """Training steps of a site in a round."""
        return self.epochs * (ROWS // BATCH)

    def __str__(self) -> str:
        what = f"{self.steps} steps" if self.epochs else f"echo {self.num_bytes / 1e6:.2f} MB"
        where = f"{self.packs} packs" + f" in {self.regions} regions" * bool(self.regions)
        return f"{self.runtime:10} {where:20} cohort {self.cohort:3}  {what}, {self.stages} stages"


def keep(value: Any) -> Any:
    """Return what came."""
    return value


def echo(stages: int) -> fr.Algorithm:
    """Send the state to the sites and take the mean of what they return, once or twice a round."""

    def round(server: Any, site: Any) -> fr.Outputs:
        for stage in range(stages):
            server = fr.mean(fr.map(keep, fr.broadcast(server)), name=f"delta{stage}")
        return fr.Outputs(server=server)

    return fr.Algorithm(keep, round, name=f"echo{stages}")


class Clock:
    """A tracker that reads the CPU clock of this process and the wall clock after each round."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def start(self, plan: Any, facts: Any) -> None:
        """Nothing to note."""

    def round(self, record: Any) -> None:
        self.cpu.append(time.process_time())
        self.wall.append(time.monotonic())

    def evaluation(self, record: Any) -> None:
        """Nothing is evaluated."""

    def finish(self, result: Any) -> None:
        """Nothing to close."""


def run_all(cases: Sequence[Case], sites: Any, rounds: int) -> dict[Case, float]:
    """Return the seconds of a round of each case; cases on equal hosts share a federation."""
    found = {}
    for runtime, packs, regions in dict.fromkeys((case.runtime, case.packs, case.regions) for case in cases):
        names = list(sites)
        half = len(names) // 2
        layout = {"a": names[:half], "b": names[half:]} if regions else None
        each = packs // max(1, regions)
        with fr.simulate(sites, runtime=runtime, packs=each, regions=layout) as federation:
            for case in cases:
                if (case.runtime, case.packs, case.regions) == (runtime, packs, regions):
                    found[case] = run(case, federation, rounds)
                    print(f"  {case}: {1000 * found[case]:8.1f} ms", file=sys.stderr, flush=True)
    return found


def run(case: Case, federation: fr.Federation, rounds: int) -> float:
    """Return the seconds of a round of a case."""
    clock = Clock()
    if case.epochs:
        model = fr.learn.mlp(FEATURES, (128, 64))
        algorithm = fr.algorithms.fedavg(fr.learn.sgd(model, lr=0.01, epochs=case.epochs, batch_size=BATCH))
        init = model.init(0)
    else:
        algorithm, init = echo(case.stages), {"w": torch.linspace(0.1, 1, case.elements)}
    fr.fit(algorithm, federation, init=init, rounds=rounds, tracker=clock,
           schedule=fr.synchronous(cohort=case.cohort))
    times = clock.cpu if case.runtime == "in_process" else clock.wall
    found = sorted(np.diff(times[WARM_UP:]).tolist())
    return statistics.mean(found[: max(1, len(found) // 4)])


NAMES = ("round", "fold", "fold_byte", "site", "site_byte", "step", "put", "byte", "call")


def features(case: Case) -> dict[str, float]:
    """Return how often each operation lies on the critical path of a case.

    In process everything does; on Ray packs work side by side on the machine's cores. A region is one host
    more on the path of every message.
    """
    is_ray = case.runtime == "ray"
    busiest = fullest(case.cohort, case.packs, NUM_SITES / case.packs)
    levels = 2 if case.regions else 1
    answers = case.stages * (case.packs if not case.regions else case.regions + case.packs / case.regions)
    work = max(busiest, case.cohort / CORES) if is_ray else float(case.cohort)
    # the exact sum of a float32 model is two float64 lanes; one site alone sends its row
    up = case.num_bytes * (4 if case.cohort > case.packs else 1)
    return {
        "round": 1.0,
        "fold": answers * (not is_ray),  # on Ray it cannot be told from the call that brought the answer
        "fold_byte": answers * up,
        "site": work * case.stages,
        "site_byte": work * case.num_bytes * case.stages,
        "step": work * case.steps,
        "put": case.stages * levels * is_ray,
        "byte": case.stages * case.num_bytes * levels * is_ray,
        "call": answers * is_ray,
    }


def fit(cases: Sequence[Case], seconds: Sequence[float]) -> dict[str, float]:
    """Return non-negative costs with the smallest sum of squared relative errors.

    The cases are of one runtime: memory is managed otherwise in Ray's workers, and bytes cost less there. All
    subsets of operations are tried, nine being few: the best of those whose costs are all positive.
    """
    rows = np.array([[features(case)[name] for name in NAMES] for case in cases])
    scaled = rows / np.array(seconds)[:, None]
    best: tuple[float, dict[str, float]] = (float("inf"), {})
    for size in range(1, len(NAMES) + 1):
        for chosen in combinations(range(len(NAMES)), size):
            part = scaled[:, chosen]
            widths = np.linalg.norm(part, axis=0)
            if (widths == 0).any():
                continue
            costs = np.linalg.lstsq(part / widths, np.ones(len(cases)), rcond=None)[0] / widths
            loss = float(np.square(part @ costs - 1).sum())
            if (costs >= 0).all() and loss < best[0]:
                best = loss, {NAMES[i]: float(cost) for i, cost in zip(chosen, costs, strict=True)}
    return {name: best[1].get(name, 0.0) for name in NAMES}


def predicted(case: Case, costs: dict[str, float]) -> float:
    """Return the seconds that the costs give for a case."""
    return sum(costs[name] * times for name, times in features(case).items())


def as_costs(found: dict[str, float]) -> Costs:
    """Return the costs of a cluster of Ray actors in the terms of the cluster model."""
    return Costs(**{f"{name}_s": found[name] for name in NAMES})
