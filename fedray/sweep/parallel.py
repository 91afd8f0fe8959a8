"""Trials side by side: one Ray task per trial, each with its sites in one process.

Trials are spread over processors before sites are: a trial then needs no message between processes at all.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from fedray.runtime.ray_transport import start_ray
from fedray.sweep.trials import Book, Line, Trial, line_of

RunTrial = Callable[[Trial], dict[str, Any]]


def run_parallel(trials: Sequence[Trial], book: Book, run_trial: RunTrial, jobs: int) -> Iterator[Line]:
    """Run at most `jobs` trials at a time, write each down when it ends, and yield its line."""
    start_ray("local")
    task = ray.remote(num_cpus=1, max_retries=0)(_call)
    waiting = list(trials)
    running: dict[Any, tuple[Trial, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            trial = waiting.pop(0)
            running[task.remote(run_trial, trial)] = (trial, time.monotonic())
        (ready,), _ = ray.wait(list(running), num_returns=1)
        trial, started = running.pop(ready)
        try:
            outcome = ray.get(ready)
        except RayError as error:
            outcome = {"status": "failed", "error": _last_line(error)}
        line = line_of(trial, time.monotonic() - started, outcome)
        book.add(line)
        yield line


def _call(run_trial: RunTrial, trial: Trial) -> dict[str, Any]:
    """Run one trial in its own process."""
    return run_trial(trial)


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
