"""The timeline of the page: where each host's time went, and what hosts did around the slowest round.

Made from timeline.jsonl alone, drawn as the other figures are: see figures.py.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fedray.observe.chrome import SHARED, by_host, clocks_told, idle
from fedray.observe.trace import AGGREGATOR, Timeline, load, sums_of
from fedray.report.figures import AMBER, INK, PALE, RED, SOFT, TEAL, svg

MAX_HOSTS = 24  # that are drawn: those that worked most
LABEL = 0.07  # of the width that the name of a round takes
AROUND = 1  # rounds before and after the slowest one
WAIT = "#e9edf0"
COLOURS = {"compute": TEAL, "downlink": "#5b8db8", "uplink": "#93b7d5", "evaluation": PALE,
           "checkpoint": "#8a7aa8", "preparation": "#c9bfda", "late": AMBER, "lost": RED, "waiting": WAIT}


def context(folder: Path) -> dict[str, Any] | None:
    """Return what the page says of the timeline of a run; None where none was recorded."""
    found = load(folder)
    if not found.lines:
        return None
    sums = {host: told for host, told in sums_of(found).items() if host != AGGREGATOR}
    if not sums:
        return None
    shown = _shown(sums)
    later = found.lines[1:] or found.lines  # the first round opens data and fills caches
    slowest = max(later, key=lambda line: line["at"][1] - line["at"][0])
    return {
        "hosts": len(sums), "drawn": len(shown), "rounds": found.rounds, "recorded": len(found.lines),
        "shares": shares(sums, shown), "around": around(found, shown, slowest["round"]),
        "clocks": clocks_told(found) if _differ(found) else {},
        "shared": SHARED if any(told["sites"] > 1 for told in sums.values()) else "",
    }  # fmt: skip


def _shown(sums: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the hosts that worked most, in the order of their names."""
    work = {host: sum(seconds for what, seconds in told["seconds"].items() if what != "waiting")
            for host, told in sums.items()}  # fmt: skip
    most = sorted(work, key=lambda host: (-work[host], host))[:MAX_HOSTS]
    return sorted(most, key=_by_number)


def _by_number(host: str) -> list[tuple[int, str]]:
    """Sort pack10 behind pack9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", host)]


def _differ(found: Timeline) -> bool:
    return any(ahead for ahead, _ in found.clocks.values())


def _label(host: str, told: Mapping[str, Any]) -> str:
    if told.get("site"):
        return str(told["site"])
    return f"{host} ({told['sites']} sites)" if told.get("sites") else host


def shares(sums: Mapping[str, Mapping[str, Any]], shown: Sequence[str]) -> str:
    """Draw what each host did over all rounds, in seconds."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        at = range(len(shown))
        left = [0.0] * len(shown)
        for what, colour in COLOURS.items():
            seconds = [sums[host]["seconds"].get(what, 0.0) for host in shown]
            if any(seconds):
                axes.barh(at, seconds, 0.66, left=left, color=colour, label=what)
                left = [before + more for before, more in zip(left, seconds, strict=True)]
        axes.set_yticks(at, [_label(host, sums[host]) for host in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set(xlabel="seconds, all rounds", title="Where the time of each host went")
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside lower center", ncols=len(COLOURS))

    return svg(draw, "seconds of each host by what it did", 9.4, 1.3 + 0.27 * len(shown))


def around(found: Timeline, shown: Sequence[str], slowest: int) -> str:
    """Draw what hosts did in the slowest round, the first one apart, and in those right beside it."""
    lines = [line for line in found.lines if abs(line["round"] - slowest) <= AROUND]
    sums, later = sums_of(found), " after the first" if len(found.lines) > 1 else ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        start = lines[0]["at"][0]
        whole, drawn, named = lines[-1]["at"][1] - start, set[str](), float("-inf")
        for line in lines:
            drawn |= _round(axes, found, line, start, shown)
            at = line["at"][0] - start
            if at - named >= LABEL * whole:  # else the names would cover each other
                _name(axes, line["round"], at / 1e3)
                named = at
        axes.set_yticks(range(len(shown)), [_label(host, sums[host]) for host in shown])
        axes.set_ylim(len(shown) - 0.4, -0.9)
        axes.set_xlim(0, 1.005 * (lines[-1]["at"][1] - start) / 1e3)
        axes.set(xlabel="seconds", title=f"Around round {slowest + 1}, the slowest{later}")
        axes.grid(axis="y", visible=False)
        seen = [(what, colour) for what, colour in COLOURS.items() if what in drawn]
        handles = [Patch(color=colour, label=what) for what, colour in seen]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(COLOURS))

    return svg(draw, "what each host did around the slowest round", 9.4, 1.5 + 0.27 * len(shown))


def _name(axes: Axes, number: int, at: float) -> None:
    axes.annotate(f"round {number + 1}", (at, -0.75), xytext=(3, 0), textcoords="offset points", fontsize=8,
                  color=SOFT, va="center")  # fmt: skip


def _round(axes: Axes, found: Timeline, line: Mapping[str, Any], start: float,
           shown: Sequence[str]) -> set[str]:
    """Draw a round, with a line where it begins; return what was done in it."""
    began, ended = line["at"]
    axes.axvline((began - start) / 1e3, color=INK, lw=0.8)
    own, drawn = by_host(list(found.spans(line["spans"], line["round"]))), set()
    for row, host in enumerate(shown):
        bars: dict[str, list[tuple[float, float]]] = {}
        for span in own.get(host, ()):
            if span.ended > start:
                first = max(span.began, start)
                bars.setdefault(span.what, []).append(((first - start) / 1e3, (span.ended - first) / 1e3))
        for at, length in idle(own.get(host, ()), began, ended):
            bars.setdefault("waiting", []).append(((at - start) / 1e3, length / 1e3))
        for what, found_bars in bars.items():
            axes.broken_barh(found_bars, (row - 0.33, 0.66), color=COLOURS[what], lw=0)
        drawn |= bars.keys()
    return drawn
