"""What to say where no line of a log is what was asked for: which sites and rounds a run has."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError
from fedray.observe import lines, trace

SHOWN = 8  # names


@dataclass(frozen=True, slots=True)
class Known:
    """The sites, hosts and rounds that a run's files name."""

    names: tuple[str, ...]
    rounds: tuple[int, ...]


def known(folder: Path, arrived: Sequence[Mapping[str, Any]]) -> Known:
    """Return the sites and hosts of log, timeline and evaluations, and the rounds of log and timeline."""
    timeline = trace.load(folder)
    evaluated, _ = lines.read(folder / "sites.jsonl")
    names = {str(line[key]) for line in (*arrived, *evaluated) for key in ("site", "host") if line.get(key)}
    names |= {site for group in timeline.groups.values() for site in group} | {*timeline.hosts.values()}
    rounds = {line["round"] for line in (*arrived, *timeline.lines) if isinstance(line.get("round"), int)}
    return Known(tuple(sorted(names)), tuple(sorted(rounds)))


def nothing(found: Known, site: str | None, round: int | None, level: str) -> str:
    """Return that nothing is said of a site and a round that are there.

    Raises ConfigError, which names those that are, where they are not.
    """
    if site is not None and site not in found.names:
        near = difflib.get_close_matches(site, found.names, SHOWN)
        raise ConfigError(f"--site {site}: no site or host of this name is in the run's files. "
                          f"Fix: --site {_listed(near or found.names) or 'left out: they name none'}")
    if round is not None and round not in found.rounds:
        there = f"{found.rounds[0]} to {found.rounds[-1]}" if found.rounds else "left out: there is none yet"
        raise ConfigError(f"--round {round}: the run's files have no such round, the first is 0. "
                          f"Fix: --round {there}")
    of = f" of {site}" if site is not None else ""
    within = f" in round {round}" if round is not None else ""
    return f"nothing of level {level} or above was said{of}{within}"


def _listed(names: Sequence[str]) -> str:
    more = f" ({len(names) - SHOWN} more)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
