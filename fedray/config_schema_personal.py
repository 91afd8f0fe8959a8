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


@dataclass
class PrivateHeads:
    """A common trunk, the model without its last layer; each site has a head for tasks of its own."""

    _target_: str = "fedray.algorithms.private_heads"
    make_head: Any = None
    """Function (data, rng) of a site's first head, with a `_target_`; null draws a linear layer."""
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the trunk."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""


@dataclass
class Pfedme:
    """The global model minimises Moreau envelopes; a site's own model is its proximal point."""

    _target_: str = "fedray.algorithms.pfedme"
    prox: float = 1.0
    """Pull of a site's own model to the global one (lambda)."""
    lr: float = 0.5
    """Rate at which the local model moves to the proximal point (eta); the step is lr times prox."""
    local_rounds: int = 1
    """Proximal points that a site finds in a round (R); the settings of `local` say how."""
    beta: float = 1.0
    """Share of the mean in the next global model."""


@dataclass
class Apfl:
    """A site's own model is a mixture of the global model and one of its own; it learns the share."""

    _target_: str = "fedray.algorithms.apfl"
    alpha: float = 0.5
    """First share of a site's own model in the mixture."""
    adaptive: bool = True
    """Learn the share; without, it stays what it is."""
    chain_rule: bool = True
    """Multiply the gradient of a site's own model by its share, as in the paper."""
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the global model."""
    weighted: bool = False
    """Weigh updates by training rows; without, every site counts the same, as in the paper."""


@dataclass
class PerFedavg:
    """A global model from which one gradient step makes a good model for any site."""

    _target_: str = "fedray.algorithms.per_fedavg"
    inner_lr: float = 0.01
    """Learning rate of the one step to a site's own model (alpha)."""
    variant: str = "hf"
    """hf: with the Hessian-vector product; fo: first order."""
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the global model."""
    weighted: bool = False
    """Weigh updates by training rows; without, every site counts the same, as in the paper."""


@dataclass
class Moon:
    """Features stay near those of the global model and far from those of the site's last one."""

    _target_: str = "fedray.algorithms.moon"
    mu: float = 1.0
    """Strength of the contrastive loss."""
    temperature: float = 0.5
    """Temperature of the contrastive loss (tau)."""
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the global model."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""


@dataclass
class Fedamp:
    """Sites like each other have models like each other; the server sees the model of every site."""

    _target_: str = "fedray.algorithms.fedamp"
    alpha: float = 0.05
    """Rate at which models are drawn together: at most sigma / (sites - 1), for weights above 0."""
    sigma: float = 1.0
    """Squared distance of models over which the attraction fades."""
    prox: float = 0.05
    """Pull of a site's model to the drawn one (lambda); divided by alpha."""
