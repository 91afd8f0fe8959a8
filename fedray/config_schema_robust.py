"""Schemas of the group `robustness`: what takes the place of the mean. Start at `config_schema.py`."""

from dataclasses import dataclass, field
from typing import Any


def _delta() -> list[str]:
    return ["delta"]


@dataclass
class Median:
    """The median of what the sites send, number by number."""

    _target_: str = "fedray.passes.median"
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are replaced, as `egress` lists them."""


@dataclass
class TrimmedMean:
    """The mean without the largest and smallest values of each number."""

    _target_: str = "fedray.passes.trimmed_mean"
    attackers: Any = 0.2
    """How many sites are assumed to attack: a number, or a share of those that delivered, rounded up."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are replaced, as `egress` lists them."""


@dataclass
class Krum:
    """The update of the one site that lies closest to its neighbours."""

    _target_: str = "fedray.passes.krum"
    attackers: Any = 0.2
    """How many sites are assumed to attack: a number, or a share of those that delivered, rounded up."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are replaced, as `egress` lists them."""


@dataclass
class MultiKrum:
    """The mean of the sites that lie closest to their neighbours."""

    _target_: str = "fedray.passes.multi_krum"
    attackers: Any = 0.2
    """How many sites are assumed to attack: a number, or a share of those that delivered, rounded up."""
    keep: int | None = None
    """How many sites are averaged; null is all but the attackers."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are replaced, as `egress` lists them."""


@dataclass
class Bulyan:
    """Krum picks sites, and their values near the median are averaged, number by number."""

    _target_: str = "fedray.passes.bulyan"
    attackers: Any = 0.1
    """How many sites are assumed to attack: a number, or a share of those that delivered, rounded up."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are replaced, as `egress` lists them."""


@dataclass
class Rfa:
    """The geometric median of the updates."""

    _target_: str = "fedray.passes.rfa"
    iterations: int = 8
    """How often the weights are computed."""
    smoothing: float = 1.0e-6
    """Distances below it count as it."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are replaced, as `egress` lists them."""


@dataclass
class ThreeSigma:
    """The mean of the sites whose distance from the geometric median is usual."""

    _target_: str = "fedray.passes.three_sigma"
    sigmas: float = 3.0
    """How many deviations above the median distance are usual."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are replaced, as `egress` lists them."""


@dataclass
class ResidualReweighting:
    """Sites far from the mean weigh less, and none beyond a point."""

    _target_: str = "fedray.passes.residual_reweighting"
    iterations: int = 8
    """How often the weights are computed."""
    bound: float = 2.0
    """Residuals up to bound x sqrt(2 / sites) scales weigh in full."""
    least: float = 0.1
    """A lower weight is none, in [0, 1)."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are replaced, as `egress` lists them."""


@dataclass
class NormBound:
    """Long updates are scaled down; their direction counts in full."""

    _target_: str = "fedray.passes.norm_bound"
    max_norm: float | None = None
    """The bound, kept at the sites and checked at the server; null is the median norm of the round."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are replaced, as `egress` lists them."""


@dataclass
class CentredClipping:
    """The last result, moved by what sites say, each up to a radius."""

    _target_: str = "fedray.passes.centred_clipping"
    iterations: int = 1
    """How often the weights are computed."""
    radius: float | None = None
    """How far a site may move the result; null is the median distance."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are replaced, as `egress` lists them."""


@dataclass
class Foolsgold:
    """Sites that send alike over the rounds weigh little."""

    _target_: str = "fedray.passes.foolsgold"
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are replaced, as `egress` lists them."""


@dataclass
class Bucketing:
    """Sites are averaged in random buckets, and these go to another rule."""

    _target_: str = "fedray.passes.bucketing"
    size: int = 2
    """Sites in a bucket."""
    then: Any = field(default_factory=Median)
    """The rule for what is mixed: a `_target_` of `fedray.passes` and its settings."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are replaced, as `egress` lists them."""


@dataclass
class Nnm:
    """Each update becomes the mean of those nearest to it, and these go to another rule."""

    _target_: str = "fedray.passes.nnm"
    attackers: Any = 0.2
    """How many sites are assumed to attack: a number, or a share of those that delivered, rounded up."""
    then: Any = field(default_factory=TrimmedMean)
    """The rule for what is mixed: a `_target_` of `fedray.passes` and its settings."""
    only: list[str] = field(default_factory=_delta)
    """Names of the means that are replaced, as `egress` lists them."""


@dataclass
class Quarantine:
    """Leave a site out for some rounds when it lies far from the result again and again."""

    _target_: str = "fedray.passes.quarantine"
    then: Any = field(default_factory=Rfa)
    """The rule that is watched: a `_target_` of `fedray.passes` and its settings."""
    limit: float = 5.0
    """How many median distances from the result are a strike."""
    strikes: int = 3
    """Strikes in a row after which a site is left out."""
    rounds: int = 10
    """For how many rounds."""
    probation: int = 10
    """For how many rounds after that one strike sends it back."""
    most: float = 0.3
    """Share of the sites seen that is never exceeded by those left out, below 0.5."""


SCHEMAS = {
    "median": Median, "trimmed_mean": TrimmedMean, "krum": Krum, "multi_krum": MultiKrum, "bulyan": Bulyan,
    "rfa": Rfa, "three_sigma": ThreeSigma, "residual_reweighting": ResidualReweighting,
    "norm_bound": NormBound, "centred_clipping": CentredClipping, "foolsgold": Foolsgold,
    "bucketing": Bucketing, "nnm": Nnm, "quarantine": Quarantine,
}
