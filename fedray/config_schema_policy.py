"""Schemas of the group `policy`: what may leave a site. Start at `config_schema.py`."""

from dataclasses import dataclass, field
from typing import Any


def _membership() -> list[str]:
    return ["membership"]


@dataclass
class Airlock:
    """A site tests its update before it leaves. null switches a test off."""

    _target_: str = "fedray.airlock.of_policy"
    min_rows: int | None = 32
    """Fewest rows that an update is made of (rows of a step x steps); of fewer, rows can be read off it."""
    max_rebuilt: int | None = None
    """How many training rows may be read off the update by the ratio of weights and bias."""
    membership: float | None = 0.2
    """Largest 2 AUROC - 1 of the loss in telling training from validation rows, less 2 standard errors."""
    max_update_l2: float | None = None
    """Largest L2 norm of the update."""
    report: list[str] = field(default_factory=_membership)
    """Names of the settings above whose tests only report; an update that fails another is withheld."""


@dataclass
class Hospital:
    """Refuse a plan that shows the server the value of a single site; sites test what they send."""

    _target_: str = "fedray.passes.policy.require"
    released: list[str] | None = None
    """Names that may leave as a sum; null allows every name."""
    visible: list[str] = field(default_factory=list)
    """Names that may leave site by site."""
    hub: str = "trusted"
    """`curious`: the server may not be trusted with plaintext: sums are masked, and its noise is refused."""
    airlock: Any = field(default_factory=Airlock)
    """How a site tests its update before it leaves; null lets every update leave."""


@dataclass
class Open:
    """Every plan may run."""

    airlock: Any = None
    """How a site tests its update before it leaves: a `_target_` and its settings; null does not test."""
