"""Schemas of the groups `runtime` and `topology`: where it runs. Start at `config_schema.py`."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from fedray.config_schema_data import MISSING


class Kind(Enum):
    """Which transport carries the calls."""

    in_process = "in_process"
    ray = "ray"
    cluster = "cluster"


class Placement(Enum):
    """Whether the sites may leave the actors."""

    auto = "auto"
    actors = "actors"


@dataclass
class Runtime:
    """Where the sites and the aggregator run."""

    kind: Kind = MISSING
    """in_process, ray (started here) or cluster (already running)."""
    packs: int | None = None
    """Processes that hold the sites; null takes one per processor."""
    sites_per_actor: int | None = None
    """Sites per process instead of packs; 1 gives every site a Ray actor of its own."""
    group_size: int = 256
    """Sites computed together inside a process; changes cost only."""
    device: str = "cpu"
    """Where a process computes: cpu, cuda (which Ray's packs share), or cuda:0, in_process only."""


@dataclass
class InProcess(Runtime):
    """Everything in this process, one site after the other."""

    kind: Kind = Kind.in_process
    """Always in_process here."""
    latency: Any = None
    """Simulated clock: `{_target_: fedray.runtime.schedule.LognormalLatency}`; null takes the real one."""


@dataclass
class RayLocal(Runtime):
    """Ray on this machine, started and ended by the run."""

    kind: Kind = Kind.ray
    """Always ray here."""
    num_cpus: int | None = None
    """Processors that Ray may use; null takes all."""
    placement: Placement = Placement.auto
    """auto: sites with rounds under 20 ms of work move into the aggregator's process; actors: they stay."""
    patience_s: float = 90.0
    """Seconds without a sign of life until a process counts as lost; not a limit of a round."""


@dataclass
class Cluster(Runtime):
    """A Ray cluster that runs already."""

    kind: Kind = Kind.cluster
    """Always cluster here."""
    address: str = MISSING
    """Address of the running Ray cluster."""
    site_map: str | None = None
    """File with the node of each site, for topology=from_cluster; null deals sites to all nodes."""
    patience_s: float = 90.0
    """Seconds without a sign of life until a process counts as lost; not a limit of a round."""


@dataclass
class Regions:
    """Sites fold inside their declared region first."""

    regions: str = "declared"
    """`declared` takes the regions of the data set."""


@dataclass
class FromCluster:
    """Sites on their nodes and in their regions by runtime.site_map."""

    regional: bool = True
    """Fold each region's sites in an aggregator there, so that a model crosses to it once a round."""
    absent: bool = False
    """Start without sites whose node is not there; they count as failed, and join when it comes."""
