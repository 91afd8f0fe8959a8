"""The process behind `fedray run` on Ray: `fit` and the aggregator are in it, the packs are its Ray's actors.

The main thread starts Ray, which is mostly waiting, while another imports torch and builds the experiment.
It is not the other way round: Ray's processes end with the thread that started them. What happens is told
as plain values over a pipe; see session.py.
"""

import contextlib
import importlib
import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from fedray import phases
from fedray.errors import FedrayError
from fedray.experiment import Asked, Outcome, build, run
from fedray.track import plain

PATIENCE_S = 2.0  # between two interrupts: Ray looks for them once a second, and takes two within it for one
MOST_PATIENCE_S = 30.0  # Ray may have to start before it can end
SHOWN_FACTS = ("sites", "where", "seed", "first_round")


class Events:
    """The pipe to the command; several threads tell."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._pipe, self._lock = Connection(descriptor, readable=False), threading.Lock()

    def tell(self, kind: str, *content: Any) -> None:
        """Tell an event; one that nobody listens to any more is dropped."""
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._pipe.send((kind, *content))


class View:
    """The view of a run whose screen is in another process: `live.View` in plain values."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def __call__(self, title: str, rounds: int, *, directory: str) -> "View":
        """Open the view there."""
        self._events.tell("opened", title, rounds, directory)
        return self

    def start(self, plan: Any, facts: Mapping[str, Any]) -> None:
        """Tell the head line's facts; the plan stays here."""
        self._tell("start", None, {name: facts[name] for name in SHOWN_FACTS if name in facts})

    def round(self, record: Any) -> None:
        """Tell a round."""
        shown = replace(record, metrics=plain(record.metrics), hashes={}, grids={}, observed=None)
        self._tell("round", shown)

    def evaluation(self, record: Any) -> None:
        """Tell an evaluation."""
        self._tell("evaluation", replace(record, metrics=plain(record.metrics), sites=plain(record.sites)))

    def finish(self, result: Any) -> None:
        """Tell that it is over; the result stays here."""
        self._tell("finish", None)

    def close(self, told: Mapping[str, Any], opening: str) -> None:
        """Tell what the run came to."""
        self._tell("close", plain(told), opening)

    def _tell(self, method: str, *content: Any) -> None:
        self._events.tell("tell", method, *content)


class _ToldPhases(logging.Handler):
    """Hand the phases of the start on to the command."""

    def __init__(self, events: Events) -> None:
        super().__init__()
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        self._events.tell("phase", record.getMessage())


def main(descriptor: int) -> None:
    """Run what the command asks for, over standard input, and tell it what happens."""
    events = Events(descriptor)
    asked, is_shown, phases_are_wanted = pickle.load(sys.stdin.buffer)  # from the command that started this
    is_over = threading.Event()
    threading.Thread(target=_end_with_the_command, args=(is_over,), daemon=True).start()
    if phases_are_wanted:
        phases.hand_to(_ToldPhases(events))
    phases.ended("process of the aggregator started")
    try:
        outcome = _train(asked, events, View(events) if is_shown else None, is_over)
        is_over.set()
        events.tell("done", outcome.stopped, plain(outcome.summary))
    except (FedrayError, KeyboardInterrupt) as error:
        is_over.set()
        events.tell("failed", error)
    except BaseException:
        is_over.set()
        events.tell("crashed")
        raise


def _train(asked: Asked, events: Events, view: View | None, is_over: threading.Event) -> Outcome:
    ray_start = importlib.import_module("fedray.runtime.ray_start")  # before the other thread wants the lock
    phases.ended("Ray imported")
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(_build, asked, events, is_over)
        settings, sites = asked.tree["runtime"], _sites(asked.tree, building)
        try:
            ray_start.start_ray(settings.get("address", "local"), settings.get("num_cpus"), sites)
        except FedrayError as error:  # told at once, while the experiment is still being built
            is_over.set()
            events.tell("refused", error)
            raise
        phases.ended("Ray started")
        experiment = building.result()
    return run(asked, experiment, view, here=True)


def _sites(tree: Mapping[str, Any], building: "Future[Any]") -> Callable[[], Mapping[str, Any]]:
    """Return a function that waits for the experiment, and returns the sites of a site map whose data must be
    on their nodes; none without a map.
    """
    path = tree["runtime"].get("site_map")
    if path is None:
        return dict
    from fedray.cluster import node_data
    from fedray.cluster.site_map import SiteMap

    sites = SiteMap.read(path).sites
    return lambda: node_data.read_there(building.result().data, sites)


def _build(asked: Asked, events: Events, is_over: threading.Event) -> Any:
    """Build the experiment; what is wrong with it is told at once, while Ray still starts."""
    try:
        return build(asked)
    except FedrayError as error:
        is_over.set()
        events.tell("refused", error)
        raise


def _end_with_the_command(is_over: threading.Event) -> None:
    """Stop when the command has cut the life line, or is gone: after the round, at once, and by force."""
    while os.read(0, 1):
        pass
    limit = time.monotonic() + MOST_PATIENCE_S
    while time.monotonic() < limit:
        if not is_over.is_set():
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(PATIENCE_S)
    os.kill(os.getpid(), signal.SIGKILL)
