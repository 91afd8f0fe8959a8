"""Small cells: what a record of one hospital may say where few patients stand behind it.

It applies on a real federation and is off in simulation. A count from 1 to 10, and all that would tell it, is
left out; zero is left out as well, for it says something of every patient. Defaults elsewhere: DataSHIELD 3,
PEDSnet 5, PCORnet and CMS 11.
"""

from collections.abc import Mapping, Sequence
from typing import Any

MIN_CELL = 11
KEPT = ("site", "round", "split")


def small_cells(sites: Sequence[Mapping[str, Any]], min_cell: int = MIN_CELL) -> list[dict[str, Any]]:
    """Return the sites' records without small cells; each says under `suppressed` whether something is left
    out.

    A site with fewer than `min_cell` patients, events or patients without the event keeps its name, and its
    count of patients where that is large enough; events and metrics go. Where exactly one site's count is
    gone, the total would tell it, so the next smallest goes too.
    """
    hidden_n = _with_company({i for i, site in enumerate(sites) if _count(site, "n") < min_cell}, sites, "n")
    small = {i for i, site in enumerate(sites) if "events" in site and min(_cells(site)) < min_cell}
    hidden = hidden_n | _with_company(small, sites, "events")
    return [_without(site, i in hidden, i in hidden_n) for i, site in enumerate(sites)]


def _count(site: Mapping[str, Any], name: str) -> float:
    return site.get(name) or 0


def _cells(site: Mapping[str, Any]) -> tuple[float, float]:
    return _count(site, "events"), _count(site, "n") - _count(site, "events")


def _with_company(hidden: set[int], sites: Sequence[Mapping[str, Any]], name: str) -> set[int]:
    others = [i for i in range(len(sites)) if i not in hidden]
    if len(hidden) != 1 or not others:
        return hidden
    return hidden | {min(others, key=lambda i: _count(sites[i], name))}


def _without(site: Mapping[str, Any], is_hidden: bool, is_count_hidden: bool) -> dict[str, Any]:
    if not is_hidden:
        return {**site, "suppressed": False}
    kept = {
        name: value if name in KEPT or (name == "n" and not is_count_hidden) else None
        for name, value in site.items()
    }
    return {**kept, "suppressed": True}
