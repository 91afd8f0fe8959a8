"""Ray as a transport: one `put` per stage, `ray.wait` in completion order, actors that start again.

Ray itself is started in ray_start.py.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray import exceptions as ray_errors

from fedray.errors import ConfigError, HostError
from fedray.runtime.federation import (
    Federation,
    HostSpec,
    Topology,
    Tree,
    as_openers,
    declared_regions,
    made_inside,
    make_region,
)
from fedray.runtime.host import StageCall
from fedray.runtime.ray_actors import AggregatorActor, Box
from fedray.runtime.ray_hosts import start_hosts
from fedray.runtime.ray_start import start_ray
from fedray.runtime.round import Aggregator
from fedray.runtime.shrinking import Shrinking, why
from fedray.runtime.transport import Lost

START_TIMEOUT_S = 300.0
GONE = (
    ray_errors.RayActorError,
    ray_errors.ActorUnavailableError,
    ray_errors.NodeDiedError,
    ray_errors.WorkerCrashedError,
    ray_errors.ObjectLostError,
    ray_errors.OwnerDiedError,
)


class RayTransport:
    """Hosts as actors, started here or handed over; what is started again belongs to this process."""

    can_restart = True
    placement = "actors"

    def __init__(self, specs: Sequence[HostSpec], actors: Mapping[str, Any] | None = None) -> None:
        self._actors = dict(actors) if actors else start_hosts(specs)
        self._boxes: dict[int, tuple[Any, Box]] = {}
        self._shrinking = Shrinking(specs)
        self._asked: dict[Any, tuple[str, Any]] = {}  # ticket -> host and stage call

    def put(self, value: Any) -> Box:
        """Put a value into the object store, once for all hosts."""
        return Box(ray.put(value))

    def submit(self, host: str, method: str, *args: Any) -> Any:
        """Start a call; plans and transforms are put once, however many hosts get them."""
        if method in ("load", "prepare") and not isinstance(args[0], Box):
            args = (self._put_once(args[0]),)
        ticket = getattr(self._actors[host], method).remote(*args)
        self._asked[ticket] = (host, args[0] if args and isinstance(args[0], StageCall) else None)
        return ticket

    def _put_once(self, value: Any) -> Box:
        if id(value) not in self._boxes:
            self._boxes = {id(value): (value, Box(ray.put(value)))}
        return self._boxes[id(value)][1]

    def wait(self, tickets: Sequence[Any], timeout: float | None) -> Iterator[tuple[Any, Any]]:
        """Yield (ticket, answer) in completion order until all have answered or the time is over."""
        pending = list(tickets)
        limit = None if timeout is None else time.monotonic() + timeout
        while pending:
            left = None if limit is None else max(0.0, limit - time.monotonic())
            ready, pending = ray.wait(pending, num_returns=1, timeout=left)
            if not ready:
                return
            for ticket in ready:
                yield ticket, self._answer(ticket)

    def _answer(self, ticket: Any) -> Any:
        host, call = self._asked.pop(ticket)
        try:
            return ray.get(ticket)
        except GONE as error:
            self._shrinking.lost(host, call, why(error))
            return Lost(host, why(error))
        except ray_errors.RayTaskError as error:
            raise _cause(error) from None

    def restart(self, host: str) -> None:
        """Start a lost host again, empty."""
        ray.kill(self._actors[host])
        self._actors |= start_hosts([self._shrinking.spec_of(host)])

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

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors.values():
            ray.kill(actor)


def make_transport(specs: Sequence[HostSpec]) -> RayTransport:
    """Make the transport of an aggregator or a region."""
    return RayTransport(specs)


def _cause(error: Exception) -> BaseException:
    """Return what the remote function raised, with Ray's wrapping removed."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


class RemoteAggregator:
    """The driver's handle on the aggregator actor: every method is a call, answers come back or errors are
    raised.
    """

    def __init__(self, specs: Sequence[HostSpec], regions: Mapping[str, str], placement: str) -> None:
        # the first hosts are started from here, so that they come up beside the aggregator and not after it
        self._hosts = start_hosts(specs)
        start = ray.remote(AggregatorActor).options(num_cpus=0).remote
        self._actor: Any = start(list(specs), dict(regions), self._hosts, placement)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)

        def call(*args: Any) -> Any:
            return self._get(self._actor.call.remote(method, *args))

        return call

    def _get(self, ticket: Any) -> Any:
        try:
            return ray.get(ticket)
        except ray_errors.RayTaskError as error:
            raise _cause(error) from None
        except GONE as error:
            raise HostError(
                f"the aggregator's process is gone ({type(error).__name__}): go on with `fedray resume`, "
                "or fit(..., resume=True)"
            ) from error

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
        try:
            self._get(self._actor.call.remote("close"))
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
) -> Federation:
    """Run every site on Ray with the aggregator in this process; options as in `simulate` and `connect`.

    For a process that does nothing else: it holds the server's state, and its `fit` sees every byte of it.
    """
    topology = Topology(packs, sites_per_actor, group_size, allow_empty, device, placement)
    declared = declared_regions(data, regions)
    return federate(as_openers(data), topology, regions, address, declared, num_cpus, aggregator_here)
