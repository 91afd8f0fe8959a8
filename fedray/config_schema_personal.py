"""Schemas of the algorithms that give a site a model of its own. Start at `config_schema.py`."""

from dataclasses import dataclass, field
from typing import Any

from fedray.config_schema_learn import ServerRule


@dataclass
class PartlyShared:
    """Some parameters are averaged, the others stay at the site."""

    personal: list[str] | None = None
    """Parameters or layers that stay at the site; null takes the model's last layer."""
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the shared parameters."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""


@dataclass
class Fedper(PartlyShared):
    """The body is averaged, the head stays at the site."""

    _target_: str = "fedray.algorithms.fedper"


@dataclass
class Fedbn(PartlyShared):
    """Batch normalisation stays at the site; needs a model that has it (`model.norm=batch`)."""

    _target_: str = "fedray.algorithms.fedbn"
    personal: list[str] | None = None
    """Parameters or layers that stay at the site; null takes the model's BatchNorm layers."""
    weighted: bool = False
    """Weigh updates by training rows; without, every site counts the same, as in the paper."""


@dataclass
class Fedrep(PartlyShared):
    """A head of its own for each site on a common body, fitted first."""

    _target_: str = "fedray.algorithms.fedrep"
    head_local: Any = None
    """Local training of the head, with a `_target_`; null trains it as the body is."""
    weighted: bool = False
    """Weigh updates by training rows; without, every site counts the same, as in the paper."""


@dataclass
class LgFedavg:
    """The head is averaged, each site has an encoder of its own."""

    _target_: str = "fedray.algorithms.lg_fedavg"
    shared: list[str] | None = None
    """Parameters or layers that are averaged; null takes the model's last layer."""
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the shared parameters."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""


@dataclass
class Fedbabu:
    """The body is trained under a head that stays as it was drawn; sites fine-tune at the end."""

    _target_: str = "fedray.algorithms.fedbabu"
    head: list[str] | None = None
    """Parameters or layers that are not trained; null takes the model's last layer."""
    tune: Any = None
    """Local training that fine-tunes, with a `_target_`; null fine-tunes as the sites train."""
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the body."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""


@dataclass
class FineTuning:
    """FedAvg; a site's own model is the global one after training on its rows."""

    _target_: str = "fedray.algorithms.fine_tuning"
    tune: Any = None
    """Local training that fine-tunes, with a `_target_`; null fine-tunes as the sites train."""
    trained: list[str] | None = None
    """Parameters or layers that fine-tuning may move; null is all of them."""
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the global model."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""
