"""log.jsonl: one structured log of a run, merged from driver, aggregator and hosts.

One JSON object a line, in the order of arrival: time, level, source (driver, aggregator or host), run, and
where they are known round, stage, site, host, kind (the class of an error, or a word of ours), where
(file:line), message, traceback (a file on that host's own disk) and times. Rounds are counted from 0, as in
rounds.jsonl.
Only our own words are in it: never the message of an error, which could hold a patient's value. Lines that a
full disk does not take are lost, and the next one that it takes says how many.
"""

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedray.errors import LATE, FedrayError, Withheld
from fedray.observe import lines
from fedray.runtime.observed import Note, Span, clock, note_of

FILE = "log.jsonl"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
EXPECTED = (LATE, Withheld.kind)  # failures of a site that are no error
AT_AGGREGATOR = ("fedray.passes", "fedray.runtime.region", "fedray.runtime.round", "fedray.runtime.attempt")
AT_HOSTS = ("fedray.learn", "fedray.airlock", "fedray.runtime.pack", "fedray.runtime.interpret")
ALWAYS = 3  # the first failures of a site in one way; then every time that their number has doubled


def iso(seconds: float) -> str:
    """Return a time as 2026-11-27T06:45:13.123+00:00."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


class RunLog(logging.Handler):
    """Write log.jsonl: lines of fedray's own logging in this thread, notes of hosts, failures of sites."""

    def __init__(self, folder: Path) -> None:
        super().__init__(logging.INFO)
        self._run, self._thread = folder.resolve().name, threading.get_ident()
        self._file, self.lost = lines.Lines(folder / FILE), 0
        self._file.add("")
        self._counts: dict[tuple[str, str], int] = {}
        self.last_error: dict[str, Any] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line of this process; of an exception its class only."""
        if record.thread == self._thread:  # trials that train together have a thread and a log each
            self.note(note_of(record, "")._replace(source=_source(record.name)))

    def note(self, note: Note) -> None:
        """Write a note."""
        line = {"time": iso(note.time), "level": note.level, "source": note.source, "run": self._run}
        facts = {"round": note.round, "stage": note.stage, "site": note.site, "host": note.host,
                 "kind": note.kind, "message": note.message, "traceback": note.traceback}
        self._write({**line, **{name: value for name, value in facts.items() if value not in ("", -1)}})

    def say(self, message: str, round: int = -1) -> None:
        """Write a line of the driver."""
        self.note(Note(clock(), "INFO", "", message, round, source="driver"))

    def failures(self, record: Any) -> None:
        """Write which sites a round had to do without; one that fails in one way again and again, seldom."""
        spans: Sequence[Span] = record.observed.spans if record.observed is not None else ()
        for failure in record.failures:
            key = failure.site, failure.kind
            times = self._counts[key] = self._counts.get(key, 0) + 1
            if times > ALWAYS and times & (times - 1):
                continue
            host = next((span.host for span in spans if failure.site in span.sites), "")
            line = {"time": iso(clock()), "level": "WARNING" if failure.kind in EXPECTED else "ERROR",
                    "source": "aggregator", "run": self._run, "round": failure.round, "stage": failure.stage,
                    "site": failure.site, "host": host, "kind": failure.kind, "where": failure.where,
                    "message": "left out of the round, its state unchanged", "times": times}
            self._write({name: value for name, value in line.items() if value != ""})

    def ended_by(self, error: BaseException) -> None:
        """Write what ended the run: words of our own errors, the class of all others."""
        said = str(error).splitlines() if isinstance(error, FedrayError) else []
        is_asked = isinstance(error, KeyboardInterrupt)
        told = "stopped at once" if is_asked else f"the run failed{': ' if said else ''}{''.join(said[:1])}"
        self.note(Note(clock(), "WARNING" if is_asked else "ERROR", "", told, kind=type(error).__name__,
                       source="driver"))

    def _write(self, line: dict[str, Any]) -> None:
        if line["level"] in LEVELS[3:]:
            self.last_error = line
        if self._file.add(f"{self._left_out()}{json.dumps(line)}\n"):
            self.lost = 0
        else:  # it must not be logged: that line would come here too
            self.lost += 1

    def _left_out(self) -> str:
        """Return the line that says how many before it are lost."""
        if not self.lost:
            return ""
        return json.dumps({"time": iso(clock()), "level": "WARNING", "source": "driver", "run": self._run,
                           "message": f"lines before this one found no room: {self.lost}"}) + "\n"


def _source(logger: str) -> str:
    if logger.startswith(AT_AGGREGATOR):
        return "aggregator"
    return "host" if logger.startswith(AT_HOSTS) else "driver"


def arrived(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the whole lines in the order of arrival, and how many cannot be read."""
    rows, bad = lines.read(folder / FILE)
    whole = [row for row in rows if {"time", "source", "level"} <= row.keys() and row["level"] in LEVELS]
    return whole, bad + len(rows) - len(whole)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the lines in the order of their times."""
    return in_time(arrived(folder)[0])


def in_time(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return lines in the order of their times."""
    return sorted(found, key=lambda line: line["time"])


def matching(found: Sequence[Mapping[str, Any]], site: str | None, round: int | None,
             level: str) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of a site and a round, of a level or above."""
    least = LEVELS.index(level)
    for line in found:
        is_of_site = site is None or line.get("site") == site or line.get("host") == site
        if is_of_site and round in (None, line.get("round")) and LEVELS.index(line["level"]) >= least:
            yield line


def told(line: Mapping[str, Any]) -> str:
    """Return a line for people: time, level, where, what."""
    at = datetime.fromisoformat(line["time"]).astimezone().strftime("%H:%M:%S")
    where = [f"{name} {line[name]}" for name in ("round", "stage") if name in line]
    where += [line[name] for name in ("site", "host") if name in line]
    what = [line[name] for name in ("kind",) if name in line]
    what += [f"at {line['where']}"] if "where" in line else []
    said = ": ".join(part for part in (" ".join(what), line.get("message", "")) if part)
    said += f" ({line['times']} times)" if line.get("times", 1) > 1 else ""
    said += f"; all of it in {line['traceback']} on that host" if "traceback" in line else ""
    return f"{at} {line['level']:<7} {line['source']:<10} {', '.join(where)}{'  ' if where else ''}{said}"
