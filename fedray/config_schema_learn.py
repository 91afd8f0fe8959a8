"""Schemas of the groups `model`, `local` and `algorithm`. Start at `config_schema.py`."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Logistic:
    """Logistic regression; softmax regression where there are more than two classes."""

    _target_: str = "fedray.learn.logistic"
    num_features: int | None = None
    """Width of the input; null takes it from the data."""
    zero: bool = True
    """Start from zeros; without, from torch's own distribution."""
    bias: float | None = None
    """First intercept, in log odds: a rare outcome starts near its rate; null leaves it as the rest."""


@dataclass
class Linear:
    """Linear regression."""

    _target_: str = "fedray.learn.linear"
    num_features: int | None = None
    """Width of the input; null takes it from the data."""
    zero: bool = True
    """Start from zeros; without, from torch's own distribution."""
    bias: float | None = None
    """First intercept; null leaves it as the rest."""


@dataclass
class Mlp:
    """Fully connected ReLU layers."""

    _target_: str = "fedray.learn.mlp"
    num_features: int | None = None
    """Width of the input; null takes it from the data."""
    hidden: list[int] = field(default_factory=lambda: [32])
    """Widths of the hidden layers."""
    dropout: float = 0.0
    """Share of the hidden units left out in training."""
    bias: float | None = None
    """First intercept, in log odds: a rare outcome starts near its rate; null leaves it as the rest."""
    norm: str = "none"
    """Normalisation after a hidden layer: none, batch or layer."""


@dataclass
class Cnn:
    """3 x 3 convolutions with pooling and a linear head."""

    _target_: str = "fedray.learn.cnn"
    image: list[int] = field(default_factory=lambda: [1, 28, 28])
    """Channels, height and width of the images."""
    channels: list[int] = field(default_factory=lambda: [16, 32])
    """Channels of the convolutions, one entry per convolution."""
    norm: str = "none"
    """Normalisation after a convolution: none, batch or group."""
    dropout: float = 0.0
    """Share of the features left out in training."""


@dataclass
class Gru:
    """Gated recurrent unit over hours."""

    _target_: str = "fedray.learn.gru"
    num_features: int | None = None
    """Values per hour; null takes it from the data."""
    hidden: int = 32
    """Width of the state."""
    num_layers: int = 1
    """Recurrent layers."""


@dataclass
class BagOfEmbeddings:
    """Mean of word embeddings with a linear head."""

    _target_: str = "fedray.learn.bag_of_embeddings"
    vocabulary: int = 20000
    """Number of words."""
    width: int = 32
    """Width of an embedding."""
    padding: int = 0
    """Index that stands for no word."""


@dataclass
class Sgd:
    """Plain gradient descent at a site."""

    _target_: str = "fedray.learn.sgd"
    lr: Any = 0.1
    """Learning rate, or a schedule of the round (`{_target_: fedray.learn.cosine, ...}`)."""
    epochs: int | None = 1
    """Passes over the training rows in a round; ignored where steps is given."""
    steps: int | None = None
    """Batches in a round, instead of epochs."""
    batch_size: int | None = 32
    """Rows in a batch; null takes all rows."""
    momentum: float = 0.0
    """Momentum within a round."""
    weight_decay: float = 0.0
    """Added gradient: weight_decay times the parameters."""
    l2: float = 0.0
    """Penalty l2/2 times the squared weights, without the intercept."""
    clip_norm: float | None = None
    """Largest norm of a gradient."""
    pos_weight: float | None = None
    """Weight of the positive class in the loss."""
    prox: float = 0.0
    """Strength of a pull to the global model."""
    unpenalised: list[str] = field(default_factory=lambda: ["bias"])
    """Leaves without the l2 penalty: those whose own name starts with one of these words."""
    amp: bool = False
    """Mixed precision, where the device has it."""
    record_clip: float | None = None
    """Largest norm of the gradient of one row."""
    form: str = "auto"
    """How the sites of a group are trained: auto, stacked, vmap or loop."""
    patience: int | None = None
    """Epochs without a lower loss on the site's validation rows after which it stops; null takes all."""


@dataclass
class Adamw:
    """AdamW at a site; its state is reset each round."""

    _target_: str = "fedray.learn.adamw"
    lr: Any = 0.001
    """Learning rate, or a schedule of the round."""
    epochs: int | None = 1
    """Passes over the training rows in a round; ignored where steps is given."""
    steps: int | None = None
    """Batches in a round, instead of epochs."""
    batch_size: int | None = 32
    """Rows in a batch; null takes all rows."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    l2: float = 0.0
    """Penalty l2/2 times the squared weights, without the intercept."""
    clip_norm: float | None = None
    """Largest norm of a gradient."""
    pos_weight: float | None = None
    """Weight of the positive class in the loss."""
    prox: float = 0.0
    """Strength of a pull to the global model."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    unpenalised: list[str] = field(default_factory=lambda: ["bias"])
    """Leaves without the l2 penalty: those whose own name starts with one of these words."""
    amp: bool = False
    """Mixed precision, where the device has it."""
    record_clip: float | None = None
    """Largest norm of the gradient of one row."""
    form: str = "auto"
    """How the sites of a group are trained: auto, stacked, vmap or loop."""
    patience: int | None = None
    """Epochs without a lower loss on the site's validation rows after which it stops; null takes all."""



@dataclass
class PrivateSgd:
    """Gradient descent at a site with differential privacy for its patients (DP-SGD); the site adds the
    noise and nobody outside sees an update without it.
    """

    _target_: str = "fedray.learn.private_sgd"
    lr: Any = 0.5
    """Learning rate, or a schedule of the round."""
    clip: float = 1.0
    """Largest norm of the gradient of one patient (or row, see unit)."""
    sampling_rate: float | None = None
    """Probability with which a step takes a patient, the same at all sites: one noise, one epsilon for all.
    Give this or batch_size, the other null."""
    batch_size: float | None = None
    """Expected patients of a batch: every site has its own rate and epsilon (or, with epsilon, its own
    noise)."""
    noise_multiplier: float | None = None
    """Deviation of the noise on a sum of gradients, in units of clip; null takes it from epsilon."""
    epsilon: float | None = None
    """Privacy that is spent when all rounds are done; the noise follows from it."""
    delta: float = 1e-5
    """At which epsilon holds: below 1 over the number of patients of a site."""
    rounds: int | None = "${rounds}"  # type: ignore[assignment]
    """Rounds that epsilon is spread over."""
    steps: int | None = None
    """Steps of a round, instead of epochs."""
    epochs: float | None = 1.0
    """How often a round takes a patient, on average; ignored where steps is given."""
    unit: str | None = "patient"
    """Column that says whose a row is; null gives a guarantee per row (a stay), and not per patient."""
    max_records_per_unit: int | None = None
    """Most rows of a patient that are used, chosen once; null clips all of a patient's rows together."""
    is_secret: bool = False
    """Draw batches from the system's entropy: for servers that may not know, by the seed, who was drawn."""
    momentum: float = 0.0
    """Momentum within a round."""
    weight_decay: float = 0.0
    """Added gradient: weight_decay times the parameters."""
    l2: float = 0.0
    """Penalty l2/2 times the squared weights, without the intercept."""
    prox: float = 0.0
    """Strength of a pull to the global model."""
    pos_weight: float | None = None
    """Weight of the positive class in the loss."""
    unpenalised: list[str] = field(default_factory=lambda: ["bias"])
    """Leaves without the l2 penalty: those whose own name starts with one of these words."""
    form: str = "auto"
    """How the sites of a group are trained: auto, stacked or loop."""


@dataclass
class ServerRule:
    """A server optimizer: how the mean update moves the global model."""

    _target_: str = "fedray.learn.optimizer.sgd"
    lr: Any = 1.0
    """Server learning rate, or a schedule of the round."""


@dataclass
class ServerMomentum(ServerRule):
    """Server momentum (FedAvgM)."""

    _target_: str = "fedray.learn.optimizer.momentum"
    beta: float = 0.9
    """Share of the previous step that is kept."""


@dataclass
class ServerAdagrad(ServerRule):
    """Adaptive server step with a growing second moment (FedAdagrad)."""

    _target_: str = "fedray.learn.optimizer.adagrad"
    lr: Any = 0.1
    """Server learning rate, or a schedule of the round."""
    beta1: float = 0.0
    """Decay of the first moment."""
    tau: float = 1e-3
    """Added to the root of the second moment."""
    v0: float | None = None
    """Start of the second moment; null is tau squared, as in the paper."""


@dataclass
class ServerAdam(ServerAdagrad):
    """Adaptive server step with a decaying second moment (FedAdam)."""

    _target_: str = "fedray.learn.optimizer.adam"
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.99
    """Decay of the second moment."""


@dataclass
class ServerYogi(ServerAdam):
    """Adaptive server step with an additive second moment (FedYogi)."""

    _target_: str = "fedray.learn.optimizer.yogi"
    lr: Any = 0.01
    """Server learning rate, or a schedule of the round."""


@dataclass
class Fedavg:
    """Federated averaging with a server optimizer."""

    _target_: str = "fedray.algorithms.fedavg"
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the global model."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""


@dataclass
class Fedavgm(Fedavg):
    """Federated averaging with server momentum."""

    optimizer: Any = field(default_factory=ServerMomentum)
    """How the mean update moves the global model."""


@dataclass
class Fedadagrad(Fedavg):
    """Federated averaging with an Adagrad step at the server."""

    optimizer: Any = field(default_factory=ServerAdagrad)
    """How the mean update moves the global model."""


@dataclass
class Fedadam(Fedavg):
    """Federated averaging with an Adam step at the server, in the paper's form."""

    optimizer: Any = field(default_factory=ServerAdam)
    """How the mean update moves the global model."""


@dataclass
class Fedyogi(Fedavg):
    """Federated averaging with a Yogi step at the server."""

    optimizer: Any = field(default_factory=ServerYogi)
    """How the mean update moves the global model."""


@dataclass
class Fedsgd:
    """One full-batch gradient per round."""

    _target_: str = "fedray.algorithms.fedsgd"
    lr: Any = 0.1
    """Learning rate, or a schedule of the round."""


@dataclass
class Fedprox:
    """FedAvg with a proximal term at the site."""

    _target_: str = "fedray.algorithms.fedprox"
    mu: float = 0.01
    """Strength of the pull to the global model."""
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the global model."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""


@dataclass
class Scaffold:
    """Control variates against drift."""

    _target_: str = "fedray.algorithms.scaffold"
    option: str = "II"
    """I: the control is a full gradient at the global model; II: it follows from the update."""
    server_lr: float = 1.0
    """Server learning rate."""


@dataclass
class Ditto:
    """A personal model per site beside the global one."""

    _target_: str = "fedray.algorithms.ditto"
    prox: float = 0.1
    """Pull of the personal model to the global one."""
    optimizer: Any = field(default_factory=ServerRule)
    """How the mean update moves the global model."""
    weighted: bool = True
    """Weigh updates by training rows; without, every site counts the same."""


@dataclass
class LocalOnly:
    """Baseline: every site trains alone."""

    _target_: str = "fedray.algorithms.local_only"


@dataclass
class Pooled(Fedavg):
    """Baseline: all rows in one place, trained like one site; simulation only."""

    pooled: bool = True
    """Bring the rows of all sites to one site before training."""


@dataclass
class OneShot:
    """Baseline: the mean of models that sites trained alone."""

    _target_: str = "fedray.algorithms.one_shot"
