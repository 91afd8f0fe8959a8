"""timeline.json: the timeline of a run in Chrome's trace format, for chrome://tracing and Perfetto.

A process per host and one for the aggregator; in it a track of the host, and a track for a site that was
computed by itself where the host holds several. Sites that one stacked program trains share its span.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray.observe.trace import AGGREGATOR, Timeline, load, sums_of
from fedray.runtime.observed import Span
from fedray.runtime.storage import failed

logger = logging.getLogger(__name__)
FILE = "timeline.json"
MAX_NAMES = 8  # of sites that an event names
SMALLEST_MS = 0.02  # of waiting that is drawn
Event = dict[str, Any]
SHARED = "Sites that one stacked program trains together share its compute span."
WAITING = ("Waiting: a host has nothing to do, its call is on the way or in the queue, the aggregator works, "
           "or other hosts are not ready.")


def write(folder: Path) -> Path | None:
    """Write timeline.json and return its path; None where nothing was recorded or the disk is full."""
    found = load(folder)
    if not found.lines:
        return None
    temporary = folder / f"{FILE}.part"
    head = {"run": folder.resolve().name, "rounds": found.rounds, "drawn": len(found.lines),
            "every": found.stride, "sites": SHARED, "waiting": WAITING, "clocks": clocks_told(found)}
    try:
        with temporary.open("w") as file:
            file.write('{"displayTimeUnit":"ms","otherData":' + json.dumps(head) + ',"traceEvents":[\n')
            file.writelines(_joined(json.dumps(event, separators=(",", ":")) for event in _events(found)))
            file.write("\n]}\n")
        os.replace(temporary, folder / FILE)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        logger.warning("%s. `fedray report` writes it again", failed(folder / FILE, error, "written"))
        return None
    return folder / FILE


def _joined(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        yield ",\n" * bool(number) + text


def clocks_told(found: Timeline) -> dict[str, str]:
    """Return what is known of each host's clock, in words."""
    told = {}
    for host, (ahead, error) in found.clocks.items():
        by = f"{1e3 * ahead:+.2f} ms ahead of" if ahead else "the same as"
        told[host] = f"{by} the aggregator's, to within {1e3 * error:.2f} ms"
    return told


def _events(found: Timeline) -> Iterator[Event]:
    tracks = _Tracks(found)
    yield from tracks.heads()
    for line in found.lines:
        number, (began, ended) = line["round"], line["at"]
        yield _event("round", 0, 0, began, ended - began, {"round": number})
        spans = list(found.spans(line["spans"], number))
        for span in spans:
            yield from tracks.events(span)
        for host, own in by_host(spans).items():
            for start, length in idle(own, began, ended):
                yield _event("waiting", tracks.pids[host], 0, start, length, {"round": number})
    last = found.lines[-1]["round"]
    for span in found.spans(found.after, last):
        yield from tracks.events(span)


def by_host(spans: Sequence[Span]) -> dict[str, list[Span]]:
    """Return the spans of each host; the aggregator waits for none of its own."""
    own: dict[str, list[Span]] = {}
    for span in spans:
        if span.host != AGGREGATOR:
            own.setdefault(span.host, []).append(span)
    return own


def idle(spans: Sequence[Span], began: float, ended: float) -> Iterator[tuple[float, float]]:
    """Yield begin and length of what a host's spans leave free between two times."""
    at = began
    for span in sorted(spans, key=lambda each: each.began):
        if min(span.began, ended) - at > SMALLEST_MS:
            yield at, min(span.began, ended) - at
        at = max(at, span.ended)
    if ended - at > SMALLEST_MS:
        yield at, ended - at


class _Tracks:
    """The processes and threads that stand for hosts and for sites alone."""

    def __init__(self, found: Timeline) -> None:
        names = [name for name in found.hosts.values() if name != AGGREGATOR]
        self.pids = {AGGREGATOR: 0, **{name: number for number, name in enumerate(names, start=1)}}
        self.sums: Mapping[str, Mapping[str, Any]] = sums_of(found)
        self.threads: dict[tuple[str, str], int] = {}

    def heads(self) -> Iterator[Event]:
        """Yield what names the processes."""
        for host, pid in self.pids.items():
            told = self.sums.get(host, {})
            sites = told.get("site") or (f"{told['sites']} sites" if told.get("sites") else "")
            name = host if not sites or host == AGGREGATOR else f"{host} · {sites}"
            yield {"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": name}}
            yield {"name": "process_sort_index", "ph": "M", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
            yield {"name": "thread_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": "host"}}

    def events(self, span: Span) -> Iterator[Event]:
        """Yield a span, on its host's track or its site's own."""
        pid, thread = self.pids[span.host], 0
        facts: dict[str, Any] = {"round": span.round}
        if span.sites:
            facts |= {"sites": len(span.sites), "names": ", ".join(span.sites[:MAX_NAMES])}
        is_several = not self.sums.get(span.host, {}).get("site")
        if len(span.sites) == 1 and is_several:
            key = span.host, span.sites[0]
            if key not in self.threads:
                self.threads[key] = thread = len(self.threads) + 1
                yield {"name": "thread_name", "ph": "M", "pid": pid, "tid": thread,
                       "args": {"name": span.sites[0]}}
            thread = self.threads[key]
        yield _event(span.what, pid, thread, span.began, span.ended - span.began, facts)


def _event(name: str, pid: int, thread: int, began_ms: float, length_ms: float,
           facts: Mapping[str, Any]) -> Event:
    return {"name": name, "cat": "fedray", "ph": "X", "pid": pid, "tid": thread, "ts": round(1e3 * began_ms),
            "dur": round(1e3 * max(0.0, length_ms)), "args": dict(facts)}
