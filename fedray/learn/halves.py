"""A model cut in two: the front runs at a site, the back at the server, and gradients cross the cut.

`cut` makes the halves of a model of layers; `Halves` takes two functions of one's own. Nothing here knows
who holds which half: `algorithms/split.py` and `splitfed.py` do.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedray import tree
from fedray.learn import dropout
from fedray.learn.batches import Batch
from fedray.learn.models import Model
from fedray.settings import is_whole
from fedray.tree import Flat

Forward = Callable[[Mapping[str, Tensor], Batch], Tensor]
Loss = Callable[[Mapping[str, Tensor], Batch], Tensor]


@dataclass(frozen=True)
class Halves:
    """`front(params, batch)` gives what crosses the cut, one row a record; `back(params, batch)` the mean
    loss of a batch whose `x` is that and whose `y` are the labels.

    `words` name the front's parameters, as parts of a model are named; the others are the back's.
    """

    front: Forward
    back: Loss
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Returned:
    """What the back gives for a batch: its loss, the gradient of its parameters, and of what it was given."""

    loss: float
    gradient: Flat
    entry: Tensor


def cut(model: Any, after: int | None) -> Halves:
    """Return the halves of a model of layers, cut after so many of them; halves of one's own as they are.

    Raises ValueError where the model is no sequence of layers or has no such layer, where a half has no
    parameter, or for layers that behave otherwise in training: the halves know no mode.
    """
    if isinstance(model, Halves):
        return model
    module = model.module if isinstance(model, Model) else None
    layers = list(module.named_children()) if isinstance(module, nn.Sequential) else []
    if not is_whole(after, 1) or not after < len(layers):
        raise ValueError(
            f"cut={after!r}: a model is cut between two of its layers, of which this one has {len(layers)}: "
            "use a model that is a sequence (mlp, cnn), cut after 1 or more layers and before the last"
        )
    modes = [*dropout.layers(module), *(m for m in module.modules() if isinstance(m, _BATCH_NORM))]
    if modes:
        raise ValueError("a model with dropout or batch normalisation cannot be cut: leave these layers out")
    parts = layers[:after], layers[after:]
    front, back = (nn.Sequential(OrderedDict(copy.deepcopy(part))) for part in parts)
    if not list(front.parameters()) or not list(back.parameters()):
        raise ValueError(f"cut={after}: one half has no parameter: cut elsewhere")
    # as classes, so that a front of width 1 keeps its dimension
    first = replace(model, module=front, task="classes", custom_loss=None, start=(), zero=False)
    rest = replace(model, module=back, inputs=("x",), target="y", flatten=False, start=(), zero=False)
    words = tuple(name for name, layer in layers[:after] if list(layer.parameters()))
    return Halves(first.output, rest.loss, words)


_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def passed(front: Forward, params: Flat, batch: Batch) -> Tensor:
    """Return what crosses the cut, without its history."""
    with torch.no_grad():
        return front(params, batch)


def returned(back: Loss, params: Flat, entry: Tensor, label: Tensor) -> Returned:
    """Return loss and gradients of the back on what crossed the cut."""
    first = next(iter(params.values()))
    with torch.enable_grad():
        own = _leaves(params)
        given = entry.detach().to(first.dtype).clone().requires_grad_()
        loss = back(own, {"x": given, "y": label})
    *found, at_entry = torch.autograd.grad(loss, [*own.values(), given], allow_unused=True)
    reached = torch.zeros_like(given) if at_entry is None else at_entry
    return Returned(float(loss.detach()), _gathered(params, found), reached.to(entry.dtype))


def pulled(front: Forward, params: Flat, batch: Batch, gradient: Tensor) -> Flat:
    """Return the gradient of the front's parameters from the gradient of what it gave."""
    with torch.enable_grad():
        own = _leaves(params)
        given = front(own, batch)
    if given.requires_grad:
        found = torch.autograd.grad(given, list(own.values()), gradient.to(given.dtype), allow_unused=True)
    else:
        found = [None] * len(own)
    return _gathered(params, found)


def stepped(params: Flat, gradient: Flat, lr: float) -> Flat:
    """Return params - lr * gradient."""
    return Flat(params.buffer - lr * gradient.buffer, params.schema)


def _leaves(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: params[name].detach().clone().requires_grad_() for name in params}


def _gathered(params: Flat, found: Sequence[Tensor | None]) -> Flat:
    """Return gradients laid out as the parameters; zero for what is frozen or was not used."""
    pairs = zip(params, found, strict=True)
    named = {name: torch.zeros_like(params[name]) if g is None else g.detach() for name, g in pairs}
    flat = tree.flatten(named, params.schema)
    flat.buffer[:, params.schema.trainable :] = 0.0
    return flat
