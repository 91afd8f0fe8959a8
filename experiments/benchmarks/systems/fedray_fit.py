"""fedray as a user runs it: `fr.fit` over the workload's sites, in this process or on Ray with two packs.

The fourth word says which: `in_process`, `ray` (both with the default tracker and a checkpoint, in a
directory of their own) or `bare` (in process, with neither). W4's model is what `fold="fast"` (sums in
float32) is for: the first two use it there, `bare` keeps the exact sum. fedray draws batch order and cohorts
from its own keys, so its learning check compares the metric, not bits.
"""

import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import learning
import torch
import workloads
from systems import reporting

import fedray as fr
from fedray import track
from fedray.data.site import Dataset, SiteData
from fedray.runtime.checkpoint import Checkpoints

PACKS = 2


@lru_cache(maxsize=1)
def opened(path: str) -> workloads.Data:
    """Load the workload once in each process that holds sites."""
    return workloads.read(path)


@dataclass(frozen=True)
class Site:
    """Opens one site where its pack lives."""

    path: str
    index: int

    def __call__(self) -> SiteData:
        """Return the site's rows, all of them training rows."""
        x, y = opened(self.path).site(self.index)
        return SiteData({"x": torch.from_numpy(x), "y": torch.from_numpy(y)})


def dataset(path: str, data: workloads.Data) -> Dataset:
    """Return the workload's sites as a data set that is cheap to send."""
    names = [f"site{index:06d}" for index in range(data.workload.num_sites)]
    sizes = dict(zip(names, data.sizes.tolist(), strict=True))
    is_binary = data.workload.metric == "auroc"
    return Dataset({name: Site(path, index) for index, name in enumerate(names)}, name=data.workload.name,
                   outcome="binary" if is_binary else "classes", num_classes=2 if is_binary else 10,
                   sizes=sizes)


def model_of(workload: workloads.Workload) -> Any:
    """Return fedray's own model of a workload."""
    if workload.name == "w1":
        return fr.learn.mlp(workloads.FEATURES, hidden=(128, 64))
    if workload.name == "w2":
        return fr.learn.logistic(workloads.FEATURES)
    if workload.name == "w4":
        return fr.learn.mlp(1024, hidden=(4480, 4480), num_classes=10)
    return fr.learn.from_module(learning.module_of(workload), task="classes")


def fit(path: str, report: reporting.Report, mode: str, run: Path) -> Any:
    """Train and return the result."""
    data = workloads.read(path)
    workload = data.workload
    local = fr.learn.sgd(model_of(workload), lr=workloads.LEARNING_RATE, epochs=1,
                         batch_size=workloads.BATCH_SIZE)
    init = {name: torch.from_numpy(value) for name, value in data.init.items()}
    lines, is_bare = reporting.RoundLines(report), mode == "bare"
    on_ray = {"runtime": "ray", "packs": PACKS, "placement": "actors"}
    runtime = on_ray if mode == "ray" else {"runtime": "in_process"}
    with fr.simulate(dataset(path, data), **runtime) as federation:
        return fr.fit(fr.algorithms.fedavg(local), federation, init=init, rounds=report.rounds,
                      schedule=fr.synchronous(cohort=workload.cohort),
                      fold="fast" if workload.name == "w4" and not is_bare else "exact",
                      tracker=lines if is_bare else track.combine(track.jsonl(run), lines),
                      checkpoint=None if is_bare else Checkpoints(run / "checkpoints"))


def main() -> None:
    """Run one mode and save the weights."""
    path, report, out = reporting.start("ray")
    with tempfile.TemporaryDirectory() as folder:
        result = fit(path, report, sys.argv[4], Path(folder))
    reporting.save(out, {name: result.params[name].numpy() for name in result.params})

