"""Ages: the contributions of a buffer, added up age by age.

Sites of one age count by one factor, so that their sum is exact, in any order; the few sums are then scaled
and added in the order of their ages (`totals.scaled`). Without differences in age a buffer is a cohort, to
the bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedray.errors import QuorumError, ScheduleError, SiteError
from fedray.runtime import fold, lanes
from fedray.runtime.discounts import Discount
from fedray.runtime.flights import Flight
from fedray.runtime.host import Contribution, Exponents


def by_age(
    landed: Sequence[Flight], version: int, discount: Discount, exponents: Exponents
) -> list[tuple[float, Contribution]]:
    """Return (factor, contribution) of each age, youngest first; `needs` is the grid that holds all of them.

    Raises QuorumError where the factors are all zero: nothing would be counted; ScheduleError where one is no
    number in [0, 1].
    """
    ages: dict[int, list[Flight]] = {}
    for flight in landed:
        ages.setdefault(version - flight.version, []).append(flight)
    grids = _grids(landed, exponents)
    found = [(float(discount(age)), _joined(ages[age], grids)) for age in sorted(ages)]
    for age, (factor, _) in zip(sorted(ages), found, strict=True):
        if not 0 <= factor <= 1:
            raise ScheduleError(
                f"round {version}: discount={discount!r} gives {factor} at the age {age}: "
                "give a number in [0, 1]"
            )
    if not any(factor for factor, _ in found):
        raise QuorumError(
            f"round {version}: the discount gives 0 at the ages {sorted(ages)} of a whole buffer; lower "
            "schedule.concurrency, or take another discount"
        )
    return found


def _joined(flights: Sequence[Flight], grids: Exponents) -> Contribution:
    """Return what sites sent apart as one record."""
    rows = {each.site: each.rows or {} for each in sorted(flights, key=lambda each: each.site)}
    names = dict.fromkeys(name for own in rows.values() for name in own)
    gathered: dict[str, dict[str, Any]] = {}
    for each in flights:
        for name, value in each.gathered.items():
            gathered.setdefault(name, {})[each.site] = value
    return Contribution(
        delivered=tuple(rows),
        failures=(),
        sums={name: fold.joined(name, [own[name] for own in rows.values()], grids[name]) for name in names},
        gathered=gathered,
        needs=grids,
    )


def _grids(landed: Sequence[Flight], exponents: Exponents) -> dict[str, tuple[int, ...]]:
    """Return the grid of each name: the last one's, as coarse as the values need."""
    found: dict[str, tuple[int, ...]] = {}
    for flight in landed:
        for name, row in (flight.rows or {}).items():
            start = tuple(leaf.start for leaf in fold.specs(row.spec))
            before = found.get(name, exponents.get(name, start))
            found[name] = tuple(map(max, before, _needs(row)))
    return found


def _needs(row: fold.LaneSum) -> list[int]:
    if not row.weight:
        return [lanes.NO_NEED] * len(row.arrays)
    return [lanes.exponent_of(float(np.abs(each).max()) if each.size else 0.0) for each in row.matrices()]


def facts(landed: Sequence[Flight], version: int, num_versions: int) -> Mapping[str, Any]:
    """Return what the record of a round says of ages."""
    ages = [version - each.version for each in landed]
    return {"staleness_mean": sum(ages) / len(ages), "staleness_max": max(ages), "versions": num_versions}


def bytes_of(landed: Sequence[Flight]) -> int:
    """Return the bytes that the contributions of a buffer have brought."""
    parts = (
        Contribution(
            delivered=(each.site,),
            failures=(),
            rows={each.site: each.rows or {}},
            gathered={name: {each.site: value} for name, value in each.gathered.items()},
        )
        for each in landed
    )
    return sum(size for part in parts for size in part.bytes_by_name().values())


def told(failures: Sequence[SiteError], version: int) -> tuple[SiteError, ...]:
    """Return failures under the round in which they were learnt of."""
    return tuple(SiteError(each.site, version, each.stage, each.kind, each.where) for each in failures)
