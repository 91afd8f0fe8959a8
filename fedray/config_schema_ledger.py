"""Schema of the section `ledger`: where privacy is counted over all studies, and how much may be spent."""

from dataclasses import dataclass


@dataclass
class Ledger:
    """Count what runs with noise have spent on the same data, and refuse what would be too much."""

    path: str | None = None
    """File of the ledger, the same for all studies on the data; null counts each run for itself."""
    dataset: str | None = None
    """Name and version of the data, as its holder calls it, such as "icu 2026-03"; kept as a hash only."""
    epsilon: float | None = None
    """What may be spent on each site's data and unit, over all studies; null only counts."""
    delta: float = 1e-5
    """At which epsilon is told and compared; well under 1 / patients."""
