"""Schemas of the group `privacy`: a whole site, or each patient, is protected. Start at `config_schema.py`.

What is null is taken from the run: `cohort`, `population`, `rounds`, `sampling` and `num_params`.
"""

from dataclasses import dataclass, field
from typing import Any

from fedray.config_schema_data import MISSING


def _delta() -> list[str]:
    return ["delta"]


def _metrics() -> list[str]:
    return ["metrics"]


@dataclass
class SiteLevel:
    """What all options for a whole site share."""

    clip: Any = 1.0
    """Largest L2 norm of what a site adds: one number, or {name: number}."""
    noise_multiplier: float | None = None
    """Noise over the clip bound; give this or `epsilon`."""
    epsilon: float | None = None
    """Epsilon of the whole run at `delta`, from which the noise follows."""
    delta: float = 1e-5
    """Delta of the epsilon."""
    cohort: float | None = None
    """Expected sites of a round, by which sums are divided; null takes the schedule's."""
    rounds: int | None = None
    """Rounds over which an epsilon is spent; null takes the run's."""
    only: list[str] | None = field(default_factory=_delta)
    """Names that are clipped and noised, as `egress` lists them; null takes every sum and mean."""
    exact: list[str] = field(default_factory=_metrics)
    """Names that leave as they are, without protection."""
    drop: list[str] = field(default_factory=list)
    """Names that are not sent at all."""
    weights: str | None = None
    """`uniform` drops the weights of a weighted mean; null refuses it."""
    max_noise: float = 10.0
    """A run is refused whose noise is so many clip bounds long; 1e9 lets any pass."""


@dataclass
class SiteDp(SiteLevel):
    """Gaussian noise on sums at the server, which is trusted with each site's update."""

    _target_: str = "fedray.passes.site_dp"
    population: int | None = None
    """Sites of which a cohort is drawn; null takes all of the data."""
    sampling: str | None = None
    """`poisson` claims amplification; null does so where the schedule samples so."""


@dataclass
class SiteDpAdaptive(SiteDp):
    """As site_dp, with a clip bound that follows a quantile of the updates' norms."""

    _target_: str = "fedray.passes.site_dp_adaptive"
    target: float = 0.5
    """Quantile of the norms that the bound follows."""
    lr: float = 0.2
    """How fast the bound moves."""
    mark_std: float | None = None
    """Noise on the number of sites within the bound; null takes cohort / 20."""


@dataclass
class SiteDpMatrix(SiteLevel):
    """Noise that later rounds take back in part, for sites that take turns."""

    _target_: str = "fedray.passes.site_dp_matrix"
    population: int | None = None
    """Sites that take turns; null takes all of the data."""
    bands: int | None = None
    """Rounds over which noise is correlated; null takes all between two turns of a site, if 4 or more."""


@dataclass
class SiteDpDistributed(SiteLevel):
    """Noise in shares of the sites, under a secure sum: the server is not trusted."""

    _target_: str = "fedray.passes.site_dp_distributed"
    num_params: int | None = None
    """Numbers of an update; null takes the model's."""
    honest: float = 2 / 3
    """Fraction of a cohort that is honest and delivers."""


@dataclass
class SiteDpLocal(SiteLevel):
    """The whole noise at each site: nobody is trusted, and little is left of the signal."""

    _target_: str = "fedray.passes.site_dp_local"


@dataclass
class DistributedRecord:
    """One private gradient step a round on the patients of all sites (DP-SGD), with noise in shares of the
    sites under a secure sum: nobody is trusted. For fedavg and fedadam with local=sgd and local.steps=1.
    """

    _target_: str = "fedray.passes.distributed_record"
    clip: float = 1.0
    """Largest norm of the gradient of one patient (or row, see unit)."""
    sampling_rate: float = 0.1
    """Probability with which a round takes a patient, the same at all sites."""
    num_patients: float = MISSING
    """Training patients of all sites together (rows, where unit is null); public."""
    num_params: int | None = None
    """Numbers of an update; null takes the model's."""
    cohort: float | None = None
    """Sites, all of which take part in every round; null takes the schedule's."""
    noise_multiplier: float | None = None
    """Deviation of the noise on the sum of honest sites, in units of clip; give this or `epsilon`."""
    epsilon: float | None = None
    """Epsilon of the whole run at `delta`, from which the noise follows."""
    delta: float = 1e-5
    """Delta of the epsilon."""
    rounds: int | None = None
    """Rounds over which an epsilon is spent; null takes the run's."""
    unit: str | None = "patient"
    """Column that says whose a row is; null gives a guarantee per row (a stay), and not per patient."""
    max_records_per_unit: int | None = None
    """Most rows of a patient that are used, chosen once; null clips all of a patient's rows together."""
    is_secret: bool = False
    """Draw patients from the system's entropy: for servers that may not know, by the seed, who was drawn."""
    honest: float = 2 / 3
    """Fraction of the sites that is honest and delivers."""
    max_site_norm: float | None = None
    """Norm at which a site's sum is cut; null takes what no batch reaches."""
    max_noise: float = 10.0
    """A run is refused whose noise is so many clip bounds long; .inf lets any pass."""


SCHEMAS: dict[str, type] = {
    "site_dp": SiteDp,
    "site_dp_adaptive": SiteDpAdaptive,
    "site_dp_matrix": SiteDpMatrix,
    "site_dp_distributed": SiteDpDistributed,
    "site_dp_local": SiteDpLocal,
    "distributed_record": DistributedRecord,
}
