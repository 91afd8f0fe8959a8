"""Schemas of the algorithms for few labels and of distillation, in the group `algorithm`. Start at
`config_schema.py`.
"""

from dataclasses import dataclass, field
from typing import Any

from fedray.config_schema_learn import ServerRule


@dataclass
class PseudoLabel:
    """Rows without a label are trained on with the class that the model predicts; see data.labelled."""

    _target_: str = "fedray.algorithms.pseudo_label"
    unlabelled: bool = True
    """Keep training rows without a label."""
    weight: float | None = None
    """Weight of those rows in the loss at the end of the ramp (alpha); null is 3, as in the paper."""
    ramp: list[int] = field(default_factory=lambda: [10, 60])
    """Rounds in which their weight begins to rise, and is reached."""
    threshold: float = 0.0
    """Leave out rows whose class is predicted with less than this probability."""
    labels: str = "step"
    """step: the local model labels rows at every step; round: the model received does, once a round."""
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the global model."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""


@dataclass
class Fedmatch:
    """Rows with and without a label train two parts of the weights; the server sees one of them a site."""

    _target_: str = "fedray.algorithms.fedmatch"
    unlabelled: bool = True
    """Keep training rows without a label."""
    threshold: float = 0.75
    """Leave out rows whose class is predicted with less than this probability (tau)."""
    helpers: int = 2
    """Models of other sites that say what they think of a row (H)."""
    supervised: float = 10.0
    """Strength of the loss on rows with a label (lambda_s)."""
    consistency: float = 1e-2
    """Strength of the pull to what helpers predict (lambda_ICCS)."""
    agreement: float = 1e-2
    """Strength of the loss on the class that most models agree on."""
    l2: float = 10.0
    """Pull of psi to sigma (lambda_L2); times local.lr it must be below 1."""
    l1: float = 1e-4
    """Pull of psi to 0 (lambda_L1)."""
    noise: float = 0.0
    """Standard deviation of the noise on rows that are trained on with an agreed class."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""


@dataclass
class Feddf:
    """The averaged model is taught what the sites' models say together of public rows."""

    _target_: str = "fedray.algorithms.feddf"
    public: Any = None
    """Public rows: `{_target_: fedray.data.public_rows, path: FILE.npy}`; null draws rows of noise."""
    where: str = "server"
    """server: it sees each model; sites: the sites say their logits, of which only the mean leaves."""
    steps: int = 100
    """Steps of the server on the public rows."""
    lr: float | None = None
    """Learning rate of the server on the public rows; null takes that of the sites."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""


@dataclass
class Fedgkt:
    """Small models at the sites and one at the server teach each other; it sees features and labels."""

    _target_: str = "fedray.algorithms.fedgkt"
    weight: float = 1.0
    """Strength of what the others say, beside the labels."""
    temperature: float = 1.0
    """Temperature of what they say."""
    epochs: int = 1
    """Passes of the server over the sites in a round."""
    hidden: list[int] = field(default_factory=lambda: [64, 64])
    """Widths of the hidden layers of the server's model."""


@dataclass
class Pretrain:
    """An encoder is trained on masked rows, then the model on rows with a label; see data.labelled."""

    _target_: str = "fedray.algorithms.pretrain"
    unlabelled: bool = True
    """Keep training rows without a label."""
    rounds: int = 10
    """Rounds of pre-training; those after train on labels, so that there must be more in all."""
    share: float = 0.3
    """Share of the entries that are masked."""
    weight: float = 2.0
    """Weight of estimating the row beside estimating the mask (alpha)."""
    frozen: bool = False
    """Fine-tune the last layer alone, on the encoder as it is."""
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the global model."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""
