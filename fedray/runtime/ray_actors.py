"""The Ray actors: hosts (packs and regions) and the aggregator. Thin shells around the classes that do the
work.

An aggregator or a region owns the actors of its children, so all of them end with it. A host's actor has one
thread for torch, reads the downlink from the object store without a copy, and answers with one record.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray

from fedray import tree
from fedray.runtime.checkpoint import Parts
from fedray.runtime.federation import HostSpec, made_inside, make_host, make_region
from fedray.runtime.host import Contribution, Load, StageCall
from fedray.runtime.notes import NoteHandler
from fedray.runtime.observed import Span, Stamps, clock
from fedray.runtime.pack import Pack
from fedray.runtime.ray_faults import FETCH_S
from fedray.runtime.ray_relay import Relay
from fedray.runtime.revival import reset
from fedray.runtime.round import Aggregator

CONTROL = "control"  # the group of methods that answer while a round is being worked on


def with_control(actor: type) -> Any:
    """Return Ray's class of an actor, whose signs of life do not wait for its work."""
    options: dict[str, Any] = {"concurrency_groups": {CONTROL: 1}}  # a word that Ray's types leave out
    return ray.remote(**options)(actor)


class Box:
    """A reference to a value that was put once for all readers; it hides the reference from Ray's own
    resolving.
    """

    __slots__ = ("reference",)

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def open(self) -> Any:
        """Read the value."""
        return ray.get(self.reference, timeout=FETCH_S)


class HostActor:
    """One pack or one region in a process of its own."""

    def __init__(self, spec: HostSpec) -> None:
        from fedray.runtime.ray_transport import make_transport

        self._spec = spec
        self._host: Any = make_host(spec, make_transport)
        self._relay = Relay()
        self._number = 0  # of the call that is being worked on, or was
        self._given_up: set[int] = set()
        self._last: tuple[int, Any] = (0, None)
        self._notes = NoteHandler(spec.name).attach()
        self._let_be_given_up()

    def _let_be_given_up(self) -> None:
        if isinstance(self._host, Pack):
            self._host.is_given_up = lambda: self._number in self._given_up

    def reset(self) -> bool:
        """Hold the sites as new: for another driver, which prepares their data itself."""
        if not isinstance(self._host, Pack):
            return reset(self._host)
        self._host = make_host(self._spec, lambda _: None)
        self._let_be_given_up()
        return True

    def ask(self, number: int, method: str, *args: Any) -> Any:
        """Call a method; a call that comes again under its number is answered as it was, and not run again.

        Ray may tell its caller that a call "may or may not have been executed".
        """
        if self._last[0] != number:
            self._number, self._last = number, (0, None)  # before it runs: answers are large
            self._last = (number, getattr(self, method)(*args))
            self._given_up = {later for later in self._given_up if later > number}
        return self._last[1]

    @ray.method(concurrency_group=CONTROL)
    def pulse(self) -> int:
        """Give a sign of life: the process id."""
        return os.getpid()

    @ray.method(concurrency_group=CONTROL)
    def give_up(self, number: int) -> None:
        """Note that nobody waits for a call any more."""
        if number >= self._number:
            self._given_up = {*self._given_up, number}

    def hello(self) -> dict[str, int]:
        """See `Host.hello`."""
        return dict(self._host.hello())

    def blank(self) -> Any:
        """Return a made-up site: the columns of one site with zeros in a few rows."""
        return self._host.blank()

    def rehearse(self, asked: Box) -> Any:
        """See `Host.rehearse`."""
        return self._host.rehearse(asked.open() if isinstance(self._host, Pack) else asked)

    def prepare(self, transform: Box) -> None:
        """See `Host.prepare`."""
        self._host.prepare(transform.open())

    def load(self, load: Box | Load) -> None:
        """See `Host.load`."""
        self._host.load(load.open() if isinstance(load, Box) else load)

    def run(self, call: StageCall, downlink: Box) -> Contribution:
        """See `Host.run`."""
        received = clock()
        with tree.sharing():
            opened = downlink.open()
        down = Span(self._host.name, "downlink", received, clock(), call.round, call.stage)
        if isinstance(self._host, Pack):
            answer: Contribution = self._host.run(call, opened)
            spans = (down, *answer.spans)
        else:
            answer = self._relay.counted(self._host.run(call, self._relay.box(downlink, opened, Box)))
            spans = answer.spans
        notes = (*answer.notes, *self._notes.take())
        return replace(answer, spans=spans, notes=notes, stamps=Stamps(received, clock()))

    def commit(self, commits: Sequence[Any]) -> None:
        """See `Host.commit`."""
        self._host.commit(commits)

    def save(self, address: str, round: int) -> Parts:
        """See `Host.save`."""
        parts: Parts = self._host.save(address, round)
        return parts

    def pid(self) -> int:
        """Return the process id."""
        return os.getpid()

    def node(self) -> str:
        """Return the id of the Ray node that this process is on."""
        return str(ray.get_runtime_context().get_node_id())

    def places(self) -> dict[str, str]:
        """Return the id of the node that each site is on."""
        if isinstance(self._host, Pack):
            return dict.fromkeys(self._host.sites, self.node())
        return dict(self._host.transport.places())


class AggregatorActor:
    """The aggregator of a simulation, in a process of its own that ends with the driver's; its methods are
    called by name.
    """

    def __init__(
        self, specs: Sequence[HostSpec], regions: Mapping[str, str], actors: Mapping[str, Any], placement: str
    ) -> None:
        from fedray.runtime.ray_transport import RayTransport

        root = make_region("aggregator", specs, lambda _: RayTransport(specs, actors))
        self._aggregator = Aggregator(root, regions, make_inside=made_inside(specs, placement))
        self._notes = NoteHandler("aggregator").attach()

    @ray.method(concurrency_group=CONTROL)
    def pulse(self) -> int:
        """Give a sign of life: the process id."""
        return os.getpid()

    @ray.method(concurrency_group=CONTROL)
    def progress(self) -> dict[str, Any]:
        """Return what is being done now."""
        return self._aggregator.progress()

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the aggregator."""
        return self._notes.onto(getattr(self._aggregator, method)(*args))

    def pids(self) -> dict[str, int]:
        """Return the process ids of the aggregator and of its hosts, by name (tests and `status`)."""
        return {"aggregator": os.getpid(), **self._of_hosts("pids", os.getpid())}

    def nodes(self) -> dict[str, str]:
        """Return the id of the node that each host is on."""
        return self._of_hosts("nodes", str(ray.get_runtime_context().get_node_id()))

    def _of_hosts(self, method: str, here: Any) -> dict[str, Any]:
        """Ask the transport about its actors; hosts that have moved in are here."""
        root = self._aggregator.root
        if root.transport.placement == "aggregator":
            return dict.fromkeys(root.children, here)
        return dict(getattr(root.transport, method)())
