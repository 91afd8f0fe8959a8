"""Schemas of the algorithms against drift, and of the asynchronous ones, in the group `algorithm`.

Start at `config_schema.py`.
"""

from dataclasses import dataclass, field
from typing import Any

from fedray.config_schema_learn import ServerRule


@dataclass
class Cyclic:
    """The model travels from site to site, one visit a round; needs schedule=cyclic."""

    _target_: str = "fedray.algorithms.cyclic"


@dataclass
class Feddyn:
    """A regulariser at each site that changes with what the site has learnt."""

    _target_: str = "fedray.algorithms.feddyn"
    alpha: float = 0.1
    """Strength of the regulariser; with 0 it is uniform federated averaging."""


@dataclass
class Fedexp:
    """Federated averaging with a server rate that the updates choose."""

    _target_: str = "fedray.algorithms.fedexp"
    eps: float = 1e-3
    """Added to the squared norm of the mean update."""
    average: bool = True
    """Report the mean of the last two iterates; without, the last one."""
    weighted: bool = False
    """Weigh updates by training rows; without, every site counts the same, as in the paper."""


@dataclass
class Fedlin:
    """Local steps along the global gradient, at a rate that shrinks with their number."""

    _target_: str = "fedray.algorithms.fedlin"
    weighted: bool = False
    """Weigh gradients and updates by training rows; without, every site counts the same, as in the paper."""


@dataclass
class Fedlora:
    """Low-rank adapters over a model that stays as it is."""

    _target_: str = "fedray.algorithms.fedlora"
    layers: list[str] | None = None
    """Parameters or layers with an adapter; null takes all of two dimensions or more."""
    rank: Any = 4
    """Rank of an adapter, or of each site's as {site: rank} for `variant=stacked`."""
    alpha: float | None = None
    """The product of the factors counts alpha / rank times; null counts it once."""
    variant: str = "stacked"
    """`stacked`: exact mean of the products; `naive`: factors averaged apart; `ffa`: one factor frozen."""
    init: str = "kaiming"
    """How the lower factor is drawn: `kaiming` or `gaussian`."""
    optimizer: Any = None
    """How the mean update moves the factors of `naive` and `ffa`; null adds it."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""
    seed: int = 0
    """Draws the lower factor of `naive` and `ffa`."""


@dataclass
class Fednova:
    """Normalised averaging: a site that takes more steps does not count for more."""

    _target_: str = "fedray.algorithms.fednova"
    mu: float = 0.0
    """Strength of a pull to the global model."""
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the global model."""
    weighted: bool = True
    """Weigh directions by training rows; without, every site counts the same."""


@dataclass
class Mimelite:
    """Local steps with the momentum of the server, which they do not change; one exchange a round."""

    _target_: str = "fedray.algorithms.mimelite"
    momentum: float = 0.9
    """Share of the momentum that is kept from round to round."""
    server_lr: float = 1.0
    """Server learning rate."""
    weighted: bool = False
    """Weigh gradients and updates by training rows; without, every site counts the same, as in the paper."""


@dataclass
class Mime(Mimelite):
    """MIMELite with a correction of drift, in two exchanges a round."""

    _target_: str = "fedray.algorithms.mime"
    control: str = "batch"
    """batch: the correction is taken on the batch of a step, as in the paper; rows: on all rows of a site."""


@dataclass
class Fedasync:
    """The server's model moves towards each model that arrives; with schedule=buffered schedule.size=1."""

    _target_: str = "fedray.algorithms.fedasync"
    alpha: float = 0.6
    """How far it moves towards a model that is not stale, in (0, 1]."""


@dataclass
class Fedbuff:
    """The sum of scaled updates over their number; meant for schedule=buffered."""

    _target_: str = "fedray.algorithms.fedbuff"
    optimizer: Any = field(default_factory=ServerRule)
    """Server optimizer: its rate is the paper's eta_g."""
