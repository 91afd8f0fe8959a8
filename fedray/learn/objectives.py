"""What a site minimises besides its model's loss: objectives of some personalised algorithms.

An objective is a function (loss, params, batch) -> number; `loss(params, batch)` is the model's own training
loss. Local training steps along its gradient and reports its value, so a term that is no part of the loss is
added by `as_slope`. One that has `project(params)` may bring parameters back after every step, in place;
one whose parameters are more than the model's says with `own(params)` which are the model's.
Sites with an objective are trained one by one: the stacked form knows the gradient of the loss alone.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedray.learn.batches import Batch, num_rows
from fedray.learn.models import Model
from fedray.learn.parts import last_layer, under

Params = Mapping[str, Tensor]
Loss = Callable[[Params, Batch], Tensor]


def pursuing(local: Any, objective: Any, title: str) -> Any:
    """Return a local update with another objective. Raises ValueError on one that cannot have any."""
    if not hasattr(local, "with_objective"):
        kind = type(local).__name__
        raise ValueError(f"{title}: {kind} has no with_objective(): use fedray.learn.sgd or adamw")
    return local.with_objective(objective)


def as_slope(term: Tensor) -> Tensor:
    """Return zero, with the gradient of the term."""
    return term - term.detach()


def _without(params: Params, words: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: params[name] for name in params if name.partition(".")[0] not in words}


@dataclass(frozen=True)
class Mixture:
    """Train weights w by f(w), and beside them v (`personal`) and alpha by f(alpha v + (1 - alpha) w), w
    held.

    All three move at once, from what they were before the step, on the same batch.
    """

    is_adaptive: bool = True
    has_chain_rule: bool = True

    def __call__(self, loss: Loss, params: Params, batch: Batch) -> Tensor:
        """Return f(w)."""
        mine, alpha, shared = under(params, "personal"), params["alpha"], self.own(params)
        share = alpha if self.is_adaptive else alpha.detach()
        mixed = dict(shared)
        for name, v in mine.items():
            w = shared[name].detach()
            if self.has_chain_rule:
                mixed[name] = share * v + (1 - share) * w
            else:
                mixed[name] = share * v.detach() + (1 - share) * w + as_slope(v)
        return loss(shared, batch) + as_slope(loss(mixed, batch))

    def own(self, params: Params) -> dict[str, Tensor]:
        """Return w."""
        return _without(params, ("personal", "alpha"))

    def project(self, params: Params) -> None:
        """Keep alpha between 0 and 1."""
        params["alpha"].clamp_(0.0, 1.0)


@dataclass(frozen=True)
class AfterOneStep:
    """The loss at w' = w - rate grad f(w). Its gradient is taken at w' and moves w, never w'.

    With `is_second_order` that gradient is multiplied by I - rate H(w), by an exact Hessian-vector product.
    With `is_split` a batch is three disjoint ones: for the step, for the gradient at w', for H.
    """

    rate: float
    is_second_order: bool = True
    is_split: bool = False

    def __call__(self, loss: Loss, params: Params, batch: Batch) -> Tensor:
        """Return f(w')."""
        first, second, third = self._batches(batch)
        weights = {name: value for name, value in params.items() if value.requires_grad}
        slopes = torch.autograd.grad(loss(params, first), list(weights.values()), materialize_grads=True)
        moved = dict(params)
        for (name, weight), slope in zip(weights.items(), slopes, strict=True):
            moved[name] = weight - self.rate * slope
        found = loss(moved, second)
        if not self.is_second_order:
            return found
        outer = torch.autograd.grad(
            found, list(weights.values()), retain_graph=True, materialize_grads=True
        )
        inner = torch.autograd.grad(
            loss(params, third), list(weights.values()), create_graph=True, materialize_grads=True
        )
        along = sum(((a * b).sum() for a, b in zip(inner, outer, strict=True)), torch.zeros_like(found))
        return found - self.rate * as_slope(along)

    def _batches(self, batch: Batch) -> tuple[Batch, Batch, Batch]:
        if not self.is_split or num_rows(batch) < 3:
            return batch, batch, batch
        parts = {name: torch.tensor_split(column, 3) for name, column in batch.items()}
        first, second, third = ({name: part[i] for name, part in parts.items()} for i in range(3))
        return first, second, third


@dataclass(frozen=True)
class Contrast:
    """Add mu times the model-contrastive loss: features near those of the received model, far from the last.

    `features(params, batch)` is (rows, width). The models `received` and `previous` lie beside the weights.
    """

    features: Callable[[Params, Batch], Tensor]
    mu: float
    temperature: float
    OTHERS: ClassVar = ("received", "previous")

    def own(self, params: Params) -> dict[str, Tensor]:
        """Return the model in training."""
        return _without(params, self.OTHERS)

    def __call__(self, loss: Loss, params: Params, batch: Batch) -> Tensor:
        """Return the loss."""
        own = self.own(params)
        z = self.features(own, batch)
        with torch.no_grad():
            near, far = (self.features(under(params, word), batch) for word in self.OTHERS)
        gap = F.cosine_similarity(z, far, dim=1) - F.cosine_similarity(z, near, dim=1)
        term = F.softplus(gap / self.temperature).mean()  # -log(e^near / (e^near + e^far))
        return loss(own, batch) + as_slope(self.mu * term)


@dataclass(frozen=True)
class Features:
    """What the last layer of a model reads, in evaluation mode: (rows, width)."""

    model: Model

    @cached_property
    def _body(self) -> Model:
        (name,) = last_layer(self.model)
        module = copy.deepcopy(self.model.module)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, nn.Identity())
        return replace(self.model, module=module, task="classes", custom_loss=None)  # no width is dropped

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model}  # not what was derived from it

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Return the features of a batch."""
        return self._body.output(params, batch).flatten(1)


def features_of(local: Any, who: str) -> Features:
    """Return what the last layer of the model of a local update reads, for the algorithm `who`.

    Raises ValueError where the model has no layers of its own.
    """
    try:
        last_layer(getattr(local, "model", None))
    except ValueError as error:
        raise ValueError(
            f"{who}: what the features are is not known of this model: give features=f(params, batch)"
        ) from error
    return Features(local.model)
