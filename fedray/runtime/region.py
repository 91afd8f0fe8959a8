"""Region: a host made of hosts. It asks its children, folds their answers, and starts lost ones again.

The aggregator holds one `Region` as the root of the tree, so two levels and ten levels are the same code.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from fedray.errors import LATE, HostError, SiteError
from fedray.runtime.checkpoint import Parts, Saved
from fedray.runtime.host import Commit, Contribution, Load, StageCall, folded, join
from fedray.runtime.kept import sent_bytes
from fedray.runtime.records import CallRecord
from fedray.runtime.totals import rounded
from fedray.runtime.transport import Lost, Transport

GRACE_S = 0.5  # a pack that notices the deadline itself gets this long to say so
KEPT_CALLS = 4096  # records of calls kept until they are taken, the newest
MAX_RESTARTS = 5  # of one host in one request


@dataclass(slots=True)
class _Child:
    """What a region knows of a host below it."""

    sites: tuple[str, ...]
    owed: list[Commit] = field(default_factory=list)  # commits that ride on the next call
    # calls since the last checkpoint
    journal: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    starts: int = 0  # how often it was started again


@dataclass(frozen=True, slots=True)
class _Away:
    """A call that nobody waits for yet."""

    host: str
    call: StageCall
    downlink: Any
    starts: int  # of the host when it was submitted


@dataclass(frozen=True, slots=True)
class Dealt:
    """A downlink that is not the same for all hosts: what each of them is sent, by name."""

    boxes: Mapping[str, Any]


def _sent(downlink: Any, name: str) -> Any:
    return downlink.boxes[name] if isinstance(downlink, Dealt) else downlink


def _entries(value: Mapping[str, Any], sites: Iterable[str]) -> dict[str, Any]:
    """Return the entries of some sites; one without an entry fails where it reads it."""
    found = {}
    for site in sites:
        with suppress(KeyError):
            found[site] = value[site]
    return found


class Region:
    """Hosts below, by name, each with its sites."""

    def __init__(self, name: str, children: Mapping[str, Sequence[str]], transport: Transport) -> None:
        self.name, self.transport = name, transport
        self.children = {child: _Child(tuple(sites)) for child, sites in children.items()}
        self.home = {site: child for child, sites in children.items() for site in sites}
        self.sites = tuple(self.home)
        self._asked: tuple[tuple[str, ...], list[str]] = ((), [])  # of a single host, the last time
        # prepare, hello and load calls, for a host that starts again
        self.setup: list[tuple[str, tuple[Any, ...]]] = []
        self.stateful: set[str] = set()  # plans whose sites keep state: only they are replayed
        self.rounding: set[str] = set()  # plans of which a region sends one rounded row: fold="regional"
        self.one_shot: set[str] = set()  # plans whose rounds are never replayed, whatever they keep
        self.restore: Saved | None = None
        self.calls: deque[CallRecord] = deque(maxlen=KEPT_CALLS)
        self.bytes_up: dict[str, int] = {}
        self.restarts = 0
        self._away: dict[Any, _Away] = {}

    def by_child(self, sites: Iterable[str]) -> dict[str, list[str]]:
        """Deal sites to the hosts that hold them; a host without one is not in it."""
        if len(self.children) == 1:
            if isinstance(sites, tuple) and sites == self._asked[0]:
                mine = self._asked[1]
            else:
                mine = [site for site in sites if site in self.home]
            if isinstance(sites, tuple):
                self._asked = (sites, mine)
            return dict.fromkeys(self.children, mine) if mine else {}
        found: dict[str, list[str]] = {}
        for site in sites:
            if site in self.home:
                found.setdefault(self.home[site], []).append(site)
        return found

    def hello(self) -> dict[str, int]:
        """Return the training rows of each site."""
        self.setup = [item for item in self.setup if item[0] != "hello"] + [("hello", ())]
        return {site: rows for found in self._all("hello").values() for site, rows in found.items()}

    def wait_for(self, num_sites: int, seconds: float) -> None:
        """Wait until hosts that hold `num_sites` sites answer. Raises HostError after `seconds`."""
        tickets = {self._submit(name, "hello"): len(child.sites) for name, child in self.children.items()}
        answered = 0
        for ticket, answer in self.transport.wait(list(tickets), seconds):
            answered += 0 if isinstance(answer, Lost) else tickets[ticket]
            if answered >= num_sites:
                return
        raise HostError(
            f"{answered} of {len(self.sites)} sites answered within {seconds:.0f} s and schedule.wait_for "
            f"asks for {num_sites}: start the missing ones, raise schedule.wait_s, or lower schedule.wait_for"
        )

    def blank(self) -> Any:
        """Return a made-up site: the columns of one site with zeros in a few rows."""
        return self._wait_one(next(iter(self.children)), "blank")

    def rehearse(self, asked: Any) -> Any:
        """Let a host try programs on made-up rows; what to try is put like a downlink."""
        return self._wait_one(next(iter(self.children)), "rehearse", asked)

    def prepare(self, transform: Any) -> None:
        """Pass every site's data through a function, where it lies."""
        self.setup.append(("prepare", (transform,)))
        self._all("prepare", transform)

    def load(self, load: Load) -> None:
        """Give every host a plan."""
        if load.is_start:
            self.setup = [item for item in self.setup if item[0] != "load"]
            self.restore, self.stateful, self._away = load.restore, set(), {}
            self.one_shot = set()
            for child in self.children.values():
                child.journal, child.owed = [], []
        if load.plan.slots:
            self.stateful.add(load.plan.digest)
        if load.plan.fold == "regional":
            self.rounding.add(load.plan.digest)
        if load.plan.is_one_shot:
            self.one_shot.add(load.plan.digest)
        self.setup.append(("load", (load,)))
        self._all("load", load)

    def commit(self, commits: Sequence[Commit]) -> None:
        """Tell every host below, now."""
        self.owe(commits)
        tickets = {self._submit(name, "commit", self._pay(name)): name for name in self.children}
        for ticket, answer in self.transport.wait(list(tickets), None):
            if isinstance(answer, Lost):
                self._revive(tickets[ticket])  # replays the journal, these commits among it

    def owe(self, commits: Sequence[Commit]) -> None:
        """Let commits ride on the next call of each host."""
        for commit in commits:
            parts = self.by_child(commit.counted)
            for name, child in self.children.items():
                child.owed.append(replace(commit, counted=frozenset(parts.get(name, ()))))

    def save(self, address: str, round: int) -> Parts:
        """Let every host write its sites' state; what was kept for replay is then not needed any more."""
        found = self._all("save", address, round)
        parts = {name: seal for part in found.values() for name, seal in part.items()}
        self.restore = (address, round, parts)
        for child in self.children.values():
            child.journal = []
        return parts

    def deal(
        self, downlink: Mapping[int, Any], scattered: Sequence[int], sites: Sequence[str]
    ) -> tuple[Any, int]:
        """Make a downlink readable by the hosts of some sites; return it, and the bytes that they are sent.

        Of the values `scattered`, {site: value}, a host is sent the entries of its own sites and no other.
        """
        parts = self.by_child(sites)
        if not scattered or len(self.children) == 1:
            return self.transport.put(downlink), len(parts) * sent_bytes(downlink)
        own = {
            name: {**downlink, **{index: _entries(downlink[index], asked) for index in scattered}}
            for name, asked in parts.items()
        }
        boxes = {name: self.transport.put(part) for name, part in own.items()}
        return Dealt(boxes), sum(sent_bytes(part) for part in own.values())

    def run(self, call: StageCall, downlink: Any) -> Contribution:
        """Ask the hosts that hold sites of the cohort and fold their answers to one partial sum a name."""
        answer = self.ask(call, downlink)
        if call.is_apart:
            return answer
        answer = folded(answer, call.exponents)
        if call.plan not in self.rounding:
            return answer
        sums = {name: tuple(map(rounded, parts)) for name, parts in answer.sums.items()}
        return replace(answer, sums=sums)

    def ask(self, call: StageCall, downlink: Any) -> Contribution:
        """Ask the hosts that hold sites of the cohort and put their answers side by side."""
        self.owe(call.commits)
        tickets: dict[Any, tuple[str, StageCall]] = {}
        for name, cohort in self.by_child(call.cohort).items():
            part = call.of(cohort, self._pay(name))
            if call.is_awaited:
                part = replace(part, deadline=None)
            ticket = self._submit(name, "run", part, _sent(downlink, name))
            tickets[ticket] = (name, replace(part, commits=()))
        parts = self._collect(call, downlink, tickets)
        return join(parts, call.exponents) if parts else Contribution(delivered=(), failures=())

    def send(self, call: StageCall, downlink: Any) -> None:
        """Ask a host for sites that it holds, and wait for nothing: `arrival` takes the answer."""
        self.owe(call.commits)
        ((name, cohort),) = self.by_child(call.cohort).items()
        self._send(name, call.of(cohort, self._pay(name)), downlink)

    def _send(self, name: str, part: StageCall, downlink: Any) -> None:
        ticket = self._submit(name, "run", part, downlink)
        self._away[ticket] = _Away(name, part.of(part.cohort, ()), downlink, self.children[name].starts)

    def _leave(self, tickets: Mapping[Any, tuple[str, StageCall]], downlink: Any) -> None:
        """Let `arrival` take the answers of hosts that are late."""
        for ticket, (name, part) in tickets.items():
            self._away[ticket] = _Away(name, part, _sent(downlink, name), self.children[name].starts)

    def arrival(self, timeout: float | None) -> tuple[StageCall | None, Contribution]:
        """Return the next answer to what was sent, with its call; no call where the time is over."""
        lost: dict[str, int] = {}
        while True:
            answered = next(iter(self.transport.wait(list(self._away), timeout)), None)
            if answered is None:
                return None, Contribution(delivered=(), failures=())
            away = self._away.pop(answered[0])
            if not isinstance(answered[1], Lost):
                self._book(away.host, away.call, away.downlink, answered[1])
                return away.call, answered[1]
            if away.starts == self.children[away.host].starts:  # else it was started again meanwhile
                lost[away.host] = lost.get(away.host, 0) + 1
                if lost[away.host] <= MAX_RESTARTS:
                    self._revive(away.host)
                if lost[away.host] > MAX_RESTARTS or away.call.plan in self.one_shot:
                    return away.call, _lost(away.call, f"host lost ({answered[1].reason})")
            self._send(away.host, away.call, away.downlink)

    def forget(self, site: str) -> None:
        """Wait no longer for what was sent to a site."""
        self._away = {ticket: away for ticket, away in self._away.items() if site not in away.call.cohort}

    def _collect(
        self, call: StageCall, downlink: Any, tickets: dict[Any, tuple[str, StageCall]]
    ) -> list[Contribution]:
        parts: list[Contribution] = []
        restarts = 0
        while tickets:
            answered = dict(self.transport.wait(list(tickets), self._patience(call)))
            for ticket, answer in answered.items():
                name, part = tickets.pop(ticket)
                if not isinstance(answer, Lost):
                    self._book(name, part, _sent(downlink, name), answer)
                    parts.append(answer)
                elif restarts >= MAX_RESTARTS:
                    parts.append(_lost(part, f"host lost ({answer.reason})"))
                elif part.plan in self.one_shot:  # its keys are gone, and noise is drawn once
                    parts.append(_lost(part, f"host lost ({answer.reason})"))
                    restarts += 1
                    self._revive(name)
                else:
                    restarts += 1
                    self._revive(name)
                    tickets[self._submit(name, "run", part, _sent(downlink, name))] = (name, part)
            if not answered:  # the deadline has passed: their sites are late
                if call.is_awaited:
                    self._leave(tickets, downlink)
                return parts + [_lost(part, LATE) for _, part in tickets.values()]
        return parts

    def _patience(self, call: StageCall) -> float | None:
        if call.deadline is None:
            return None
        return max(0.0, call.deadline - time.monotonic()) + GRACE_S

    def _pay(self, name: str) -> list[Commit]:
        """Return what is owed to a host, and keep it for a replay."""
        child = self.children[name]
        owed, child.owed = child.owed, []
        if owed and self.is_replaying:
            child.journal.append(("commit", (owed,)))
        return owed

    def _book(self, name: str, part: StageCall, downlink: Any, answer: Contribution) -> None:
        for lane, size in answer.bytes_by_name().items():
            self.bytes_up[lane] = self.bytes_up.get(lane, 0) + size
        if self.is_replaying and part.plan in self.stateful - self.one_shot:
            self.children[name].journal.append(("run", (part, downlink)))

    @property
    def is_replaying(self) -> bool:
        """Tell whether calls are kept: sites hold state, and a lost host can be started again."""
        return bool(self.stateful) and self.transport.can_restart

    def _submit(self, name: str, method: str, *args: Any) -> Any:
        ticket = self.transport.submit(name, method, *args)
        call = args[0] if args and isinstance(args[0], StageCall) else None
        self.calls.append(
            CallRecord(
                name,
                method,
                call.round if call else -1,
                call.stage if call else -1,
                call.attempt if call else 0,
                len(call.cohort) if call else 0,
                f"downlink {call.round}.{call.stage}" if call else "",
            )
        )
        return ticket

    def _all(self, method: str, *args: Any) -> dict[str, Any]:
        tickets = {self._submit(name, method, *args): name for name in self.children}
        found = {}
        for ticket, answer in self.transport.wait(list(tickets), None):
            name = tickets[ticket]
            found[name] = answer
            if isinstance(answer, Lost):
                self._revive(name)
                is_replayed = method in ("prepare", "load")
                found[name] = None if is_replayed else self._wait_one(name, method, *args)
        return found

    def _wait_one(self, name: str, method: str, *args: Any) -> Any:
        ticket = self._submit(name, method, *args)
        for _, answer in self.transport.wait([ticket], None):
            if isinstance(answer, Lost):
                raise HostError(
                    f"host {name} was lost ({answer.reason}) in {method}: see its log for why"
                )
            return answer
        raise HostError(f"host {name} gave no answer to {method}")

    def _revive(self, name: str) -> None:
        """Start a lost host: its plans, its sites' saved state, then every call since, which gives equal
        bits.
        """
        self.restarts += 1
        self.children[name].starts += 1
        self.transport.restart(name)
        self._set_up(name)
        for method, arguments in self.children[name].journal:
            self._wait_one(name, method, *arguments)

    def _set_up(self, name: str) -> None:
        for method, arguments in self.setup:
            is_start = method == "load" and arguments[0].is_start
            given = (replace(arguments[0], restore=self.restore),) if is_start else arguments
            self._wait_one(name, method, *given)

    def move(self, make: Callable[[], "Region"]) -> None:
        """Take the hosts of another region over, for the same sites: with plans and the sites' saved state.

        What sites keep must have been saved after the last call. The hosts before end first, so that no
        site's data is held twice.
        """
        self.transport.close()
        other = make()
        self.children, self.home, self.transport = other.children, other.home, other.transport
        for name in self.children:
            self._set_up(name)


def _lost(part: StageCall, kind: str) -> Contribution:
    failures = tuple(SiteError(site, part.round, part.stage, kind) for site in part.cohort)
    return Contribution(delivered=(), failures=failures)
