"""Trials side by side: N long-lived worker actors, each with the sites of one trial in its process.

Trials are spread over processors before sites are: a trial then needs no message between processes at all. A
worker keeps the data that it opened, and is given trials on the same data first. One whose process ends
costs the trial that it ran; another worker takes its place.
"""

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from fedray.runtime.ray_transport import start_ray
from fedray.sweep.job import Jobs, Order, close_run
from fedray.sweep.trials import FAILED, Book, Line, Trial, guarded, line_of


class Worker:
    """An actor that runs one trial after the other on data that stays open."""

    def __init__(self, folder: str) -> None:
        from fedray.sweep.kept import Kept
        os.chdir(folder)  # relative paths of settings mean what they mean to the driver
        self._kept = Kept()

    def run(self, order: Order) -> dict[str, Any]:
        """Run a trial; an error of any kind is its outcome."""
        return guarded(lambda given: given.run(self._kept), order)

    def pid(self) -> int:
        """Return the process id."""
        return os.getpid()


class Crew:
    """The workers of a sweep: who is free, and what each had open last. Close it to end them."""

    def __init__(self) -> None:
        start_ray("local")
        self._free: list[Any] = []
        self._all: list[Any] = []
        self._data: dict[Any, str] = {}

    def take(self) -> Any:
        """Return a free worker, a new one where all are busy."""
        if not self._free:
            # a trace of a processor: it is for `jobs` to say how many run at a time
            worker = ray.remote(Worker).options(num_cpus=0.001, max_restarts=0).remote(os.getcwd())
            self._all.append(worker)
            return worker
        return self._free.pop()

    def pick(self, worker: Any, waiting: list[Trial], jobs: Jobs) -> Trial:
        """Take the first trial on the worker's data out of those that wait, else the first of all."""
        keys = [jobs.data_key(trial) for trial in waiting]
        place = keys.index(self._data[worker]) if self._data.get(worker) in keys else 0
        self._data[worker] = keys[place]
        return waiting.pop(place)

    def give_back(self, worker: Any) -> None:
        """Take a worker as free again."""
        self._free.append(worker)

    def close(self) -> None:
        """End all of them."""
        for worker in self._all:
            ray.kill(worker)


def run_parallel(trials: Sequence[Trial], book: Book, jobs: Jobs, crew: Crew, count: int,
                 fail_fast: bool = False) -> Iterator[Line]:
    """Run at most `count` trials at a time, write each down when it ends, and yield its line."""
    waiting = list(trials)
    running: dict[Any, tuple[Order, float, Any]] = {}
    while waiting or running:
        while waiting and len(running) < count:
            worker = crew.take()
            order = jobs.order(crew.pick(worker, waiting, jobs))
            running[worker.run.remote(order)] = (order, time.monotonic(), worker)
        (ready,), _ = ray.wait(list(running), num_returns=1)
        order, started, worker = running.pop(ready)
        outcome = _outcome(ready, order, crew, worker)
        line = line_of(order.trial, time.monotonic() - started, outcome)
        book.add(line)
        yield line
        if fail_fast and line.status == FAILED:
            waiting = []


def _outcome(ready: Any, order: Order, crew: Crew, worker: Any) -> dict[str, Any]:
    """Return what a trial came to, also where its worker's process is gone."""
    try:
        outcome: dict[str, Any] = ray.get(ready)
    except RayError as error:
        reason = f"the process of the trial ended before it did ({type(error).__name__})"
        close_run(order.composed.run_dir, FAILED, reason)
        return {"status": FAILED, "error": reason, "run": order.composed.run_dir.name}
    crew.give_back(worker)
    return outcome
