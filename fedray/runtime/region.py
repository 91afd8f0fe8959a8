"""Region: a host made of hosts. It asks its children, folds their answers, and starts lost ones again.

The aggregator holds one `Region` as the root of the tree, so two levels and ten levels are the same code.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedray.errors import AWAY, LATE, HostError, StorageError
from fedray.runtime.checkpoint import Parts, Saved
from fedray.runtime.children import (
    HOST_LOST,
    Away,
    Child,
    Dealt,
    HostLost,
    Losses,
    entries,
    lost,
    sent_to,
)
from fedray.runtime.host import Commit, Contribution, Load, StageCall, folded, join
from fedray.runtime.kept import sent_bytes
from fedray.runtime.records import CallRecord
from fedray.runtime.revival import GLANCE_S, MAX_RESTARTS, revive, told, wait_for, without
from fedray.runtime.totals import rounded
from fedray.runtime.transport import Lost, Transport

GRACE_S = 0.5  # a pack that notices the deadline itself gets this long to say so
KEPT_CALLS = 4096  # records of calls kept until they are taken, the newest
FIRST_STAGE = 1


class Region:
    """Hosts below, by name, each with its sites."""

    def __init__(self, name: str, children: Mapping[str, Sequence[str]], transport: Transport) -> None:
        self.name, self.transport = name, transport
        self.children = {child: Child(tuple(sites)) for child, sites in children.items()}
        self.home = {site: child for child, sites in children.items() for site in sites}
        self.sites = tuple(self.home)
        self._asked: tuple[tuple[str, ...], list[str]] = ((), [])  # of a single host, the last time
        # prepare, hello and load calls, for a host that starts again
        self.setup: list[tuple[str, tuple[Any, ...]]] = []
        self.stateful: set[str] = set()  # plans whose sites keep state: only they are replayed
        self.rounding: set[str] = set()  # plans of which a region sends one rounded row: fold="regional"
        self.staged: set[str] = set()  # plans whose sites are asked several times in a round
        self.one_shot: set[str] = set()  # plans whose rounds are never replayed, whatever they keep
        self.restore: Saved | None = None
        self.calls: deque[CallRecord] = deque(maxlen=KEPT_CALLS)
        self.bytes_up: dict[str, int] = {}
        self.restarts = 0
        self.losses = Losses()
        self._away: dict[Any, Away] = {}
        self._failed: deque[tuple[StageCall, Contribution]] = deque()  # that no host was there for
        for host, child in self.children.items():
            child.is_up = child.is_there = transport.has_place(host)  # else its node has not come yet

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
        return {site: rows for found in self.call_all("hello").values() for site, rows in found.items()}

    def wait_for(self, num_sites: int, seconds: float) -> None:
        """Wait until hosts that hold `num_sites` sites answer. Raises HostError after `seconds`."""
        wait_for(self, num_sites, seconds)

    def blank(self) -> Any:
        """Return a made-up site: the columns of one site with zeros in a few rows."""
        return self._first("blank")

    def rehearse(self, asked: Any) -> Any:
        """Let a host try programs on made-up rows; what to try is put like a downlink."""
        return self._first("rehearse", asked)

    def prepare(self, transform: Any) -> None:
        """Pass every site's data through a function, where it lies."""
        self.setup.append(("prepare", (transform,)))
        self.call_all("prepare", transform)

    def load(self, load: Load) -> None:
        """Give every host a plan."""
        if load.is_start:
            self.setup = [item for item in self.setup if item[0] != "load"]
            self._forget_run()
            self.restore = load.restore
            for child in self.children.values():
                child.keeps = load.restore is not None
        if load.plan.slots:
            self.stateful.add(load.plan.digest)
        if load.plan.fold == "regional":
            self.rounding.add(load.plan.digest)
        if len(load.plan.site_stages) > 1:
            self.staged.add(load.plan.digest)
        if load.plan.is_one_shot:
            self.one_shot.add(load.plan.digest)
        self.setup.append(("load", (load,)))
        self.call_all("load", load)

    def _forget_run(self) -> None:
        self.stateful, self.one_shot, self.staged, self._away = set(), set(), set(), {}
        for child in self.children.values():
            child.journal, child.owed, child.stages = [], [], []

    def forget_all(self) -> None:
        """Forget what hosts that start again are told."""
        self._forget_run()
        self.setup, self.restore = [], None

    def commit(self, commits: Sequence[Commit]) -> None:
        """Tell every host below, now."""
        self.owe(commits)
        up = [name for name in self.children if self._is_up(name)]  # what is owed to others stays owed
        tickets = {self.submit(name, "commit", self._pay(name)): name for name in up}
        for ticket, answer in self.transport.wait(list(tickets), None):
            if isinstance(answer, Lost):
                self._revive(tickets[ticket])  # replays the journal, these commits among it

    def owe(self, commits: Sequence[Commit]) -> None:
        """Let commits ride on the next call of each host."""
        for commit in commits:
            parts = self.by_child(commit.counted)
            for name, child in self.children.items():
                if child.is_up or name in parts:  # who is away would only be told to drop what it has not
                    child.owed.append(replace(commit, counted=frozenset(parts.get(name, ()))))

    def save(self, address: str, round: int) -> Parts:
        """Let every host write its sites' state; what was kept for replay is then not needed any more.

        Raises StorageError where a host with state is lost and does not come back: it is saved another time.
        """
        holding = [name for name, child in self.children.items() if child.keeps and self.stateful]
        away = [name for name in holding if not self._is_up(name)]
        found = {} if away else self.call_all("save", address, round)  # not in part
        if away or any(isinstance(answer, Lost) for answer in found.values()):
            raise StorageError("a host is lost whose sites keep state: wait for it, or see its log")
        parts = {name: seal for part in found.values() for name, seal in (part or {}).items()}
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
            up = sum(self.children[name].is_up for name in parts)
            return self.transport.put(downlink), up * sent_bytes(downlink)
        own = {
            name: {**downlink, **{index: entries(downlink[index], asked) for index in scattered}}
            for name, asked in parts.items()
        }
        boxes = {name: self.transport.put(part) for name, part in own.items()}
        return Dealt(boxes), sum(sent_bytes(part) for name, part in own.items() if self.children[name].is_up)

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
        call, absent = self.losses.split(call)
        if call.plan in self.staged and call.stage == FIRST_STAGE:
            for child in self.children.values():
                child.stages = []
        for name, cohort in self.by_child(call.cohort).items():
            if not self._is_up(name, None if call.attempt else GLANCE_S):
                absent.append(lost(call.of(cohort, ()), self._why(name, HOST_LOST)))
                continue
            part = call.of(cohort, self._pay(name))
            if call.is_awaited:
                part = replace(part, deadline=None)
            ticket = self.submit(name, "run", part, sent_to(downlink, name))
            tickets[ticket] = (name, replace(part, commits=()))
        parts = [*self._collect(call, downlink, tickets), *absent]
        answer = join(parts, call.exponents) if parts else Contribution(delivered=(), failures=())
        self.losses.note(call, answer)
        return answer

    def send(self, call: StageCall, downlink: Any) -> None:
        """Ask a host for sites that it holds, and wait for nothing: `arrival` takes the answer."""
        self.owe(call.commits)
        ((name, cohort),) = self.by_child(call.cohort).items()
        if self._is_up(name, GLANCE_S):
            self._send(name, call.of(cohort, self._pay(name)), downlink)
        else:
            self._failed.append((call, lost(call, self._why(name, HOST_LOST))))

    def _send(self, name: str, part: StageCall, downlink: Any) -> None:
        ticket = self.submit(name, "run", part, downlink)
        self._away[ticket] = Away(name, part.of(part.cohort, ()), downlink, self.children[name].starts)

    def _leave(self, tickets: Mapping[Any, tuple[str, StageCall]], downlink: Any) -> None:
        """Let `arrival` take the answers of hosts that are late."""
        for ticket, (name, part) in tickets.items():
            self._away[ticket] = Away(name, part, sent_to(downlink, name), self.children[name].starts)

    def arrival(self, timeout: float | None) -> tuple[StageCall | None, Contribution]:
        """Return the next answer to what was sent, with its call; no call where the time is over."""
        times: dict[str, int] = {}
        if self._failed:
            return self._failed.popleft()
        while True:
            answered = next(iter(self.transport.wait(list(self._away), timeout)), None)
            if answered is None:
                return None, Contribution(delivered=(), failures=())
            away = self._away.pop(answered[0])
            if not isinstance(answered[1], Lost):
                self._book(away.host, away.call, away.downlink, answered[1])
                return away.call, answered[1]
            is_first = away.starts == self.children[away.host].starts  # else it was started again meanwhile
            if is_first:
                times[away.host] = times.get(away.host, 0) + 1
            is_back = times.get(away.host, 0) <= MAX_RESTARTS and self._is_back(away.host, is_first)
            if not is_back or (is_first and away.call.plan in self.one_shot):
                why = self._why(away.host, f"{HOST_LOST} ({answered[1].reason})")
                return away.call, lost(away.call, why)
            self._send(away.host, away.call, away.downlink)

    def _is_back(self, name: str, is_lost: bool) -> bool:
        return self._revive(name) if is_lost else self._is_up(name, GLANCE_S)

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
                    self._book(name, part, sent_to(downlink, name), answer)
                    parts.append(answer)
                    continue
                restarts += 1
                is_back = restarts <= MAX_RESTARTS and self._revive(name, self._patience(call))
                if not is_back or part.plan in self.one_shot:  # its keys are gone, and noise is drawn once
                    parts.append(lost(part, self._why(name, f"{HOST_LOST} ({answer.reason})")))
                else:
                    tickets[self.submit(name, "run", part, sent_to(downlink, name))] = (name, part)
            if not answered:  # the deadline has passed: their sites are late
                if call.is_awaited:
                    self._leave(tickets, downlink)
                else:
                    self.transport.give_up(list(tickets))
                return parts + [lost(part, LATE) for _, part in tickets.values()]
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
        child, is_stateful = self.children[name], part.plan in self.stateful
        child.keeps |= is_stateful
        if part.plan in self.one_shot or not self.transport.can_restart:
            return
        if is_stateful or part.plan in self.staged:
            kept = child.journal if is_stateful else child.stages
            kept.append(("run", (replace(part, deadline=None), downlink)))  # which it has met

    @property
    def is_replaying(self) -> bool:
        """Tell whether calls are kept: sites hold state, and a lost host can be started again."""
        return bool(self.stateful) and self.transport.can_restart

    def submit(self, name: str, method: str, *args: Any) -> Any:
        """Start a call of a host, and note that it was made."""
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

    def call_all(self, method: str, *args: Any) -> dict[str, Any]:
        """Call every host; the answer of one that is lost and does not come back is `Lost`."""
        found: dict[str, Any] = {}
        tickets = {}
        for name in self.children:
            if self._is_up(name):
                tickets[self.submit(name, method, *args)] = name
            else:
                found[name] = without(self, name, method)
        for ticket, answer in self.transport.wait(list(tickets), None):
            name = tickets[ticket]
            found[name] = answer
            if isinstance(answer, Lost):
                is_replayed = method in ("prepare", "load", "reset")
                if not self._revive(name):
                    found[name] = without(self, name, method)
                else:
                    found[name] = None if is_replayed else self._wait_one(name, method, *args)
        return found

    def _why(self, name: str, kind: str) -> str:
        """Return the kind of failure of a lost host's sites: whether it is their node that is away."""
        return kind if self.transport.has_place(name) else AWAY

    def _first(self, method: str, *args: Any) -> Any:
        """Call one host, whichever is there."""
        for name in (*self.children, *self.children):
            if self._is_up(name):
                try:
                    return self._wait_one(name, method, *args)
                except HostLost:
                    self._revive(name)
                except HostError:  # a region none of whose hosts is there
                    continue
        raise HostError(f"none of {len(self.children)} hosts answers to {method}: see their logs for why")

    def _wait_one(self, name: str, method: str, *args: Any) -> Any:
        ticket = self.submit(name, method, *args)
        for _, answer in self.transport.wait([ticket], None):
            if isinstance(answer, Lost):
                raise HostLost(
                    f"host {name} was lost ({answer.reason}) in {method}: see its log for why"
                )
            return answer
        raise HostLost(f"host {name} gave no answer to {method}")

    def _is_up(self, name: str, seconds: float | None = None) -> bool:
        """Tell whether a host is there, or comes back within some seconds; None: as long as silence is
        borne.
        """
        return self.children[name].is_up or self._revive(name, seconds)

    def _revive(self, name: str, seconds: float | None = None) -> bool:
        return revive(self, name, seconds)

    def move(self, make: Callable[[], "Region"]) -> None:
        """Take the hosts of another region over, for the same sites: with plans and the sites' saved state.

        What sites keep must have been saved after the last call. The hosts before end first, so that no
        site's data is held twice.
        """
        self.transport.close()
        other = make()
        self.children, self.home, self.transport = other.children, other.home, other.transport
        for name in self.children:
            for method, arguments in self.setup:
                self._wait_one(name, method, *told(self, (method, arguments))[1])

