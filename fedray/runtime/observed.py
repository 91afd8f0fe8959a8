"""What hosts report about their work besides it: spans of time, notes for the log, and whose clock is ahead.

Plain records without torch or Ray, so that a terminal can read them. `timeline.py` collects them.
"""

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

DRIFT = 2e-4  # seconds a second that two clocks may drift apart: twice what a free quartz does
WORK = ("downlink", "compute", "uplink", "evaluation", "checkpoint", "preparation")  # of hosts
UNANSWERED = ("late", "lost")  # what became of a call without an answer
_ANCHOR = time.time() - time.monotonic()


def clock() -> float:
    """Return seconds since 1970 that never step back: the wall clock at import, and what has passed since."""
    return _ANCHOR + time.monotonic()


class Span(NamedTuple):
    """A stretch of time at a host: what it did, and for which sites where a stage was computed.

    Sites that one stacked program trained share its span.
    """

    host: str
    what: str
    began: float
    ended: float
    round: int = -1
    stage: int = -1
    sites: tuple[str, ...] = ()

    def moved(self, ahead: float) -> "Span":
        """Return the span on another clock: that of a process whose host's clock is ahead."""
        return self._replace(began=self.began - ahead, ended=self.ended - ahead) if ahead else self


class Note(NamedTuple):
    """A line for the log of the run: our own words and the class of an error, never a message from data.

    `traceback` is the name of a file on the host's own disk that holds all of it.
    """

    time: float
    level: str
    host: str
    message: str
    round: int = -1
    stage: int = -1
    site: str = ""
    kind: str = ""
    traceback: str = ""
    source: str = "host"  # who says it: "driver", "aggregator" or "host"


class Stamps(NamedTuple):
    """When a host took a call and when it answered, by its own clock."""

    received: float
    answered: float


def note_of(record: logging.LogRecord, host: str) -> Note:
    """Return a line of fedray's own logging; `extra={"round": ..., "kind": ...}` says more than its words."""
    kind = getattr(record, "kind", "")
    if not kind and record.exc_info and record.exc_info[0] is not None:
        kind = record.exc_info[0].__name__
    round, stage = getattr(record, "round", -1), getattr(record, "stage", -1)
    told, site = record.getMessage(), getattr(record, "site", "")
    return Note(clock(), record.levelname, host, told, round, stage, site, kind)


@dataclass(slots=True)
class Offset:
    """How far a host's clock is ahead of ours: bounds from calls, for nothing arrives before it was sent.

    A call sent at t0 and answered at t3 by our clock, received at t1 and answered at t2 by the other one,
    says t2 - t3 <= ahead <= t1 - t0. Bounds of many calls are cut with each other, and widened by drift.
    """

    low: float = float("-inf")
    high: float = float("inf")
    calls: int = 0
    jumps: int = 0  # how often the bounds contradicted each other: a clock was set
    last: float = 0.0

    def take(self, sent: float, stamps: Stamps, came: float) -> float:
        """Take a call; return how far ahead the clock is, between the bounds of this very call."""
        low, high = stamps.answered - came, stamps.received - sent
        if low > high:  # a clock ran faster than time between the two stamps
            low = high = (low + high) / 2
        drift = DRIFT * max(0.0, came - self.last) if self.calls else 0.0
        before = self.low - drift, self.high + drift
        if before[0] > high or before[1] < low:
            self.jumps, before = self.jumps + 1, (low, high)
        self.low, self.high = max(low, before[0]), min(high, before[1])
        self.calls, self.last = self.calls + 1, came
        return self.ahead

    @property
    def ahead(self) -> float:
        """The estimate: zero where the bounds allow it, else their middle."""
        return 0.0 if self.low <= 0.0 <= self.high else (self.low + self.high) / 2

    @property
    def error(self) -> float:
        """How wrong the estimate can be."""
        return max(self.high - self.ahead, self.ahead - self.low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was seen of a round, or of what followed it, by the aggregator's clock."""

    began: float = 0.0
    ended: float = 0.0
    spans: Sequence[Span] = ()
    notes: Sequence[Note] = ()
    clocks: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # host -> ahead, possible error


def waited_s(spans: Sequence[Span], hosts: Mapping[str, object]) -> float:
    """Return the seconds between the median host's answer and the last one's, summed over stages.

    It counts hosts that were called at the same time; one that was late or lost ends when it was given up.
    """
    ends: dict[tuple[int, int], list[float]] = {}
    for span in spans:
        if (span.what == "uplink" or span.what in UNANSWERED) and span.host in hosts:
            ends.setdefault((span.round, span.stage), []).append(span.ended)
    return sum(max(found) - statistics.median(found) for found in ends.values())
