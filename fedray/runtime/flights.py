"""Flights: what is under way between the server and the sites of a buffered run.

A flight is a site that was asked of a version of the server's model and has not been counted yet. On the
simulated clock the order of answers is known before anything is trained, so sites that were asked of the same
version are trained as one group when the first of them lands, and each answer waits for its time. On real
hosts every flight is a call of its own, and answers are taken as they come. Start at `Flights.take`.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedray.errors import LATE, QuorumError, ScheduleError, SiteError
from fedray.rng import SERVER, derive
from fedray.runtime.buffered import Buffered
from fedray.runtime.fold import LaneSum
from fedray.runtime.host import Commit, Contribution, StageCall
from fedray.runtime.kept import sent_bytes
from fedray.runtime.region import GRACE_S, Region
from fedray.runtime.schedule import Latency, Synchronous

STAGE = 1  # the only one of the sites
ANSWER_S = 1.0  # of every site where there is neither a latency model nor a trace
WAITING_BYTES = 256 * 2**20  # of answers that are trained before their time


@dataclass(slots=True, kw_only=True)
class Flight:
    """One site under way. Times are in seconds since the start of the run."""

    site: str
    version: int
    number: int  # in the order of asking
    asked_s: float
    lands_s: float  # on the simulated clock
    is_late: bool = False
    attempt: int = -1  # of its version: which of its groups it was trained in
    rows: Mapping[str, LaneSum] | None = None
    gathered: Mapping[str, Any] = field(default_factory=dict)
    failure: SiteError | None = None

    @property
    def is_trained(self) -> bool:
        """Tell whether the answer, or what went wrong, is known."""
        return self.is_late or self.rows is not None or self.failure is not None

    def take(self, answer: Contribution, attempt: int) -> None:
        """Take its own part of an answer."""
        self.attempt, self.rows = attempt, answer.rows.get(self.site)
        self.gathered = {name: found[self.site] for name, found in answer.gathered.items()
                         if self.site in found}  # fmt: skip
        self.failure = next((each for each in answer.failures if each.site == self.site), None)


@dataclass(slots=True)
class Flights:
    """The sites under way, the versions that they were asked of, and the clock."""

    schedule: Buffered
    root: Region
    latency: Latency | None
    run: str
    plan: str  # its digest
    seed: int
    names: tuple[str, ...]
    sizes: Mapping[str, int]
    now: float = 0.0
    asked: int = 0
    away: dict[str, Flight] = field(default_factory=dict)
    versions: dict[int, tuple[dict[int, Any], Any]] = field(default_factory=dict)  # downlink, and as put
    bytes_down: int = 0  # of this round, as the next four
    work_s: float = 0.0
    processes: set[int] = field(default_factory=set)
    fills: int = 0
    seen: set[str] = field(default_factory=set)
    attempts: dict[int, int] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Raise ScheduleError where a trace would have to be followed by real hosts."""
        if self.schedule.trace is not None and not self.is_simulated:
            raise ScheduleError(
                "buffered(trace=...) runs on the simulated clock: use runtime='in_process', or leave the "
                "trace out and take answers as they come"
            )

    @property
    def is_simulated(self) -> bool:
        """Tell whether the hosts are in this process, where time is simulated."""
        return self.root.transport.placement == "aggregator"

    def take(self, version: int, downlink: dict[int, Any]) -> tuple[list[Flight], list[SiteError]]:
        """Wait until a buffer is full; return its flights, in the order of landing, and who failed meanwhile.

        Raises QuorumError where too many fail, or nobody is left to ask.
        """
        self.versions[version] = downlink, self.root.transport.put(downlink)
        self.bytes_down, self.work_s, self.fills = 0, 0.0, 0
        self.processes, self.seen = set(), set()
        self._resend()
        landed: list[Flight] = []
        failures: list[SiteError] = []
        while len(landed) < self.schedule.size:
            flight = self._land(version) if self.is_simulated else self._receive(version)
            del self.away[flight.site]
            self.seen.add(flight.site)
            if flight.rows is None:
                failures.append(flight.failure or SiteError(flight.site, flight.version, STAGE, LATE))
                self._check(failures, version)
            else:
                landed.append(flight)
        return landed, failures

    def _check(self, failures: list[SiteError], version: int) -> None:
        most = self.schedule.most_failures
        if len(failures) > most:
            raise QuorumError(
                f"round {version}: {len(failures)} sites failed before {self.schedule.size} contributions "
                f"were in, and schedule.quorum={self.schedule.quorum:g} of {self.schedule.concurrency} "
                f"allows {most}; the last: {failures[-1]}. The server state is unchanged; lower "
                "schedule.quorum, raise schedule.deadline_s, or mend the sites"
            )

    def _land(self, version: int) -> Flight:
        """Move the simulated clock to the next landing; who is free then is asked first."""
        first = self._first()
        if first is None or first.lands_s > self.now:
            self._fill(version)
            first = self._first()
        while first is None:  # a trace has nobody there now
            self.now = self._next_start(version)
            self._fill(version)
            first = self._first()
        self.now = max(self.now, first.lands_s)
        if not first.is_trained:
            self._train(first)
        return first

    def _first(self) -> Flight | None:
        return min(self.away.values(), key=lambda each: (each.lands_s, each.number), default=None)

    def _next_start(self, version: int) -> float:
        trace = self.schedule.trace
        if trace is None or not any(each.site in self._idle() for each in trace.intervals):
            raise QuorumError(
                f"round {version}: nobody is under way and nobody is left to ask before the buffer of "
                f"{self.schedule.size} is full: each site is in it once; lower schedule.size, or mend the "
                "sites that fail"
            )
        return trace.next_start(self.now)

    def _idle(self) -> list[str]:
        return [site for site in self.names if site not in self.away and site not in self.seen]

    def _fill(self, version: int) -> None:
        """Ask idle sites until enough are under way."""
        free = self.schedule.concurrency - len(self.away)
        if free <= 0:
            return
        trace, idle = self.schedule.trace, self._idle()
        there = trace.there(self.now) if trace is not None else {}
        if trace is not None:
            idle = [site for site in idle if site in there]
        if not idle:
            return
        # the first draw of a version is that of a synchronous cohort
        seed = derive(self.seed, version, SERVER, f"fill {self.fills}") if self.fills else self.seed
        self.fills += 1
        drawn = Synchronous(cohort=min(free, len(idle)), sampling=self.schedule.sampling)
        for site in drawn.cohort_of(version, seed, idle, self.sizes):
            seconds = there[site] if trace is not None else self._seconds(site)
            limit = self.schedule.deadline_s or math.inf
            flight = Flight(
                site=site,
                version=version,
                number=self.asked,
                asked_s=self.now,
                lands_s=self.now + min(seconds, limit),
                is_late=self.is_simulated and seconds > limit,
            )
            self.asked += 1
            self.away[site] = flight
            self.bytes_down += sent_bytes(self.versions[version][0])
            if not self.is_simulated:
                self._send(flight)

    def _seconds(self, site: str) -> float:
        return ANSWER_S if self.latency is None else self.latency(site, self.asked)

    def _train(self, first: Flight) -> None:
        """Train sites that were asked of the same version, as many as may wait for their time together."""
        downlink, box = self.versions[first.version]
        same = [each for each in self.away.values() if each.version == first.version and not each.is_trained]
        same.sort(key=lambda each: (each.lands_s, each.number))
        together = same[: max(1, WAITING_BYTES // max(1, sent_bytes(downlink)))]
        attempt = self._next_attempt(first.version)
        cohort = tuple(sorted(each.site for each in together))
        answer = self.root.ask(self._call(first.version, attempt, cohort), box)
        self._book(answer)
        for each in together:
            each.take(answer, attempt)

    def _book(self, answer: Contribution) -> None:
        self.work_s += answer.work_s
        self.processes.update(answer.processes)

    def _next_attempt(self, version: int) -> int:
        self.attempts[version] = self.attempts.get(version, -1) + 1
        return self.attempts[version]

    def _call(self, version: int, attempt: int, cohort: tuple[str, ...]) -> StageCall:
        limit = self.schedule.deadline_s
        return StageCall(
            run=self.run,
            plan=self.plan,
            seed=self.seed,
            round=version,
            attempt=attempt,
            stage=STAGE,
            cohort=cohort,
            is_apart=True,
            deadline=time.monotonic() + limit if limit and not self.is_simulated else None,
        )

    def _send(self, flight: Flight) -> None:
        flight.attempt = self._next_attempt(flight.version)
        flight.asked_s = time.monotonic() - self.began
        call = self._call(flight.version, flight.attempt, (flight.site,))
        self.root.send(call, self.versions[flight.version][1])

    def _resend(self) -> None:
        """Ask those again that were under way when a checkpoint was written."""
        if not self.is_simulated:
            for flight in self.away.values():
                if flight.attempt < 0:
                    self._send(flight)

    def _receive(self, version: int) -> Flight:
        """Take the next answer of real hosts; who is free is asked first."""
        self._fill(version)
        if not self.away:
            self._next_start(version)
        while True:
            call, answer = self.root.arrival(self._patience())
            self.now = time.monotonic() - self.began
            if call is None:
                oldest = min(self.away.values(), key=lambda each: each.asked_s)
                self.root.forget(oldest.site)
                oldest.is_late = True
                return oldest
            flight = self.away.get(call.cohort[0])
            if flight is not None and (flight.version, flight.attempt) == (call.round, call.attempt):
                self._book(answer)
                flight.take(answer, call.attempt)
                return flight

    def _patience(self) -> float | None:
        if self.schedule.deadline_s is None:
            return None
        oldest = min(each.asked_s for each in self.away.values())
        return max(0.0, oldest + self.schedule.deadline_s + GRACE_S - (time.monotonic() - self.began))

    def commits(self, landed: list[Flight]) -> list[Commit]:
        """Return what makes the state of counted sites current, and forget versions that nobody is on."""
        self.versions = {version: held for version, held in self.versions.items()
                         if any(each.version == version for each in self.away.values())}  # fmt: skip
        self.attempts = {version: last for version, last in self.attempts.items() if version in self.versions}
        counted: dict[tuple[int, int], set[str]] = {}
        for flight in landed:
            counted.setdefault((flight.version, flight.attempt), set()).add(flight.site)
        under_way = {(each.version, each.attempt) for each in self.away.values()}
        keeps = frozenset(under_way | counted.keys())
        return [
            Commit(self.plan, version, attempt, frozenset(sites), keeps)
            for (version, attempt), sites in counted.items()
        ]

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint holds: who is under way, of which version, and those versions."""
        return {
            "now": self.now,
            "asked": self.asked,
            "flights": [
                [each.site, each.version, each.number, each.asked_s, each.lands_s, each.is_late]
                for each in self.away.values()
            ],
            "versions": {version: downlink for version, (downlink, _) in self.versions.items()},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; who was under way is trained again, which gives equal bits."""
        self.now, self.asked = saved["now"], saved["asked"]
        self.began = time.monotonic() - self.now
        for site, version, number, asked_s, lands_s, is_late in saved["flights"]:
            self.away[site] = Flight(
                site=site, version=version, number=number, asked_s=asked_s, lands_s=lands_s, is_late=is_late
            )
        put = self.root.transport.put
        self.versions = {version: (dict(held), put(dict(held)))
                         for version, held in saved["versions"].items()}  # fmt: skip
