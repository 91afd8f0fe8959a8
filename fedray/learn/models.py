"""Models: small ones by name, and any torch module through `from_module`.

A model is a record: `init(seed)` draws parameters, `loss(params, batch)` is the mean over the rows of a
batch, `predict(params, batch)` gives logits (or the number). A batch maps column names to tensors. The dtype
is that of the parameters; floating-point inputs are cast to it. Nothing here touches the global random state.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fedray.learn import dropout, losses
from fedray.learn.functional import Functional, Step, draw
from fedray.rng import SERVER, Key
from fedray.settings import check_whole
from fedray.tree import Flat


@dataclass(frozen=True, kw_only=True)
class Model:
    """A module, what it predicts, and how its weights start.

    `inputs` and `target` are column names. `start` sets leaves to a number after the draw ({"bias": -2.3});
    `zero` starts from zeros, `keep_weights` from the module's own values, whatever the seed.
    """

    module: nn.Module
    task: str = "binary"
    inputs: tuple[str, ...] = ("x",)
    target: str = "y"
    custom_loss: Callable[[Tensor, Tensor], Tensor] | None = None
    flatten: bool = False
    start: tuple[tuple[str, float], ...] = ()
    zero: bool = False
    keep_weights: bool = False

    @cached_property
    def functional(self) -> Functional:
        """The module as a function of its parameters."""
        return Functional(self.module)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def init(self, seed: int = 0) -> Flat:
        """Return parameters drawn from (seed) alone."""
        if self.keep_weights:
            return self.functional.start()
        generator = Key(seed, 0, SERVER, "init").generator()
        flat = Functional(draw(copy.deepcopy(self.module), generator)).start()
        if self.zero:
            flat.buffer.zero_()
        for name, value in self.start:
            flat[name].fill_(value)
        return flat

    def output(
        self, params: Mapping[str, Tensor], batch: Mapping[str, Tensor], step: Step | None = None
    ) -> Tensor:
        """Return what `predict` gives, with gradients; with a `step` in training mode."""
        dtype = params.schema.dtype if isinstance(params, Flat) else next(iter(params.values())).dtype
        inputs = [batch[name] for name in self.inputs]
        if self.flatten:
            inputs = [value.flatten(1) for value in inputs]
        cast = (value.to(dtype) if value.is_floating_point() else value for value in inputs)
        return losses.squeeze(self.functional(params, tuple(cast), step), self.task)

    def predict(self, params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Return logits: (rows,) for a binary outcome, (rows, classes) for classes; numbers else."""
        with torch.no_grad():
            return self.output(params, batch, None)

    def loss(
        self,
        params: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        step: Step | None = None,
        pos_weight: losses.PosWeight = None,
    ) -> Tensor:
        """Return the mean loss over the rows; with a `step` in training mode (dropout, batch statistics)."""
        return self.loss_of(self.output(params, batch, step), batch, pos_weight)

    def loss_of(
        self, output: Tensor, batch: Mapping[str, Tensor], pos_weight: losses.PosWeight = None
    ) -> Tensor:
        """Return the mean loss of an output over the rows of its batch."""
        if self.custom_loss is not None:
            return self.custom_loss(output, batch[self.target])
        return losses.mean_loss(self.task, output, batch[self.target], pos_weight)

    def row_losses(
        self,
        params: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        pos_weight: losses.PosWeight = None,
    ) -> Tensor:
        """Return the task's loss of each row, in evaluation mode: (rows,)."""
        if not len(batch[self.target]):
            return batch[self.target].new_zeros(0)

        def of_row(output: Tensor, target: Tensor) -> Tensor:
            return losses.mean_loss(self.task, output[None], target[None], pos_weight)

        found: Tensor = torch.func.vmap(of_row)(self.output(params, batch), batch[self.target])
        return found

    def training(self, params: Mapping[str, Tensor], key: int) -> Step:
        """Return the start of one local training."""
        return self.functional.training(params, key)

    def as_module(self, params: Mapping[str, Tensor]) -> nn.Module:
        """Return a plain torch module in evaluation mode with these parameters."""
        return self.functional.loaded(params)


def _build(make: Callable[[], nn.Module], **settings: Any) -> Model:
    """Build a module and leave the global generator as it was: `init` draws."""
    with torch.random.fork_rng(devices=[]):  # not the meta device, whose first use imports sympy: 1.5 s
        module = make()
    module = draw(module, Key(0, 0, SERVER, "template").generator())
    return Model(module=dropout.prepare(module), **settings)


def _width(name: str, num_features: int | None) -> int:
    if num_features is None or num_features < 1:
        raise ValueError(f"{name}: num_features={num_features} must be the width of the input, 1 or more")
    return num_features


def _outputs(task: str | None, num_classes: int) -> tuple[str, int]:
    """Return the task and the number of outputs; two classes are a binary outcome unless said otherwise."""
    task = losses.check_task(task or ("binary" if num_classes == 2 else "classes"))
    return task, num_classes if task == "classes" else 1


def logistic(
    num_features: int | None = None,
    num_classes: int = 2,
    *,
    task: str | None = None,
    zero: bool = True,
    bias: float | None = None,
) -> Model:
    """Logistic regression; softmax regression for more than two classes. Leaves as in `torch.nn.Linear`.

    Starts from zeros (`zero=False`: torch's distributions), the intercept from `bias` where one is given.
    """
    width = _width("logistic", num_features)
    kind, outputs = _outputs(task, num_classes)
    if kind == "number":
        raise ValueError("logistic: the outcome is a number: use fedray.learn.linear")
    start = () if bias is None else (("bias", bias),)
    return _build(lambda: nn.Linear(width, outputs), task=kind, flatten=True, zero=zero, start=start)


def linear(
    num_features: int | None = None, num_outputs: int = 1, *, zero: bool = True, bias: float | None = None
) -> Model:
    """Linear regression with squared error (mean over rows and outputs)."""
    width = _width("linear", num_features)
    start = () if bias is None else (("bias", bias),)
    return _build(lambda: nn.Linear(width, num_outputs), task="number", flatten=True, zero=zero, start=start)


def mlp(
    num_features: int | None = None,
    hidden: Sequence[int] = (32,),
    num_classes: int = 2,
    *,
    task: str | None = None,
    dropout: float = 0.0,
    bias: float | None = None,
    norm: str = "none",
) -> Model:
    """Fully connected network with ReLU, dropout after each hidden layer. A `torch.nn.Sequential`.

    `norm` comes before each ReLU: none, batch (its statistics are averaged) or layer.
    """
    kind, outputs = _outputs(task, num_classes)
    for place, width in enumerate(hidden):
        check_whole("mlp", **{f"hidden[{place}]": width})
    widths = [_width("mlp", num_features), *hidden]
    norms: dict[str, Callable[[int], list[nn.Module]]] = {
        "none": lambda width: [],
        "batch": lambda width: [nn.BatchNorm1d(width)],
        "layer": lambda width: [nn.LayerNorm(width)],
    }
    if norm not in norms:
        raise ValueError(f"mlp: norm={norm!r}: choose one of {', '.join(norms)}")

    def make() -> nn.Module:
        stack: list[nn.Module] = []
        for before, after in pairwise(widths):
            stack += [nn.Linear(before, after), *norms[norm](after), nn.ReLU()]
            stack += [nn.Dropout(dropout)] if dropout else []
        return nn.Sequential(*stack, nn.Linear(widths[-1], outputs))

    last = len(hidden) * (2 + bool(dropout) + (norm != "none"))
    start = () if bias is None else ((f"{last}.bias", bias),)
    return _build(make, task=kind, flatten=True, start=start)


def cnn(
    image: Sequence[int] = (1, 28, 28),
    channels: Sequence[int] = (16, 32),
    num_classes: int = 2,
    *,
    task: str | None = None,
    norm: str = "none",
    dropout: float = 0.0,
) -> Model:
    """Small convolutional network: 3x3 convolution, norm, ReLU, 2x2 pooling per entry of `channels`.

    `image` is (channels, height, width); `norm` is none, batch (its statistics are averaged) or group.
    """
    kind, outputs = _outputs(task, num_classes)
    norms: dict[str, Callable[[int], list[nn.Module]]] = {
        "none": lambda width: [],
        "batch": lambda width: [nn.BatchNorm2d(width)],
        "group": lambda width: [nn.GroupNorm(min(8, width), width)],
    }
    if norm not in norms:
        raise ValueError(f"cnn: norm={norm!r}: choose one of {', '.join(norms)}")
    height, width = (side >> len(channels) for side in image[1:])
    if min(height, width) < 1:
        raise ValueError(f"cnn: {len(channels)} poolings leave nothing of an image of {tuple(image)}")

    def make() -> nn.Module:
        stack: list[nn.Module] = []
        for before, after in pairwise([image[0], *channels]):
            stack += [nn.Conv2d(before, after, 3, padding=1), *norms[norm](after), nn.ReLU(), nn.MaxPool2d(2)]
        stack += [nn.Flatten(), *([nn.Dropout(dropout)] if dropout else [])]
        return nn.Sequential(*stack, nn.Linear(channels[-1] * height * width, outputs))

    return _build(make, task=kind)


class LastState(nn.Module):
    """A GRU whose last hidden state goes through a linear layer."""

    def __init__(self, num_features: int, hidden: int, num_layers: int, outputs: int) -> None:
        super().__init__()
        self.gru = nn.GRU(num_features, hidden, num_layers, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return one output a series; x is (rows, hours, features)."""
        return self.head(self.gru(x)[1][-1])


def gru(
    num_features: int | None = None,
    hidden: int = 32,
    num_layers: int = 1,
    num_classes: int = 2,
    *,
    task: str | None = None,
) -> Model:
    """Gated recurrent network over series (rows, hours, features), read at its last hour."""
    kind, outputs = _outputs(task, num_classes)
    width = _width("gru", num_features)
    return _build(lambda: LastState(width, hidden, num_layers, outputs), task=kind)


def bag_of_embeddings(
    vocabulary: int, width: int = 32, num_classes: int = 2, *, task: str | None = None, padding: int = 0
) -> Model:
    """Mean of word vectors, then a linear layer. `x` is (rows, words) of int64; `padding` is no word."""
    kind, outputs = _outputs(task, num_classes)

    def make() -> nn.Module:
        return nn.Sequential(
            nn.EmbeddingBag(vocabulary, width, mode="mean", padding_idx=padding), nn.Linear(width, outputs)
        )

    return _build(make, task=kind)


def from_module(
    module: nn.Module | Callable[[], nn.Module],
    *,
    task: str = "binary",
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    inputs: Sequence[str] = ("x",),
    target: str = "y",
    keep_weights: bool = False,
) -> Model:
    """Make a model of a torch module (copied) or of a function that makes one.

    `loss(output, target)` replaces the task's loss. `init(seed)` DRAWS the weights of the layers that
    `functional.draw` knows, so that a run depends on its seed alone; `keep_weights` starts from the module's
    own (a trained model). Dropout layers are swapped for counter-hash ones.
    Raises ValueError on layers that can only draw from the global generator.
    """
    made = copy.deepcopy(module) if isinstance(module, nn.Module) else module()
    made = dropout.prepare(made)
    if not keep_weights:
        draw(made, Key(0, 0, SERVER, "template").generator())
    return Model(
        module=made,
        task=losses.check_task(task),
        custom_loss=loss,
        inputs=tuple(inputs),
        target=target,
        keep_weights=keep_weights,
    )
