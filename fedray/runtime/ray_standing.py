"""The aggregator of a run on a cluster: an actor that outlives its driver, and owns the actors of its hosts.

Ray starts it again where its process dies, empty, as `life` tells; its driver then makes it what it was. See
ray_attach.py for the driver's side, and docs/faults.md for who dies and what happens.
"""

import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions as ray_errors

from fedray.errors import HostError
from fedray.runtime.federation import HostSpec, make_region
from fedray.runtime.lease import Driver, Lease, Taken
from fedray.runtime.ray_actors import CONTROL
from fedray.runtime.ray_transport import make_transport
from fedray.runtime.revival import reset
from fedray.runtime.round import Aggregator
from fedray.runtime.standing import Standing

log = logging.getLogger(__name__)
NAMESPACE, PREFIX = "fedray", "fedray-"
MOST_LOOK_S = 30.0  # between two looks for a driver
UNBEGUN_S = 300.0  # without a driver, before it has begun to train: there is nothing to resume
ASKED_S = 5.0  # for an answer about a run
WITHOUT = "(a run without a name)"


class Emptied(HostError):
    """The aggregator's process was started again, and knows nothing of the run."""


@dataclass(frozen=True, slots=True)
class Attached:
    """What a driver finds: the life of the process, and the layout of its hosts, "" where it has none."""

    life: str
    layout: str


def name_of(run: str) -> str:
    """Return the name under which Ray knows a run's aggregator."""
    return f"{PREFIX}{run}"


class StandingActor:
    """The aggregator in a process of its own; its methods are called by name, by one driver at a time."""

    def __init__(self, run: str, lapse_s: float, abandoned_s: float) -> None:
        self._run, self._life = run, uuid.uuid4().hex
        self._lease = Lease(run or WITHOUT, lapse_s)
        self._standing: Standing | None = None
        self._specs: list[HostSpec] = []
        self._layout = ""
        self._last: tuple[str, Any] = ("", None)
        self._has_begun = False
        if run:
            threading.Thread(target=self._end_when_abandoned, args=(abandoned_s,), daemon=True).start()

    def _end_when_abandoned(self, abandoned_s: float) -> None:
        """End this actor, for good, once no driver has been heard for a long time."""
        quiet = threading.Event()
        while not quiet.wait(min(MOST_LOOK_S, abandoned_s / 4)):
            limit_s = abandoned_s if self._has_begun else min(abandoned_s, UNBEGUN_S)
            if self._lease.silent_s > limit_s:
                log.warning("no driver of %s for %g s: its aggregator ends", self._run, limit_s)
                with contextlib.suppress(ValueError):  # somebody else has just ended it
                    ray.kill(ray.get_actor(name_of(self._run), NAMESPACE), no_restart=True)
                return

    @ray.method(concurrency_group=CONTROL)
    def pulse(self, driver_id: str = "") -> str:
        """Give a sign of life, and take one of the driver."""
        self._lease.renew(driver_id)
        return self._life

    @ray.method(concurrency_group=CONTROL)
    def attach(self, driver: Driver) -> Attached:
        """Let a driver take the run. Raises Taken, which names the other, where that is alive."""
        self._lease.take(driver)
        return Attached(self._life, self._layout)

    @ray.method(concurrency_group=CONTROL)
    def facts(self) -> dict[str, Any]:
        """Return who drives it and since when it has not been heard, for a list of what is left."""
        holder = self._lease.holder
        title = holder.title if holder else ""
        silent_s, is_driven = self._lease.silent_s, self._lease.is_alive
        return {"driver": title, "silent_s": silent_s, "is_driven": is_driven, "pid": os.getpid()}

    @ray.method(concurrency_group=CONTROL)
    def progress(self) -> dict[str, Any]:
        """Return what is being done now, {} before there are hosts; nobody is asked for it."""
        return self._standing.aggregator.progress() if self._standing is not None else {}

    def build(
        self, driver_id: str, life: str, specs: Sequence[HostSpec], regions: Mapping[str, str], layout: str
    ) -> None:
        """Make the hosts, as new: what was done is in a checkpoint by then, as far as it can be.

        Hosts of the same layout stay; they open their data again.
        """
        self._check(driver_id, life)
        root = None
        if self._standing is not None:
            self._standing.hand_over()
            root = self._standing.aggregator.root if layout == self._layout else None
            if root is None or not reset(root):
                self._standing.call("close")
                root = None
        if root is None:
            root = make_region("aggregator", specs, make_transport)
        aggregator = Aggregator(root, regions)
        if self._standing is None:
            self._standing = Standing(aggregator)
        else:
            self._standing.aggregator = aggregator
        self._layout = layout

    def call(self, driver_id: str, life: str, number: str, method: str, *args: Any) -> Any:
        """Call a method of the aggregator; a call that comes again is answered as it was, and not run again.

        Raises Emptied where the process is not the one that the driver means.
        """
        self._check(driver_id, life)
        if self._standing is None:
            raise Emptied("the aggregator has no hosts yet")
        if self._last[0] != number:
            self._has_begun |= method == "start"
            self._last = ("", None)
            self._last = (number, self._standing.call(method, *args))
        return self._last[1]

    def _check(self, driver_id: str, life: str) -> None:
        is_another = life != self._life
        if not (is_another and self._lease.holder is None):
            self._lease.check(driver_id)
        if is_another:
            raise Emptied("the aggregator's process was started again")

    def pids(self) -> dict[str, int]:
        """Return the process ids of the aggregator and of its hosts, by name (tests and `status`)."""
        return {"aggregator": os.getpid(), **self._of_hosts("pids")}

    def nodes(self) -> dict[str, str]:
        """Return the id of the node that each host is on."""
        return self._of_hosts("nodes")

    def asked_again(self) -> int:
        """Return how many calls of hosts were asked again: see `AttachedAggregator.asked_again`."""
        if self._standing is None:
            return 0
        return int(getattr(self._standing.aggregator.root.transport, "asked_again", 0))

    def places(self) -> dict[str, str]:
        """Return the id of the node that each site is on."""
        return self._of_hosts("places")

    def _of_hosts(self, method: str) -> dict[str, Any]:
        if self._standing is None:
            return {}
        return dict(getattr(self._standing.aggregator.root.transport, method)())


def leftovers() -> dict[str, dict[str, Any]]:
    """Return the runs whose aggregator is on this cluster: who drives it, and for how long nobody has.

    Ray must have been started or joined: see `start_ray`.
    """
    listed: Any = ray.util.list_named_actors
    names = [entry["name"] for entry in listed(all_namespaces=True) if entry["namespace"] == NAMESPACE]
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(name for name in names if name.startswith(PREFIX)):
        run = name.removeprefix(PREFIX)
        try:
            found[run] = dict(ray.get(ray.get_actor(name, NAMESPACE).facts.remote(), timeout=ASKED_S))
        except (ray_errors.RayError, ValueError) as error:
            found[run] = {"driver": "", "silent_s": None, "error": type(error).__name__}
    return found


def stop(run: str, force: bool = False) -> None:
    """End the aggregator of a run and its hosts, for good.

    Raises HostError where there is none; Taken, which names the driver, where that was heard a moment ago,
    unless by force. An aggregator that does not answer is ended.
    """
    try:
        actor = ray.get_actor(name_of(run), NAMESPACE)
    except ValueError as error:
        raise HostError(
            f"no aggregator of a run {run!r} is on this cluster: it has ended, or it has another name"
        ) from error
    if not force:
        with contextlib.suppress(ray_errors.RayError):
            _require_undriven(run, dict(ray.get(actor.facts.remote(), timeout=ASKED_S)))
    ray.kill(actor, no_restart=True)


def _require_undriven(run: str, facts: Mapping[str, Any]) -> None:
    if facts["is_driven"]:
        raise Taken(
            f"the run {run} is driven by {facts['driver']}, which gave a sign of life "
            f"{facts['silent_s']:.1f} s ago. Fix: end that one, or fedray cluster stop {run} --force"
        )
