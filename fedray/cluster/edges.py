"""Edges: the bytes that cross from each host to the one above it in a round, counted on made-up rows.

The tree of hosts is built in this process with a made-up site in place of each real one, and a few rounds
run through the code that runs on a cluster: so what is counted is what will be sent, whatever the algorithm
and the passes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedray.runtime.federation import HostSpec
from fedray.runtime.host import Contribution, StageCall
from fedray.runtime.kept import sent_bytes
from fedray.runtime.pack import Pack
from fedray.runtime.plan import Plan
from fedray.runtime.region import Region
from fedray.runtime.round import Aggregator
from fedray.runtime.schedule import Synchronous
from fedray.runtime.sizes import Given
from fedray.runtime.training import Training
from fedray.runtime.transport import InProcess

ROUNDS = 3  # the first sends what later ones need not; later ones are equal where cohorts are


@dataclass(slots=True)
class Traffic:
    """Bytes of payload over one edge in one round."""

    down: int = 0
    up: int = 0
    messages: int = 0


@dataclass(frozen=True)
class Counted:
    """What a rehearsed round came to: traffic by (host above, host below)."""

    edges: Mapping[tuple[str, str], Traffic]

    def into(self, host: str) -> Traffic:
        """Return the traffic between a host and all below it."""
        below = [traffic for (above, _), traffic in self.edges.items() if above == host]
        return Traffic(*(sum(getattr(each, name) for each in below) for name in ("down", "up", "messages")))


@dataclass
class _Book:
    edges: dict[tuple[str, str], Traffic] = field(default_factory=dict)


class _Counting(Region):
    """A region that books what each host below it is sent and answers."""

    def __init__(self, name: str, specs: Sequence[HostSpec], book: _Book, data: Any) -> None:
        hosts = {spec.name: _host(spec, book, data) for spec in specs}
        super().__init__(name, {spec.name: spec.all_sites for spec in specs}, InProcess(hosts))
        self._book_of_edges = book

    def _book(self, name: str, part: StageCall, downlink: Any, answer: Contribution) -> None:
        super()._book(name, part, downlink, answer)
        traffic = self._book_of_edges.edges.setdefault((self.name, name), Traffic())
        traffic.down += sent_bytes(downlink) + answer.opened_bytes
        traffic.up += sum(answer.bytes_by_name().values())
        traffic.messages += 1


def _host(spec: HostSpec, book: _Book, data: Any) -> Pack | Region:
    if spec.children:
        return _Counting(spec.name, spec.children, book, data)
    return Pack(spec.name, dict.fromkeys(spec.sites, Given(data)), spec.group_size, allow_empty=True)


def count(
    plan: Plan, state: Any, blank: Any, specs: Sequence[HostSpec], schedule: Synchronous, seed: int = 0,
    rounds: int = ROUNDS,
) -> list[Counted]:  # fmt: skip
    """Return the traffic of the first rounds of a plan over a tree of hosts.

    `blank` is a made-up site. Raises what a round raises, QuorumError among it.
    """
    book = _Book()
    aggregator = Aggregator(_Counting("aggregator", specs, book, blank))
    aggregator.hello()
    aggregator.start(Training(plan, schedule, seed, "planning"), state)
    found = []
    for round in range(rounds):
        book.edges = {}
        aggregator.run_round(round)
        found.append(Counted(book.edges))
    aggregator.close()
    return found
