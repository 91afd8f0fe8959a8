"""Traces: when each site is there and how fast it is, replayed on the simulated clock.

A trace is a CSV file, one line an interval: `site,start_s,end_s,answer_s`. From `start_s` to `end_s` the site
can be asked, and needs `answer_s` seconds for an answer. The trace repeats after its period, which is the
line `# period_s=...` at its head. `generate` makes one of nights on a charger. Use both sides of it:

    schedule = by_trace(read_trace("phones.csv"), cohort=20)
    with fr.simulate(data, latency=schedule.latency) as federation: ...

When a round starts follows from the trace, the seed and the cohorts before it alone, so a resumed run asks
the same sites: a round takes as long as its slowest site, or the deadline.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import torch

from fedray.errors import ScheduleError
from fedray.rng import Key
from fedray.runtime.schedule import Synchronous, synchronous

COLUMNS = ("site", "start_s", "end_s", "answer_s")
DAY_S = 86_400.0


class Interval(NamedTuple):
    """A time in which a site can be asked."""

    site: str
    start_s: float
    end_s: float
    answer_s: float


@dataclass(frozen=True)
class Trace:
    """Intervals of a period, which repeats. Raises ScheduleError on intervals that cannot be."""

    intervals: tuple[Interval, ...]
    period_s: float

    def __post_init__(self) -> None:
        for each in self.intervals:
            if not (0 <= each.start_s < each.end_s <= self.period_s and 0 < each.answer_s < math.inf):
                raise ScheduleError(
                    f"trace: {each}: give 0 <= start_s < end_s <= period_s={self.period_s:g} and answer_s "
                    "above 0"
                )
        if not self.intervals:
            raise ScheduleError("trace: it has no interval, so nobody could ever be asked")

    def there(self, now: float) -> dict[str, float]:
        """Return {site: seconds for an answer} of the sites that can be asked now."""
        at = now % self.period_s
        return {each.site: each.answer_s for each in self.intervals if each.start_s <= at < each.end_s}

    def latency(self, site: str, round: int) -> float:
        """Return the seconds of a site's answer in its first interval, whenever it is asked; 0 for strangers.

        For `simulate(latency=...)` where sites are always there and the trace tells their speeds alone.
        """
        return next((each.answer_s for each in self.intervals if each.site == site), 0.0)

    def next_start(self, now: float) -> float:
        """Return when the next interval begins after `now`."""
        at = now % self.period_s
        return now - at + min(
            each.start_s if each.start_s > at else each.start_s + self.period_s for each in self.intervals
        )


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write a trace to a file."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(f"# period_s={trace.period_s!r}\n")
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *trace.intervals])


def read_trace(path: str | Path) -> Trace:
    """Read a trace. Raises ScheduleError, with the line, where the file is none."""
    with open(path, newline="", encoding="utf-8") as file:
        head, _, rest = file.read().partition("\n")
    lines = list(csv.reader(rest.splitlines()))
    if not head.startswith("# period_s=") or not lines or tuple(lines[0]) != COLUMNS:
        raise ScheduleError(f"trace: the file begins with '# period_s=<seconds>' and '{','.join(COLUMNS)}'")
    found = []
    for number, line in enumerate(lines[1:], start=3):
        try:
            site, *times = line
            found.append(Interval(site, *map(float, times)))
        except (TypeError, ValueError) as error:
            raise ScheduleError(f"trace: line {number} is no '{','.join(COLUMNS)}'") from error
    return Trace(tuple(found), float(head.partition("=")[2]))


def generate(
    sites: Sequence[str], seed: int = 0, *, hours: float = 8.0, median_s: float = 60.0, sigma: float = 1.0
) -> Trace:
    """Return a day in which each site is there once, for `hours` in the mean, around a time of its own.

    Speeds are log-normal over sites: half of them answer within `median_s`. Everything follows from the seed
    and a site's name, so that a site keeps its interval where others come or go.
    """
    found = []
    for site in sites:
        draws = torch.randn(3, generator=Key(seed, 0, site, "trace").generator(), dtype=torch.float64)
        middle, length, speed = draws.tolist()
        begin = (3.0 + 3.0 * middle) * 3600 % DAY_S  # around three at night, by time zone and habit
        end = begin + min(0.99 * DAY_S, hours * 3600 * math.exp(0.5 * length - 0.125))
        answer_s = median_s * math.exp(sigma * speed)
        found.append(Interval(site, begin, min(end, DAY_S), answer_s))
        if end > DAY_S:
            found.append(Interval(site, 0.0, end - DAY_S, answer_s))
    return Trace(tuple(found), DAY_S)


@dataclass(frozen=True, kw_only=True)
class OfTrace(Synchronous):
    """A cohort among the sites that are there when the round starts; see `by_trace`."""

    trace: Trace
    exchanges: int = 1
    starts: dict[tuple[int, int], float] = field(default_factory=dict, compare=False, repr=False)

    def start_s(self, round: int, seed: int, sites: Sequence[str], sizes: Mapping[str, int]) -> float:
        """Return when a round starts: once the one before is over and a site is there."""
        for number in range(round + 1):
            if (seed, number) in self.starts:
                continue
            now = 0.0
            if number:
                before = self.starts[seed, number - 1]
                there = self.trace.there(before)
                slowest = max(there[site] for site in self._drawn(number - 1, seed, sites, sizes, before))
                now = before + self.exchanges * min(slowest, self.deadline_s or math.inf)
            while not self._known(now, sites):
                now = self.trace.next_start(now)
            self.starts[seed, number] = now
        return self.starts[seed, round]

    def _known(self, now: float, sites: Sequence[str]) -> list[str]:
        there = self.trace.there(now)
        return [site for site in sites if site in there]

    def _drawn(
        self, round: int, seed: int, sites: Sequence[str], sizes: Mapping[str, int], now: float
    ) -> tuple[str, ...]:
        here = self._known(now, sites)
        size = self.expected_cohort(len(sites))
        if size >= len(here):
            return tuple(here)
        settings = {each.name: getattr(self, each.name) for each in fields(Synchronous)}
        return Synchronous(**{**settings, "cohort": size}).cohort_of(round, seed, here, sizes)

    def cohort_of(
        self, round: int, seed: int, sites: Sequence[str], sizes: Mapping[str, int]
    ) -> tuple[str, ...]:
        """Return the sites that round `round` asks, of those that are there; all where they are few."""
        if not any(each.site in sites for each in self.trace.intervals):
            raise ScheduleError("by_trace(): the trace names none of the federation's sites")
        return self._drawn(round, seed, sites, sizes, self.start_s(round, seed, sites, sizes))

    def latency(self, site: str, round: int) -> float:
        """Return the simulated seconds of an answer, for `simulate(latency=...)`: of the last run's round.

        Evaluations ask all sites; those that are not there take no time.
        """
        starts = [start for (_, number), start in self.starts.items() if number == round]
        return self.trace.there(starts[-1]).get(site, 0.0) if starts else 0.0


def by_trace(
    trace: Trace | str,
    cohort: float | int = 1.0,
    sampling: str = "uniform",
    quorum: float = 0.8,
    deadline_s: float | None = None,
    on_failure: str = "retry",
    retries: int = 2,
    exchanges: int = 1,
) -> OfTrace:
    """Ask sites that a trace, or the file of one, says are there.

    A fraction as `cohort` is one of all sites. Sites that need longer than `deadline_s` are late. `exchanges`
    are the algorithm's site stages in a round. Raises ScheduleError on values that cannot be meant; sampling
    is uniform or weighted.
    """
    if sampling not in ("uniform", "weighted") or exchanges < 1:
        raise ScheduleError(
            f"by_trace(): sampling={sampling!r}: choose uniform or weighted; exchanges={exchanges}: 1 or more"
        )
    plain = synchronous(cohort, sampling, quorum, deadline_s, on_failure, retries)
    settings = {each.name: getattr(plain, each.name) for each in fields(Synchronous)}
    found = read_trace(trace) if isinstance(trace, str) else trace
    return OfTrace(**settings, trace=found, exchanges=exchanges)
