"""What a run writes down: one record per round, one per evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedray.errors import SiteError
from fedray.runtime.observed import Observed


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """One round. `hashes` names each aggregate and the server state, so that two runs can be compared bit by
    bit.
    """

    round: int
    attempt: int
    metrics: Mapping[str, float]
    asked: int
    counted: int
    failures: tuple[SiteError, ...]
    seconds: float
    bytes_up: int
    bytes_down: int
    hashes: Mapping[str, str] = field(default_factory=dict)
    grids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    status: str = "counted"  # or "skipped"
    fold: str = "exact"  # or "fast": hashes of two runs then differ
    work_s: float = 0.0  # that the packs computed, added up over them
    site_bytes: int | None = None  # that the counted sites would have sent, each alone in its process
    late: int | None = None  # sites counted that were asked in an earlier round: see late.py
    staleness_mean: float | None = None  # of a buffer, or of late work: steps since its sites were asked
    staleness_max: int | None = None
    versions: int | None = None  # of the server's model that sites worked on meanwhile
    epsilon: float | None = None  # that the run had spent after it; None where it draws no noise
    away: tuple[str, ...] = ()  # sites whose node was not there when they were asked last
    placement: str = "aggregator"  # whose process the sites were in, or "actors": see placement.py
    waited_s: float = 0.0  # for the slowest hosts, after half of them had answered
    observed: Observed | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """One evaluation: pooled metrics over all sites' rows of a split, and one mapping per site."""

    round: int
    split: str
    metrics: Mapping[str, Any] = field(repr=False)  # histograms among them: too long to print
    sites: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call that a transport submitted: which host, what, for which sites, with which downlink object."""

    host: str
    method: str
    round: int
    stage: int
    attempt: int
    sites: int
    downlink: str
    process: str = ""
