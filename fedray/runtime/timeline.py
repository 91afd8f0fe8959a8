"""The timeline: which host did what when, collected at the aggregator from what hosts report.

Every region calls its hosts through `Stamped`, which notes when a call left and when its answer came. A host
stamps its own clock (`Contribution.stamps`, `.spans`); `Offset` brings those to the clock of the caller, so a
nested region's spans reach the aggregator's clock level by level. `Watch` is what the aggregator holds: it
cuts what has come into rounds. Costs two clock reads a group of sites and some microseconds a call.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from fedray.errors import SiteError
from fedray.runtime.host import Contribution, StageCall
from fedray.runtime.observed import Note, Observed, Offset, Span, clock, waited_s
from fedray.runtime.transport import Lost, Transport

KEPT = 65536  # spans that wait to be taken, the newest
AGGREGATOR = "aggregator"
MAX_TOLD = 50  # failures of a round that was not counted
MAX_AWAY = 8192  # calls without an answer that are remembered, the newest


class _Away(NamedTuple):
    """A call under way."""

    host: str
    method: str
    sent: float
    round: int
    stage: int
    sites: int


class Recorder:
    """What a region has seen of its hosts since it was last asked."""

    def __init__(self) -> None:
        self.is_root = False  # the aggregator's: it keeps what a region below hands on with its answer
        self.what = "compute"  # or "evaluation", "preparation": what a stage is called
        self.spans: deque[Span] = deque(maxlen=KEPT)
        self.notes: deque[Note] = deque(maxlen=KEPT)
        self.offsets: dict[str, Offset] = {}
        self.seen: dict[str, float] = {}  # host -> when it last answered
        self.last: dict[str, _Away] = {}  # host -> what it was asked last
        self.away: dict[int, _Away] = {}  # hash of a ticket, which would keep an answer in memory

    def calls(self, host: str, method: str, args: Sequence[Any]) -> _Away:
        """Note that a call leaves now."""
        call = args[0] if args and isinstance(args[0], StageCall) else None
        where = (call.round, call.stage, len(call.cohort)) if call is not None else (-1, -1, 0)
        found = self.last[host] = _Away(host, method, clock(), *where)
        return found

    def sent(self, ticket: Any, away: _Away) -> None:
        """Note the ticket of a call that has left."""
        if len(self.away) >= MAX_AWAY:
            self.away.pop(next(iter(self.away)))
        self.away[hash(ticket)] = away

    def came(self, ticket: Any, answer: Any) -> Any:
        """Take an answer; return it with what a region above should learn of it."""
        away, now = self.away.pop(hash(ticket), None), clock()
        if away is None:
            return answer
        if isinstance(answer, Lost):
            self._lost(away, answer, now)
            return answer
        self.seen[away.host] = now
        if away.method == "save":
            self.spans.append(Span(away.host, "checkpoint", away.sent, now))
        return self._taken(away, answer, now) if isinstance(answer, Contribution) else answer

    def _taken(self, away: _Away, answer: Contribution, now: float) -> Contribution:
        spans, notes = list(answer.spans), answer.notes
        if answer.stamps is not None:
            offset = self.offsets.setdefault(away.host, Offset())
            jumps, ahead = offset.jumps, offset.take(away.sent, answer.stamps, now)
            if offset.jumps > jumps:
                told = f"the clock of host {away.host} was set, or ours: times before cannot be compared"
                self.note("WARNING", away.host, told, kind="clock")
            spans = [span.moved(ahead) for span in spans]
            notes = tuple(note._replace(time=note.time - ahead) for note in notes)
            answered = answer.stamps.answered - ahead
            spans.append(Span(away.host, "uplink", answered, max(now, answered), away.round, away.stage))
        if self.is_root:
            is_evaluation = self.what != "compute"
            self.spans.extend([_renamed(span, self.what) for span in spans] if is_evaluation else spans)
            self.notes.extend(notes)
            return answer
        answer = replace(answer, spans=(*self.spans, *spans), notes=(*self.notes, *notes), stamps=None)
        self.spans.clear()
        self.notes.clear()
        return answer

    def _lost(self, away: _Away, answer: Lost, now: float) -> None:
        self.spans.append(Span(away.host, "lost", away.sent, now, away.round, away.stage))
        self.note("ERROR", away.host, f"host {away.host} was lost in {away.method}", away.round, away.stage,
                  kind=answer.reason)

    def note(self, level: str, host: str, message: str, round: int = -1, stage: int = -1, *,
             kind: str = "") -> None:
        """Note a line for the log."""
        self.notes.append(Note(clock(), level, host, message, round, stage, kind=kind, source=AGGREGATOR))

    def settle(self) -> None:
        """Call late what has not answered, for its round is over."""
        now = clock()
        for away in self.away.values():
            if away.method == "run":
                self.spans.append(Span(away.host, "late", away.sent, now, away.round, away.stage))
        self.away.clear()

    def take(self) -> tuple[list[Span], list[Note]]:
        """Return what was seen since the last time, and forget it."""
        spans, notes = list(self.spans), list(self.notes)
        self.spans.clear()
        self.notes.clear()
        return spans, notes


def _renamed(span: Span, what: str) -> Span:
    return span._replace(what=what) if span.what == "compute" else span


class Stamped:
    """A transport that notes when calls leave and when answers come; all else is the transport's own."""

    def __init__(self, inner: Transport) -> None:
        self.inner, self.recorder = inner, Recorder()
        self.can_restart, self.placement = inner.can_restart, inner.placement

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)  # asked before it is there: of a copy, or while it is unpickled
        return getattr(self.inner, name)

    def put(self, value: Any) -> Any:
        """Make a value readable by all hosts, once."""
        return self.inner.put(value)

    def get(self, box: Any) -> Any:
        """Read what `put` returned."""
        return self.inner.get(box)

    def submit(self, host: str, method: str, *args: Any) -> Any:
        """Start a call; in this process it runs now."""
        away = self.recorder.calls(host, method, args)
        ticket = self.inner.submit(host, method, *args)
        self.recorder.sent(ticket, away)
        if self.placement == "aggregator":
            self.recorder.seen[host] = clock()
        return ticket

    def wait(self, tickets: Sequence[Any], timeout: float | None) -> Iterator[tuple[Any, Any]]:
        """Yield (ticket, answer) as answers come in."""
        for ticket, answer in self.inner.wait(tickets, timeout):
            yield ticket, self.recorder.came(ticket, answer)

    def restart(self, host: str) -> None:
        """Start a lost host again, empty."""
        self.recorder.note("WARNING", host, f"host {host} is started again")
        self.inner.restart(host)

    def now(self) -> float:
        """Seconds: wall clock or simulated."""
        return self.inner.now()

    def advance(self, seconds: float) -> None:
        """Move the simulated clock."""
        self.inner.advance(seconds)

    def close(self) -> None:
        """End every host that the transport started."""
        self.inner.close()


class Watch:
    """What the aggregator sees of its hosts, cut into rounds."""

    def __init__(self, root: Any) -> None:
        self._root, self._none = root, Recorder()  # the second where a test's region has none
        self.recorder.is_root = True
        self.began, self.round, self.doing = clock(), -1, ""

    @property
    def recorder(self) -> Recorder:
        """The root's; it changes where the sites move into this process."""
        found: Recorder = getattr(self._root.transport, "recorder", self._none)
        return found

    def begin(self, round: int) -> None:
        """Begin a round."""
        self.began, self.round, self.doing = clock(), round, "round"
        self.recorder.is_root = True

    def end(self, is_over: bool) -> dict[str, Any]:
        """Return what a record says of its round; `is_over` calls late who has not answered."""
        if is_over:
            self.recorder.settle()
        seen = self.take()
        mine = [span for span in seen.spans if span.began >= self.began]
        self.doing = ""
        return {"observed": seen, "waited_s": waited_s(mine, self._root.children)}

    def failed(self, failures: Sequence[SiteError]) -> None:
        """Note the failures of a round that no record tells of."""
        for each in list({(each.site, each.kind): each for each in failures}.values())[:MAX_TOLD]:
            where = f" at {each.where}" if each.where else ""
            self.recorder.notes.append(Note(clock(), "ERROR", "", f"left out of the round{where}", each.round,
                                            each.stage, each.site, each.kind, source=AGGREGATOR))

    @contextmanager
    def during(self, what: str, round: int) -> Iterator[None]:
        """Note an evaluation or a checkpoint of a round, or a program before the first one."""
        recorder, before, began = self.recorder, self.doing, clock()
        self.doing, recorder.what = what, recorder.what if what == "checkpoint" else what
        try:
            yield
        finally:
            recorder.spans.append(Span(AGGREGATOR, what, began, clock(), round))
            self.doing, recorder.what = before, "compute"

    def take(self) -> Observed:
        """Return what was seen since the last time."""
        recorder = self.recorder
        spans, notes = recorder.take()
        clocks = {host: (found.ahead, found.error) for host, found in recorder.offsets.items()}
        return Observed(began=self.began, ended=clock(), spans=spans, notes=notes, clocks=clocks)

    def progress(self) -> dict[str, Any]:
        """Return what is being done now, in plain values; another thread may ask."""
        recorder, now = self.recorder, clock()
        last, seen = dict(recorder.last), dict(recorder.seen)
        silent_s = getattr(self._root.transport, "silent_s", dict)  # of transports that look for life
        signs = {host: now - silent for host, silent in silent_s().items()}
        hosts = []
        for host, away in last.items():
            is_at_work = seen.get(host, 0.0) < away.sent
            hosts.append({"host": host, "doing": away.method if is_at_work else "", "sites": away.sites,
                          "since": away.sent if is_at_work else None,
                          "seen": max(seen.get(host, 0.0), signs.get(host, 0.0)) or None})
        mine = [away for away in last.values() if away.method == "run" and away.sent >= self.began]
        done = [away for away in mine if seen.get(away.host, 0.0) >= away.sent]
        return {"time": now, "doing": self.doing, "round": self.round, "since": self.began,
                "stage": max((away.stage for away in mine), default=None),
                "asked": sum(away.sites for away in mine), "answered": sum(away.sites for away in done),
                "hosts": hosts}
