"""Ray as a transport: one `put` per stage, `ray.wait` in completion order, actors that start again.

Ray itself is started in ray_start.py.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions as ray_errors

from fedray.errors import ConfigError, HostError
from fedray.runtime import ray_faults
from fedray.runtime.federation import (
    PATIENCE_S,
    Federation,
    HostSpec,
    Topology,
    Tree,
    as_openers,
    declared_regions,
    made_inside,
    make_region,
)
from fedray.runtime.ray_actors import AggregatorActor, Box, with_control
from fedray.runtime.ray_faults import CLOSE_S, FETCH_S, GONE, START_S, Pulses, answered, cause_of, is_unsure
from fedray.runtime.ray_hosts import nowhere, start_hosts
from fedray.runtime.ray_progress import Progress
from fedray.runtime.ray_start import start_ray
from fedray.runtime.round import Aggregator
from fedray.runtime.shrinking import Shrinking, why
from fedray.runtime.transport import Lost

START_TIMEOUT_S = START_S
START_AGAIN_S = 30.0  # at least, for a process that was lost: importing torch on a busy machine takes ten
LOOK_S = 0.5  # that what was seen of the cluster's nodes holds good
RESTING_S, MOST_RESTING_S = 0.1, 2.0  # before a call is asked again: the first time, and at most


@dataclass(slots=True, eq=False)
class Call:
    """A call under way, and what is needed to ask it again under the same number."""

    host: str
    number: int
    method: str
    args: tuple[Any, ...]
    reference: Any
    unsure_since: float | None = None
    resting_s: float = RESTING_S
    resumes_at: float = 0.0


class RayTransport:
    """Hosts as actors, started here or handed over; what is started again belongs to this process."""

    can_restart = True
    placement = "actors"

    def __init__(self, specs: Sequence[HostSpec], actors: Mapping[str, Any] | None = None) -> None:
        self._actors = dict(actors) if actors is not None else start_hosts(specs)
        self._specs = {spec.name: spec for spec in specs}
        self._seen: tuple[float, set[str]] = (0.0, set())  # when nodes were looked at, and hosts without one
        self._boxes: dict[int, tuple[Any, Box]] = {}
        self._shrinking = Shrinking(specs)
        self._numbers = itertools.count(1)
        self._looks_at = 0.0  # for signs of life
        self.asked_again = 0
        self._pulses = Pulses(min((spec.patience_s for spec in specs), default=PATIENCE_S))
        self._again_s = max(START_AGAIN_S, self._pulses.patience_s)
        self._signs: dict[str, Any] = {}  # of life, asked of hosts that were started again
        for name in self._actors:
            self._pulses.starts(name)

    def put(self, value: Any) -> Box:
        """Put a value into the object store, once for all hosts."""
        return Box(ray.put(value))

    def submit(self, host: str, method: str, *args: Any) -> Call:
        """Start a call; plans and transforms are put once, however many hosts get them."""
        if method in ("load", "prepare") and not isinstance(args[0], Box):
            args = (self._put_once(args[0]),)
        if host not in self._actors:  # its node has come since it was to be started
            self.restart(host)
        number = next(self._numbers)
        return Call(host, number, method, args, self._actors[host].ask.remote(number, method, *args))

    def _put_once(self, value: Any) -> Box:
        if id(value) not in self._boxes:
            self._boxes = {id(value): (value, Box(ray.put(value)))}
        return self._boxes[id(value)][1]

    def wait(self, tickets: Sequence[Call], timeout: float | None) -> Iterator[tuple[Call, Any]]:
        """Yield (ticket, answer) in completion order until all have answered or the time is over.

        Without a time the wait ends too: a host that gives no sign of life is lost.
        """
        pending = {call.reference: call for call in tickets}
        limit = None if timeout is None else time.monotonic() + timeout
        resting: list[Call] = []
        while pending or resting:
            ready = self._ready(pending, resting, limit)
            for reference in ready:
                call = pending.pop(reference)
                answer = self._answer(call)
                if answer is call:
                    resting.append(call)
                else:
                    yield call, answer
            for call in self._silent(pending.values()):
                del pending[call.reference]
                yield call, Lost(call.host, self._why_lost(call.host))
            now = time.monotonic()
            if not ready and limit is not None and now >= limit:
                return
            for call in [call for call in resting if call.resumes_at <= now]:
                resting.remove(call)
                self.asked_again += 1
                call.reference = self._actors[call.host].ask.remote(call.number, call.method, *call.args)
                pending[call.reference] = call

    def _ready(self, pending: Mapping[Any, Call], resting: Sequence[Call], limit: float | None) -> list[Any]:
        """Return what has come in within a beat, or until the time is over or a call has rested."""
        ends = [time.monotonic() + self._pulses.beat_s, *(call.resumes_at for call in resting)]
        left = max(0.0, min(ends if limit is None else [*ends, limit]) - time.monotonic())
        if not pending:
            time.sleep(left)
            return []
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=left)
        return list(ready)

    def _silent(self, calls: Iterable[Call]) -> list[Call]:
        """Return the calls of hosts that have been silent for too long, looked at once a beat."""
        if time.monotonic() < self._looks_at:
            return []
        self._looks_at = time.monotonic() + self._pulses.beat_s
        calls = list(calls)
        alive = {host for host in {call.host for call in calls} if self._is_alive(host)}
        return [call for call in calls if call.host not in alive]

    def _is_alive(self, host: str) -> bool:
        return self.has_place(host) and self._pulses.is_within_patience(host, self._actors[host])

    def _why_lost(self, host: str) -> str:
        silence = f"no sign of life for {self._pulses.patience_s:g} s"
        return silence if self.has_place(host) else "its node is gone"

    def has_place(self, host: str) -> bool:
        """Tell whether a living node has what a host was placed by."""
        now = time.monotonic()
        if self._specs[host].place is not None and now - self._seen[0] > LOOK_S:
            self._seen = (now, nowhere(self._specs.values()))
        return host not in self._seen[1]

    def _answer(self, call: Call) -> Any:
        """Return the answer, or the call itself where it is to be asked again."""
        try:
            answer = ray.get(call.reference, timeout=FETCH_S)
        except ray_errors.RayTaskError as error:
            cause = cause_of(error)
            if not isinstance(cause, ray_errors.RayError):
                raise cause from None
            return self._unsure(call, cause)  # what it was sent could not be read there
        except ray_errors.RayError as error:
            if is_unsure(error):
                return self._unsure(call, error)
            if isinstance(error, GONE):
                reason = why(error)
                self._shrinking.lost(call.host, call.args[0] if call.args else None, reason)
                return Lost(call.host, reason)
            raise
        self._pulses.heard(call.host)
        return answer

    def _unsure(self, call: Call, error: Exception) -> Any:
        now = time.monotonic()
        call.unsure_since = now if call.unsure_since is None else call.unsure_since
        patience_s = self._pulses.patience_s
        if ray_faults.is_refused(error):
            patience_s = min(ray_faults.REFUSED_S, patience_s)
        if now - call.unsure_since > patience_s:
            return Lost(call.host, type(error).__name__)
        call.resumes_at = now + call.resting_s
        call.resting_s = min(MOST_RESTING_S, 2 * call.resting_s)
        return call

    def give_up(self, tickets: Sequence[Call]) -> None:
        """Tell hosts that nobody waits for these answers any more: they stop between two steps."""
        for call in tickets:
            self._actors[call.host].give_up.remote(call.number)

    def restart(self, host: str) -> None:
        """Start a lost host again, empty."""
        if host in self._actors:
            ray.kill(self._actors.pop(host))
        self._actors |= start_hosts([self._shrinking.spec_of(host)])
        self._signs.pop(host, None)
        self._pulses.starts(host, self._again_s)

    def is_there(self, host: str, seconds: float | None) -> bool:
        """Wait for a sign of life of a host that was started again; one that dies then is started anew."""
        limit = time.monotonic() + (self._again_s if seconds is None else seconds)
        while self._has_actor(host):
            ticket = self._signs.get(host)
            if ticket is None:
                ticket = self._signs[host] = self._actors[host].pulse.remote()
            left = max(0.0, limit - time.monotonic())
            ready, _ = ray.wait([ticket], timeout=min(left, self._pulses.beat_s))
            if ready:
                del self._signs[host]
                if answered(ticket):
                    self._pulses.heard(host)
                    return True
                self.restart(host)
            if time.monotonic() >= limit:
                break
            time.sleep(min(RESTING_S, left))
        return False

    def _has_actor(self, host: str) -> bool:
        """Tell whether a host has an actor, after one was started where its node has come; Ray would let one
        whose node has gone wait for it.
        """
        if not self.has_place(host):
            if host in self._actors:
                ray.kill(self._actors.pop(host))
            self._signs.pop(host, None)
        elif host not in self._actors:
            self.restart(host)
        return host in self._actors

    def now(self) -> float:
        """Return the wall clock."""
        return time.monotonic()

    def advance(self, seconds: float) -> None:
        """Refuse: real time cannot be moved."""
        raise HostError("a latency model needs the simulated clock: use runtime='in_process'")

    def pids(self) -> dict[str, int]:
        """Return each host's process id."""
        return dict(
            zip(
                self._actors,
                ray.get([actor.pid.remote() for actor in self._actors.values()], timeout=START_TIMEOUT_S),
                strict=True,
            )
        )

    def nodes(self) -> dict[str, str]:
        """Return the id of the node that each host is on."""
        return dict(
            zip(
                self._actors,
                ray.get([actor.node.remote() for actor in self._actors.values()], timeout=START_TIMEOUT_S),
                strict=True,
            )
        )

    def places(self) -> dict[str, str]:
        """Return the id of the node that each site is on."""
        found = ray.get([actor.places.remote() for actor in self._actors.values()], timeout=START_TIMEOUT_S)
        return {site: node for places in found for site, node in places.items()}

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors.values():
            ray.kill(actor)


def make_transport(specs: Sequence[HostSpec]) -> RayTransport:
    """Make the transport of an aggregator or a region."""
    return RayTransport(specs)


class RemoteAggregator:
    """The driver's handle on the aggregator actor: every method is a call, answers come back or errors are
    raised.
    """

    def __init__(self, specs: Sequence[HostSpec], regions: Mapping[str, str], placement: str) -> None:
        # the first hosts are started from here, so that they come up beside the aggregator and not after it
        self._hosts = start_hosts(specs)
        start = with_control(AggregatorActor).options(num_cpus=0).remote
        self._actor: Any = start(list(specs), dict(regions), self._hosts, placement)
        self._pulses = Pulses(min((spec.patience_s for spec in specs), default=PATIENCE_S))
        self._pulses.starts("aggregator")
        self._progress = Progress(self._actor)

    def progress(self) -> dict[str, Any]:
        """See `AttachedAggregator.progress`."""
        return self._progress()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)

        def call(*args: Any) -> Any:
            return self._get(self._actor.call.remote(method, *args))

        return call

    def _get(self, ticket: Any) -> Any:
        try:
            while not ray.wait([ticket], timeout=self._pulses.beat_s)[0]:
                if not self._pulses.is_within_patience("aggregator", self._actor):
                    raise HostError(
                        f"the aggregator gives no sign of life for {self._pulses.patience_s:g} s: go on with "
                        "`fedray resume`, or fit(..., resume=True)"
                    )
            answer = ray.get(ticket, timeout=FETCH_S)
        except ray_errors.RayTaskError as error:
            raise cause_of(error) from None
        except GONE as error:
            raise HostError(
                f"the aggregator's process is gone ({type(error).__name__}): go on with `fedray resume`, "
                "or fit(..., resume=True)"
            ) from error
        self._pulses.heard("aggregator")
        return answer

    def pids(self) -> dict[str, int]:
        """Return the process ids of the aggregator and its hosts."""
        found: dict[str, int] = self._get(self._actor.pids.remote())
        return found

    def nodes(self) -> dict[str, str]:
        """Return the id of the node that each host is on."""
        found: dict[str, str] = self._get(self._actor.nodes.remote())
        return found

    def close(self) -> None:
        """End the aggregator and its hosts."""
        ticket = self._actor.call.remote("close")
        try:
            if ray.wait([ticket], timeout=CLOSE_S)[0]:
                self._get(ticket)
        finally:
            for actor in (self._actor, *self._hosts.values()):
                ray.kill(actor)


def _num_cpus() -> int:
    resources: Any = ray.cluster_resources  # untyped in Ray
    return int(resources().get("CPU", 2))


def aggregator_here(specs: Sequence[HostSpec], regions: Mapping[str, str], placement: str) -> Aggregator:
    """Make an aggregator in this process whose hosts are actors."""
    root = make_region("aggregator", specs, make_transport)
    return Aggregator(root, regions, make_inside=made_inside(specs, placement))


def federate(
    data: Mapping[str, Callable[[], Any]],
    topology: Topology,
    layout: Tree | None,
    address: str,
    regions: Mapping[str, str],
    num_cpus: int | None,
    aggregator: Callable[[Sequence[HostSpec], Mapping[str, str], str], Any] = RemoteAggregator,
) -> Federation:
    """Make a federation of Ray actors: an aggregator, and packs and regions below it."""
    if ":" in topology.device:
        raise ConfigError(
            f"device={topology.device!r}: Ray deals the GPUs out to its actors. Fix: runtime.device=cuda"
        )
    start_ray(address, num_cpus)
    cpus = max(2, _num_cpus())
    specs = topology.specs(data, layout, cpus)
    made = aggregator(specs, regions, topology.placement)
    return Federation(made, specs, tuple(data), "ray", regions=regions)


def federate_here(
    data: Mapping[str, Any],
    address: str,
    *,
    packs: int | None = None,
    sites_per_actor: int | None = None,
    regions: Tree | None = None,
    group_size: int = 256,
    allow_empty: bool = False,
    num_cpus: int | None = None,
    device: str = "cpu",
    placement: str = "actors",
    patience_s: float = PATIENCE_S,
) -> Federation:
    """Run every site on Ray with the aggregator in this process; options as in `simulate` and `connect`.

    For a process that does nothing else: it holds the server's state, and its `fit` sees every byte of it.
    """
    topology = Topology(packs, sites_per_actor, group_size, allow_empty, device, placement, patience_s)
    declared = declared_regions(data, regions)
    return federate(as_openers(data), topology, regions, address, declared, num_cpus, aggregator_here)
