"""What a host is asked and what it answers. A host runs site stages: a `Pack` of sites or a `Region` of
hosts.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from fedray import tree
from fedray.core.graph import IN_REGION
from fedray.errors import SiteError
from fedray.runtime.checkpoint import Parts, Saved
from fedray.runtime.fold import LaneSum, added, joined
from fedray.runtime.observed import Note, Span, Stamps
from fedray.runtime.plan import Plan

Exponents = Mapping[str, tuple[int, ...]]


def in_region(name: str, region: str) -> str:
    """Return the key of one region's part of a sum by region."""
    return f"{name}{IN_REGION}{region}"


def name_of(key: str) -> str:
    """Return the name under which a key's sum leaves, as `egress` lists it."""
    return key.partition(IN_REGION)[0]


@dataclass(frozen=True, slots=True)
class Commit:
    """The sites counted in one attempt of a round: their pending state becomes current, all other is
    dropped, but that of the attempts (round, attempt) in `keeps`, whose sites may be counted later.
    """

    plan: str
    round: int
    attempt: int
    counted: frozenset[str]
    keeps: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCall:
    """One request, named by (run, round, stage, cohort, attempt): asked twice, a host answers with equal
    bytes.
    """

    run: str
    plan: str
    seed: int
    round: int
    attempt: int
    stage: int
    cohort: tuple[str, ...]
    exponents: Exponents = field(default_factory=dict)
    commits: tuple[Commit, ...] = ()
    deadline: float | None = None  # on this process's monotonic clock
    is_apart: bool = False  # each site's own row is sent, and nothing is added up
    is_awaited: bool = False  # the deadline ends the waiting, not the work: see late.py

    def of(self, cohort: Sequence[str], commits: Sequence[Commit]) -> "StageCall":
        """Return the call for some of the sites."""
        return replace(self, cohort=tuple(cohort), commits=tuple(commits))

    def __reduce__(self) -> Any:
        """Travel with the seconds left: clocks of machines differ, and the time of day jumps."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        if self.deadline is not None:
            named["deadline"] = self.deadline - time.monotonic()
        return _arrived_call, (named,)


def _arrived_call(named: dict[str, Any]) -> StageCall:
    if named["deadline"] is not None:
        named["deadline"] += time.monotonic()
    return StageCall(**named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What a host sends up after a site stage: one atomic record.

    `needs` gives each lane's smallest exponents, at least the stated start where the call names none. Where
    they exceed the grid that was asked for, `sums` is empty, `is_folded` is false, and the host is asked
    again on a coarser grid, which costs a fold and no training. A sum is one part, or the parts of several
    hosts that nobody had to add yet. A sum by region is one entry for each region, under `in_region`. Where
    sites were asked apart, `rows` has {site: {name: its own row}} in place of sums.
    """

    delivered: tuple[str, ...]
    failures: tuple[SiteError, ...]
    sums: Mapping[str, tuple[LaneSum, ...]] = field(default_factory=dict)
    gathered: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, LaneSum]] = field(default_factory=dict)
    needs: Exponents = field(default_factory=dict)
    is_folded: bool = True
    processes: tuple[int, ...] = ()
    work_s: float = field(default=0.0, compare=False)  # that packs computed: see placement.py
    opened_bytes: int = field(default=0, compare=False)  # that packs read besides the downlink: see kept.py
    spans: tuple[Span, ...] = field(default=(), compare=False)  # when it worked, by its own clock
    notes: tuple[Note, ...] = field(default=(), compare=False)  # for the log of the run
    stamps: Stamps | None = field(default=None, compare=False)  # where its clock may be another

    def bytes_by_name(self) -> dict[str, int]:
        """Return the payload bytes under each name."""
        found: dict[str, int] = {}
        for key, parts in self.sums.items():
            found[name_of(key)] = found.get(name_of(key), 0) + sum(part.nbytes for part in parts)
        for each in self.rows.values():
            for name, own in each.items():
                found[name] = found.get(name, 0) + own.nbytes
        for name, values in self.gathered.items():
            found[name] = found.get(name, 0) + sum(tree.nbytes(value) for value in values.values())
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a host must know before it runs a plan: the plan, how site state starts, and, where the plan asks
    for it, the region of each site.

    `is_start` begins a run: plans and site state of the run before are forgotten, and `restore` names the
    checkpoint (address, round, parts) to go on from, if there is one. `journal` is the folder, at the host,
    or the address where answers of one-shot rounds are written down; "" writes none (made-up sites). `run`
    names the run for the file on the host's own disk that full tracebacks go to; "" writes none.
    """

    plan: Plan
    initial: Mapping[str, Any] = field(default_factory=dict)
    is_start: bool = False
    restore: Saved | None = None
    regions: Mapping[str, str] = field(default_factory=dict)
    journal: str = ""
    run: str = ""


class Host(Protocol):
    """What the round loop asks of packs and regions alike."""

    def hello(self) -> dict[str, int]:
        """Open the data of every site and return the number of training rows of each."""
        ...

    def blank(self) -> Any:
        """Return a made-up site: the columns of one site with zeros in a few rows."""
        ...

    def rehearse(self, asked: Any) -> Any:
        """Try programs on made-up rows; `asked` arrives as a downlink does."""
        ...

    def prepare(self, transform: Any) -> None:
        """Pass every site's data through a function, there."""
        ...

    def load(self, load: Load) -> None:
        """Verify and keep a plan."""
        ...

    def run(self, call: StageCall, downlink: Any) -> Contribution:
        """Run one site stage for the cohort."""
        ...

    def commit(self, commits: Sequence[Commit]) -> None:
        """Make pending site state current, or drop it."""
        ...

    def save(self, address: str, round: int) -> Parts:
        """Write the sites' state to the site's own disk, or to the run's store; return the seals of the
        files.
        """
        ...


def join(parts: Sequence[Contribution], exponents: Exponents) -> Contribution:
    """Put the answers of several hosts into one record, sums side by side; their order does not matter."""
    if len(parts) == 1:
        return parts[0]
    needs: dict[str, tuple[int, ...]] = {}
    for part in parts:
        for name, found in part.needs.items():
            needs[name] = tuple(map(max, found, needs[name])) if name in needs else tuple(found)
    is_folded = all(part.is_folded for part in parts)
    names = list(dict.fromkeys(name for part in parts for name in part.sums))
    sums = (
        {
            name: joined(
                name,
                [one for part in parts for one in part.sums.get(name, ())],
                exponents.get(name, needs[name]),
            )
            for name in names
        }
        if is_folded
        else {}
    )
    gathered = {
        name: {site: value for part in parts for site, value in part.gathered.get(name, {}).items()}
        for name in dict.fromkeys(name for part in parts for name in part.gathered)
    }
    return Contribution(
        delivered=tuple(sorted(site for part in parts for site in part.delivered)),
        failures=tuple(failure for part in parts for failure in part.failures),
        sums=sums,
        gathered=gathered,
        rows={site: own for part in parts for site, own in part.rows.items()},
        needs=needs,
        is_folded=is_folded,
        processes=tuple(pid for part in parts for pid in part.processes),
        work_s=sum(part.work_s for part in parts),
        opened_bytes=sum(part.opened_bytes for part in parts),
        spans=tuple(span for part in parts for span in part.spans),
        notes=tuple(note for part in parts for note in part.notes),
    )


def folded(answer: Contribution, exponents: Exponents) -> Contribution:
    """Return a record whose sums are one partial sum each, as it travels."""
    grids = {name: exponents.get(name, answer.needs[name]) for name in answer.sums}
    return replace(answer, sums={name: (added(parts, grids[name]),) for name, parts in answer.sums.items()})
