"""Schema of what a policy says of updates before they leave a site: `policy.airlock`. Start at
`config_schema.py`.
"""

from dataclasses import dataclass, field


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
