"""timeline.jsonl: what hosts did in each round, while it is done; chrome.py makes a trace of it.

A line a round: `at` (begin, end) and `spans`, each [host, what, begin, length, group] with `round` behind it
where it belongs to another one (an evaluation is told with the next round). Times are milliseconds since
`start`, by the aggregator's clock. Hosts and groups of sites are numbered by lines of their own. The last
line has the sums of all rounds and how far the hosts' clocks were ahead.

The file is bounded: where MAX_CELLS numbers are reached, every second round is left out, then every fourth,
and so on, but for the SLOWEST. Sums are of all rounds; those of a run that was killed begin anew. What a full
disk does not take waits in memory until it does.
"""

import contextlib
import heapq
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fedray.observe import lines
from fedray.runtime.observed import UNANSWERED, WORK, Observed, Span

logger = logging.getLogger(__name__)
FILE = "timeline.jsonl"
KINDS = (*WORK, *UNANSWERED)
MAX_CELLS = 600_000  # numbers in the file: 2 to 4 MB, and 11 to 25 MB as a Chrome trace
SLOWEST = 20  # rounds that are kept whatever their number
AGGREGATOR = "aggregator"


@dataclass(slots=True)
class _Line:
    """A round of the file."""

    text: str
    cells: int
    groups: set[int]


@dataclass(slots=True)
class Sums:
    """What a host has done in all rounds, in seconds, and how many sites it was seen to hold."""

    seconds: dict[str, float] = field(default_factory=dict)
    rounds: int = 0
    sites: int = 0
    site: str = ""  # where it is one

    def take(self, spans: Sequence[Span], rounds_s: float) -> None:
        """Add the spans of a round that took so long."""
        for span in spans:
            self.seconds[span.what] = self.seconds.get(span.what, 0.0) + max(0.0, span.ended - span.began)
            if len(span.sites) >= self.sites:
                self.sites, self.site = len(span.sites), span.sites[0] if len(span.sites) == 1 else ""
        self.seconds["waiting"] = self.seconds.get("waiting", 0.0) + rounds_s
        self.rounds += rounds_s > 0


class TimelineFile:
    """Write timeline.jsonl while a run goes on; it is a whole file after every round."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.hosts: dict[str, int] = {}
        self.groups: dict[tuple[str, ...], int] = {}
        self.sums: dict[str, Sums] = {}
        self.clocks: dict[str, tuple[float, float]] = {}
        self.lines: dict[int, _Line] = {}
        self.slowest: list[tuple[float, int]] = []
        self.cells, self.stride, self.start_s = 0, 1, 0.0
        self.rounds, self.last, self.num_groups = 0, -1, 0
        self._file = lines.Lines(self.path)
        self._waiting: list[str] = []  # what the disk has not taken

    def start(self, first: int) -> None:
        """Begin, or go on from a round with what an earlier part of the run has written."""
        if first and self.path.exists():
            self._take_earlier(first)
        else:
            self.path.unlink(missing_ok=True)

    def _take_earlier(self, first: int) -> None:
        found = load(self.path.parent)
        found = replace(found, lines=[row for row in found.lines if row["round"] < first])
        self.start_s, self.stride, self.rounds = found.start_s, found.stride, first
        self.hosts = {name: number for number, name in found.hosts.items()}
        self.groups = {sites: number for number, sites in found.groups.items()}
        for row in found.lines:
            self._is_kept(row["round"], row["at"][1] - row["at"][0])
            self._keep(row)
        self.num_groups = max(found.groups, default=-1) + 1
        self.sums = {name: Sums(**told) for name, told in sums_of(found).items()}
        self._thin()
        self._rewrite()

    def round(self, round: int, seen: Observed) -> None:
        """Take a round, with what was done between the one before and this one."""
        if not self.start_s:
            self.start_s = min([seen.began, *(span.began for span in seen.spans)])
            self._write_line({"format": 1, "start": self.start_s})
        self.rounds, self.last = self.rounds + 1, round
        self._add_up(seen, seen.ended - seen.began)
        at = [self._ms(seen.began), self._ms(seen.ended)]
        if not self._is_kept(round, at[1] - at[0]):
            return
        self._new_names(seen.spans)
        self._keep({"round": round, "at": at, "spans": [self._row(span, round) for span in seen.spans]})
        if self.cells > MAX_CELLS:
            self.stride *= 2
            self._thin()
            self._rewrite()

    def rest(self, seen: Observed) -> None:
        """Take what was done after the last round."""
        if self.start_s and seen.spans:
            self._add_up(seen, 0.0)
            self._new_names(seen.spans)
            rows = [self._row(span, self.last) for span in seen.spans]
            self._write_line({"after": self.last, "spans": rows})

    def close(self) -> None:
        """Write the sums; where the disk is full, say how many lines are lost."""
        if self.start_s:
            sums = {host: asdict(found) for host, found in self.sums.items()}
            self._write_line({"sums": sums, "clocks": self.clocks, "rounds": self.rounds,
                              "stride": self.stride})
        if self._waiting:
            told = "%d lines of %s are not on the disk and lost with this process: it was full"
            logger.warning(told, len(self._waiting), self.path)

    def _ms(self, seconds: float) -> float:
        return round(1e3 * (seconds - self.start_s), 3)

    def _row(self, span: Span, number: int) -> list[float]:
        group = self.groups[span.sites] if span.sites else -1
        length = round(1e3 * max(0.0, span.ended - span.began), 3)
        row = [self.hosts[span.host], KINDS.index(span.what), self._ms(span.began), length, group]
        return row if span.round in (number, -1) else [*row, span.round]

    def _add_up(self, seen: Observed, seconds: float) -> None:
        _add(self.sums, seen.spans, seen.began, seconds)
        self.clocks |= seen.clocks

    def _new_names(self, spans: Sequence[Span]) -> None:
        for span in spans:
            if span.host not in self.hosts:
                self.hosts[span.host] = len(self.hosts)
                self._write_line({"host": self.hosts[span.host], "name": span.host})
            if span.sites and span.sites not in self.groups:
                self.groups[span.sites] = self.num_groups
                self.num_groups += 1
                self.cells += len(span.sites)
                self._write_line({"group": self.groups[span.sites], "sites": span.sites})

    def _is_kept(self, round: int, length_ms: float) -> bool:
        """Tell whether a round is kept: all of them, until rounds are left out."""
        seconds = length_ms / 1e3
        is_slow = len(self.slowest) < SLOWEST or seconds > self.slowest[0][0]
        if is_slow:
            heapq.heappush(self.slowest, (seconds, round))
            if len(self.slowest) > SLOWEST:
                heapq.heappop(self.slowest)
        return is_slow or round % self.stride == 0

    def _keep(self, row: Mapping[str, Any]) -> None:
        """Keep a round's line and write it."""
        spans = row["spans"]
        line = _Line(json.dumps(row, separators=(",", ":")), 4 + 6 * len(spans),
                     {span[4] for span in spans})  # fmt: skip
        self.lines[row["round"]] = line
        self.cells += line.cells
        self._append(line.text)

    def _thin(self) -> None:
        slow = {round for _, round in self.slowest}
        self.lines = {round: line for round, line in self.lines.items()
                      if round % self.stride == 0 or round in slow}
        used = {group for line in self.lines.values() for group in line.groups}
        self.groups = {sites: number for sites, number in self.groups.items() if number in used}
        self.cells = sum(line.cells for line in self.lines.values()) + sum(map(len, self.groups))

    def _rewrite(self) -> None:
        """Write the file again from what is kept, by one rename.

        Where the disk is full, what is kept waits instead; a line that is there twice is read once.
        """
        heads = ({"format": 1, "start": self.start_s, "stride": self.stride},
                 *({"host": number, "name": host} for host, number in self.hosts.items()),
                 *({"group": number, "sites": sites} for sites, number in self.groups.items()))
        texts = [*map(json.dumps, heads), *(line.text for line in self.lines.values())]
        temporary = self.path.with_suffix(".part")
        try:
            with temporary.open("w") as file:
                file.writelines(text + "\n" for text in texts)
            os.replace(temporary, self.path)
            self._waiting = []
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._waiting = texts

    def _write_line(self, line: Mapping[str, Any]) -> None:
        self._append(json.dumps(line))

    def _append(self, text: str) -> None:
        self._waiting.append(text)
        if self._file.add("".join(f"{each}\n" for each in self._waiting)):
            self._waiting = []


def _add(sums: dict[str, Sums], spans: Sequence[Span], began: float, seconds: float) -> None:
    """Add a round that took so long, and what hosts did in it; the rest of it they waited."""
    by_host: dict[str, list[Span]] = {host: [] for host in sums}
    for span in spans:
        by_host.setdefault(span.host, []).append(span)
    until = began + seconds
    for host, own in by_host.items():
        busy = sum(max(0.0, min(span.ended, until) - max(span.began, began)) for span in own)
        idle = max(0.0, seconds - busy) if host != AGGREGATOR else 0.0
        sums.setdefault(host, Sums()).take(own, idle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What timeline.jsonl holds."""

    start_s: float
    hosts: Mapping[int, str]
    groups: Mapping[int, tuple[str, ...]]
    lines: Sequence[Mapping[str, Any]]  # of rounds, in order
    after: Sequence[Sequence[float]]  # spans after the last round
    sums: Mapping[str, Mapping[str, Any]]
    clocks: Mapping[str, Sequence[float]]
    rounds: int  # of the run; `lines` may be fewer
    stride: int
    is_whole: bool  # its last line is there: the run did not end by a kill

    def spans(self, rows: Sequence[Sequence[float]], number: int) -> Iterator[Span]:
        """Yield the spans of a round's rows, in milliseconds since the start."""
        for host, what, began, length, group, *other in rows:
            of = int(other[0]) if other else number
            sites = self.groups.get(int(group), ())
            yield Span(self.hosts[int(host)], KINDS[int(what)], began, began + length, of, sites=sites)


def load(folder: Path) -> Timeline:
    """Read timeline.jsonl of a run; an unfinished last line is left out, and so is what cannot be read."""
    rows, bad = lines.read(folder / FILE)
    if bad:
        logger.warning("%s", lines.unread(FILE, bad))
    of_rounds = {row["round"]: row for row in rows if "at" in row}
    last: dict[str, Any] = next((row for row in reversed(rows) if "sums" in row), {})
    return Timeline(
        start_s=next((row["start"] for row in rows if "start" in row), 0.0),
        hosts=_nameless(rows) | {row["host"]: row["name"] for row in rows if "name" in row},
        groups={row["group"]: tuple(row["sites"]) for row in rows if "group" in row},
        lines=[of_rounds[number] for number in sorted(of_rounds)],
        after=[span for row in rows if "after" in row for span in row["spans"]],
        sums=last.get("sums", {}),
        clocks=last.get("clocks", {}),
        rounds=last.get("rounds", len(of_rounds)),
        stride=max((row["stride"] for row in rows if "stride" in row), default=1),
        is_whole=bool(last) and "sums" in rows[-1],
    )


def _nameless(rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return names for all hosts that have spans: the line of their own may be one that cannot be read."""
    numbers = {int(span[0]) for row in rows for span in row.get("spans", ())}
    return {number: f"host {number}" for number in sorted(numbers)}


def sums_of(timeline: Timeline) -> Mapping[str, Mapping[str, Any]]:
    """Return the sums of a run; of one that was killed, those of the rounds that its file holds."""
    if timeline.is_whole:
        return timeline.sums
    sums: dict[str, Sums] = {}
    for line in timeline.lines:
        spans = [span._replace(began=span.began / 1e3, ended=span.ended / 1e3)
                 for span in timeline.spans(line["spans"], line["round"])]
        began, ended = line["at"]
        _add(sums, spans, began / 1e3, (ended - began) / 1e3)
    return {host: asdict(found) for host, found in sums.items()}
