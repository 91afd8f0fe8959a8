"""Models as pure functions of (parameters, batch): linear and logistic, MLP, CNN, GRU, bag of embeddings, any module.

A `Model` says how parameters start (`init`), what it predicts (`predict`, logits) and its loss. `init` draws from a
generator of its own with torch's default U(-1/sqrt(fan_in), 1/sqrt(fan_in)), never from the global one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedray import tree
from fedray.learn.dropout import dropout
from fedray.tree import Flat

Params = Mapping[str, Tensor]
Batch = Mapping[str, Tensor]
TASKS = ("binary", "classes", "number")


@dataclass(frozen=True)
class Model:
    """A pure model. `forward(params, x, key, step)` returns logits (rows, outputs); `layout` its parameters' shapes.

    `layout` maps a name to (shape, fan_in); fan_in 0 starts at zero, -1 at one. `buffers` are averaged, not trained.
    """

    kind: str
    task: str
    layout: Mapping[str, tuple[tuple[int, ...], int]]
    forward: Callable[..., Tensor]
    buffers: tuple[str, ...] = ()
    offset: float = 0.0
    num_outputs: int = 1

    def init(self, seed: int, dtype: torch.dtype = torch.float32) -> Flat:
        """Return the first parameters; equal for equal seeds."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, (shape, fan_in) in self.layout.items():
            if fan_in > 0:
                bound = 1.0 / math.sqrt(fan_in)
                tensors[name] = (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1).mul(bound).to(dtype)
            else:
                tensors[name] = torch.full(shape, 1.0 if fan_in < 0 else 0.0, dtype=dtype)
        if self.offset:
            tensors["bias"] = torch.full_like(tensors["bias"], self.offset)
        return tree.flatten(tensors, buffers=self.buffers)

    def predict(self, params: Params, batch: Batch, key: int | None = None, step: int = 0) -> Tensor:
        """Return logits: (rows,) for a binary outcome or a number, (rows, classes) for classes."""
        out = self.forward(params, batch["x"], key, step)
        return out.squeeze(-1) if self.task != "classes" and out.dim() > 1 else out

    def loss(self, params: Params, batch: Batch, key: int | None = None, step: int = 0,
             pos_weight: float | None = None) -> Tensor:
        """Return the mean loss over the rows: BCE on logits, cross-entropy, or half the squared error."""
        logits, y = self.predict(params, batch, key, step), batch["y"]
        if self.task == "binary":
            weight = None if pos_weight is None else logits.new_tensor(pos_weight)
            return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), pos_weight=weight)
        if self.task == "classes":
            return F.cross_entropy(logits, y.long())
        return 0.5 * F.mse_loss(logits, y.to(logits.dtype))


def _task(task: str) -> str:
    if task not in TASKS:
        raise ValueError(f"task={task!r}: choose one of {', '.join(TASKS)}")
    return task


def _outputs(task: str, num_classes: int) -> int:
    return num_classes if _task(task) == "classes" else 1


def _linear(params: Params, x: Tensor, key: int | None, step: int) -> Tensor:
    return F.linear(x, params["weight"], params["bias"])


def logistic(num_features: int, *, num_classes: int = 2, task: str = "binary", bias: float = 0.0) -> Model:
    """Return logistic (or softmax) regression; weights start at zero, the intercept at `bias`."""
    outputs = _outputs(task, num_classes)
    layout = {"weight": ((outputs, num_features), 0), "bias": ((outputs,), 0)}
    return Model("logistic", task, layout, _linear, offset=bias, num_outputs=outputs)


def linear(num_features: int) -> Model:
    """Return linear regression, started at zero."""
    layout = {"weight": ((1, num_features), 0), "bias": ((1,), 0)}
    return Model("linear", "number", layout, _linear)


@dataclass(frozen=True)
class _Mlp:
    depth: int
    dropout: float

    def __call__(self, params: Params, x: Tensor, key: int | None, step: int) -> Tensor:
        for layer in range(self.depth):
            x = F.relu(F.linear(x, params[f"{layer}.weight"], params[f"{layer}.bias"]))
            x = dropout(x, self.dropout, key, layer, step)
        return F.linear(x, params[f"{self.depth}.weight"], params[f"{self.depth}.bias"])


def mlp(num_features: int, hidden: Sequence[int] = (32,), *, num_classes: int = 2, task: str = "binary",
        dropout: float = 0.0) -> Model:
    """Return a network of fully connected ReLU layers."""
    outputs = _outputs(task, num_classes)
    widths = [num_features, *hidden, outputs]
    layout: dict[str, tuple[tuple[int, ...], int]] = {}
    for layer, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layout[f"{layer}.weight"], layout[f"{layer}.bias"] = ((after, before), before), ((after,), before)
    return Model("mlp", task, layout, _Mlp(len(hidden), dropout), num_outputs=outputs)


def _cnn(params: Params, x: Tensor, key: int | None, step: int) -> Tensor:
    x = F.max_pool2d(F.relu(F.conv2d(x, params["conv1.weight"], params["conv1.bias"], padding=1)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, params["conv2.weight"], params["conv2.bias"], padding=1)), 2)
    return F.linear(x.flatten(1), params["head.weight"], params["head.bias"])


def cnn(image: tuple[int, int, int], *, channels: tuple[int, int] = (16, 32), num_classes: int = 10,
        task: str = "classes") -> Model:
    """Return two 3x3 convolutions with pooling and a linear head; `image` is (channels, height, width)."""
    depth, height, width = image
    first, second = channels
    outputs, flat = _outputs(task, num_classes), second * (height // 4) * (width // 4)
    layout = {"conv1.weight": ((first, depth, 3, 3), depth * 9), "conv1.bias": ((first,), depth * 9),
              "conv2.weight": ((second, first, 3, 3), first * 9), "conv2.bias": ((second,), first * 9),
              "head.weight": ((outputs, flat), flat), "head.bias": ((outputs,), flat)}
    return Model("cnn", task, layout, _cnn, num_outputs=outputs)


@dataclass(frozen=True)
class _Gru:
    hidden: int

    def __call__(self, params: Params, x: Tensor, key: int | None, step: int) -> Tensor:
        state = x.new_zeros(x.shape[0], self.hidden)
        for moment in range(x.shape[1]):
            a = F.linear(x[:, moment], params["weight_ih"], params["bias_ih"]).chunk(3, dim=-1)
            b = F.linear(state, params["weight_hh"], params["bias_hh"]).chunk(3, dim=-1)
            reset, update = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
            state = update * state + (1 - update) * torch.tanh(a[2] + reset * b[2])
        return F.linear(state, params["head.weight"], params["head.bias"])


def gru(num_features: int, hidden: int = 32, *, num_classes: int = 2, task: str = "binary") -> Model:
    """Return a gated recurrent unit over x of (rows, hours, features), its last state read by a linear head.

    Source: Cho et al., EMNLP 2014, in the form of cuDNN and torch.nn.GRU (reset gate after the product).
    """
    outputs = _outputs(task, num_classes)
    layout = {"weight_ih": ((3 * hidden, num_features), hidden), "weight_hh": ((3 * hidden, hidden), hidden),
              "bias_ih": ((3 * hidden,), hidden), "bias_hh": ((3 * hidden,), hidden),
              "head.weight": ((outputs, hidden), hidden), "head.bias": ((outputs,), hidden)}
    return Model("gru", task, layout, _Gru(hidden), num_outputs=outputs)


def _bag(params: Params, x: Tensor, key: int | None, step: int) -> Tensor:
    weight = (x >= 0).to(params["embedding"].dtype).unsqueeze(-1)
    total = (F.embedding(x.clamp(min=0), params["embedding"]) * weight).sum(dim=1)
    return F.linear(total / weight.sum(dim=1).clamp(min=1), params["head.weight"], params["head.bias"])


def bag_of_embeddings(vocabulary: int, width: int = 32, *, num_classes: int = 2, task: str = "classes") -> Model:
    """Return the mean of word embeddings read by a linear head; x is int64 (rows, words), -1 where there is no word."""
    outputs = _outputs(task, num_classes)
    layout = {"embedding": ((vocabulary, width), width), "head.weight": ((outputs, width), width),
              "head.bias": ((outputs,), width)}
    return Model("bag_of_embeddings", task, layout, _bag, num_outputs=outputs)


def gradient(model: Any) -> Callable[[Flat, Any], Flat]:
    """Return a function (params, data) -> gradient of the mean loss over all training rows."""
    return FullGradient(model)


@dataclass(frozen=True)
class FullGradient:
    """The full-batch gradient at a site."""

    model: Any

    def __call__(self, params: Flat, data: Any) -> Flat:
        """Return the gradient as a `Flat`; zeros where there is no row."""
        rows = data.train if hasattr(data, "train") else data
        if hasattr(rows, "num_rows") and rows.num_rows == 0:
            return Flat(torch.zeros_like(params.buffer), params.schema)
        return gradient_at(getattr(self.model, "loss", self.model), params, rows)


def gradient_at(loss: Callable[..., Tensor], params: Flat, batch: Batch, **extra: Any) -> Flat:
    """Return the gradient of loss(params, batch)."""
    leaves = {name: params[name].detach().requires_grad_() for name in params}
    found = torch.autograd.grad(loss(leaves, batch, **extra), list(leaves.values()), allow_unused=True)
    result = Flat(torch.zeros_like(params.buffer), params.schema)
    for name, value in zip(leaves, found, strict=True):
        if value is not None:
            result[name].copy_(value)
    return result
