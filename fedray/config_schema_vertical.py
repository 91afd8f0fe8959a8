"""Schemas of split and vertical algorithms: parts of one model at sites and server. Start at
`config_schema.py`.
"""

from dataclasses import dataclass, field
from typing import Any

from fedray.config_schema_data import MISSING, Data


@dataclass
class Parties(Data):
    """Sites that hold other columns of the same records: those of another data set, dealt out by columns."""

    _target_: str = "fedray.data.by_columns"
    of: Any = MISSING
    """The data set whose columns are dealt out; all its rows are read in one place: simulation only."""
    num_sites: int = 3
    """Sites that the columns are dealt to; the first one has the outcome too."""
    missing: float = 0.0
    """Share of the rows that each site lacks."""
    min_shared: int = 50
    """Fewest records at all sites that may be used."""
    valid_fraction: float = 0.1
    """Share of the common records held back for validation."""
    test_fraction: float = 0.2
    """Share of the common records held back for the test."""
    seed: int = "${seed}"  # type: ignore[assignment]
    """Seed of who lacks what, of the order of rows, and of the split."""
    scaled: bool = True
    """Each site brings its own columns to one scale, and fills gaps, after linking."""
    standardise: bool = False
    """Not for columns of one's own: see scaled."""


@dataclass
class Split:
    """Split learning: the first layers at the site whose turn it is, the others at the server."""

    _target_: str = "fedray.algorithms.split"
    cut: int = 1
    """Layers of the model that run at a site."""
    lr: Any = 0.1
    """Learning rate of both halves, or a schedule of the round; the group local is not used."""
    batch_size: int | None = 32
    """Rows in a batch; null takes all rows."""
    steps: int = 1
    """Batches in a turn, each an exchange of its own."""


@dataclass
class Splitfed(Split):
    """Split learning at all sites at once, whose first layers are averaged."""

    _target_: str = "fedray.algorithms.splitfed"
    variant: str = "V1"
    """V1: a copy of the server's layers a site, averaged too; V2: one, stepped for one site after another."""


@dataclass
class VerticalLogistic:
    """Logistic regression whose columns lie at several sites; needs data=parties or sites of that kind."""

    _target_: str = "fedray.algorithms.vertical_options.from_bias"
    bias: float = 0.0
    """First intercept, in log odds: a rare outcome starts near its rate; weights start from zeros."""
    lr: Any = 0.1
    """Learning rate, or a schedule of the round; the groups model and local are not used."""
    batch_size: int | None = None
    """Records in a batch; null takes all records."""
    l2: float = 0.0
    """Penalty l2/2 times the squared weights, without the intercept."""


@dataclass
class VerticalTowers:
    """A network at each site on its own columns, and a head at the server; needs data=parties or the like."""

    _target_: str = "fedray.algorithms.vertical_options.of_widths"
    hidden: list[int] = field(default_factory=lambda: [16])
    """Widths of the hidden layers of a site's network."""
    width: int = 8
    """Numbers that a site's network gives for a record."""
    head: list[int] = field(default_factory=lambda: [16])
    """Widths of the hidden layers of the head."""
    lr: Any = 0.1
    """Learning rate, or a schedule of the round; the groups model and local are not used."""
    batch_size: int | None = 64
    """Records in a batch; null takes all records."""
    merge: str = "concat"
    """What the head is given: concat, the sites' numbers side by side, or sum, which hides whose they are."""
