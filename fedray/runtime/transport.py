"""How calls reach hosts. A `Transport` owns its hosts: it can start one again after it was lost."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedray.errors import HostError
from fedray.runtime.schedule import Latency

Ticket = Any


@dataclass(frozen=True, slots=True)
class Lost:
    """The answer of a host that is gone."""

    host: str
    reason: str


class Transport(Protocol):
    """Calls to named hosts, answered in completion order. `can_restart` tells whether a lost host can come
    back.
    """

    can_restart: bool
    placement: str  # of its hosts: "actors" or, in the process that calls them, "aggregator"

    def put(self, value: Any) -> Any:
        """Make a value readable by all hosts, once."""
        ...

    def get(self, box: Any) -> Any:
        """Read what `put` returned."""
        ...

    def submit(self, host: str, method: str, *args: Any) -> Ticket:
        """Start a call."""
        ...

    def wait(self, tickets: Sequence[Ticket], timeout: float | None) -> Iterator[tuple[Ticket, Any]]:
        """Yield (ticket, answer) as answers come in; a lost host's answer is `Lost`; stop at the time-out."""
        ...

    def has_place(self, host: str) -> bool:
        """Tell whether there is a node that a host may run on."""
        ...

    def give_up(self, tickets: Sequence[Ticket]) -> None:
        """Tell hosts that nobody waits for these answers any more: they stop where they can."""
        ...

    def restart(self, host: str) -> None:
        """Start a lost host again, empty; it may take a while until it is there."""
        ...

    def is_there(self, host: str, seconds: float | None) -> bool:
        """Wait for a host that was started again to give a sign of life; None waits as long as silence is
        borne.
        """
        ...

    def now(self) -> float:
        """Seconds: wall clock or simulated."""
        ...

    def advance(self, seconds: float) -> None:
        """Move the simulated clock."""
        ...

    def close(self) -> None:
        """End every host that this transport started."""
        ...


class InProcess:
    """Hosts in this process; a call runs when it is submitted. With a latency model, time is simulated."""

    can_restart = False
    placement = "aggregator"

    def __init__(self, hosts: dict[str, Any], latency: Latency | None = None) -> None:
        self.hosts, self.latency = hosts, latency
        self.simulated_s = 0.0
        self._answers: dict[int, Any] = {}
        self._numbers = itertools.count()

    def put(self, value: Any) -> Any:
        """Return the value itself."""
        return value

    def get(self, box: Any) -> Any:
        """Return the value itself."""
        return box

    def submit(self, host: str, method: str, *args: Any) -> Ticket:
        """Run the call now."""
        ticket = next(self._numbers)
        self._answers[ticket] = getattr(self.hosts[host], method)(*args)
        return ticket

    def wait(self, tickets: Sequence[Ticket], timeout: float | None) -> Iterator[tuple[Ticket, Any]]:
        """Yield the answers."""
        yield from ((ticket, self._answers.pop(ticket)) for ticket in tickets)

    def has_place(self, host: str) -> bool:
        """Tell that there is one: it shares this process."""
        return True

    def give_up(self, tickets: Sequence[Ticket]) -> None:
        """Forget the answers."""
        for ticket in tickets:
            self._answers.pop(ticket, None)

    def is_there(self, host: str, seconds: float | None) -> bool:
        """Tell that it is: it shares this process."""
        return True

    def restart(self, host: str) -> None:
        """Refuse: a host in this process is lost with the process."""
        raise HostError(f"host {host} shares the process of its aggregator and cannot be started again")

    def now(self) -> float:
        """Return the wall clock, or the simulated one where there is a latency model."""
        return time.monotonic() if self.latency is None else self.simulated_s

    def advance(self, seconds: float) -> None:
        """Move the simulated clock."""
        self.simulated_s += seconds

    def close(self) -> None:
        """Nothing was started."""
