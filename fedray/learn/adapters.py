"""Low-rank adapters: a model whose matrices W are W + scale B A, W held still and B, A trained.

Source: Hu et al., LoRA: Low-rank adaptation of large language models, ICLR 2022, section 4.1. For a tensor of
more than two dimensions (a convolution) W is first dimension by rest. A (rank x columns) starts at random, B
(rows x rank) at zero, so that training starts from W.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray import tree
from fedray.learn.objectives import Loss, Params, pursuing
from fedray.learn.parts import Part
from fedray.learn.update import Update
from fedray.rng import Key
from fedray.tree import Flat

INITS = ("kaiming", "gaussian")


def sides(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a tensor as a matrix."""
    return shape[0], math.prod(shape[1:])


@dataclass(frozen=True)
class Adapters:
    """Which parameters have an adapter, and how it starts."""

    layers: tuple[str, ...] | None
    alpha: float | None
    init: str

    def names(self, params: Mapping[str, Tensor]) -> list[str]:
        """Return the adapted parameters: those of two dimensions or more, under the words if there are any.

        Raises ValueError where there is none, or under one of the words none.
        """
        wide = [name for name in params if len(params[name].shape) > 1]
        words = self.layers if self.layers is not None else tuple(wide)
        empty = [word for word in words if not any(Part((word,)).holds(name) for name in wide)]
        if empty or not words:
            raise ValueError(
                f"adapters: {empty or 'the model'} has no matrix: the parameters of two dimensions or more "
                f"are {wide}; name them or their layers"
            )
        return [name for name in wide if Part(tuple(words)).holds(name)]

    def scale(self, rank: int) -> float:
        """Return what B A is multiplied by: alpha / rank, 1 without alpha."""
        return 1.0 if self.alpha is None else self.alpha / rank

    def lower(self, params: Mapping[str, Tensor], rank: int, key: Key) -> dict[str, Tensor]:
        """Draw A of every adapted parameter, in their order, in float64 before it takes the model's dtype.

        kaiming: U(-1/sqrt(columns), 1/sqrt(columns)); gaussian: N(0, 1/rank^2).
        """
        generator, found = key.generator(), {}
        for name in self.names(params):
            like = params[name]
            shape = rank, sides(like.shape)[1]
            if self.init == "gaussian":
                drawn = torch.randn(shape, generator=generator, dtype=torch.float64) / rank
            else:
                drawn = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
                drawn = drawn / math.sqrt(shape[1])
            found[f"A.{name}"] = drawn.to(like)
        return found

    def upper(self, params: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
        """Return B of every adapted parameter: zeros."""
        names = self.names(params)
        return {f"B.{n}": params[n].new_zeros(sides(params[n].shape)[0], rank) for n in names}


def merged(
    base: Mapping[str, Tensor], *factors: Mapping[str, Tensor], scale: float = 1.0
) -> dict[str, Tensor]:
    """Return the model with the products of some factors added: W + scale B A for each in turn."""
    found = {name: base[name] for name in base}
    for pair in factors:
        for name in [factor[2:] for factor in pair if factor.startswith("B.")]:
            product = (pair[f"B.{name}"] @ pair[f"A.{name}"]).view(found[name].shape)
            found[name] = found[name] + scale * product
    return found


@dataclass(frozen=True)
class OverBase:
    """The loss of a model with its adapters added: what trains are the adapters alone."""

    base: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]
    scale: float

    def __call__(self, loss: Loss, params: Params, batch: Any) -> Tensor:
        """Return the loss at W + scale B A."""
        return loss(self.own(params), batch)

    def own(self, params: Params) -> dict[str, Tensor]:
        """Return the model."""
        return merged(self.base, {**self.fixed, **params}, scale=self.scale)


@dataclass(frozen=True)
class Trained:
    """The local update of adapters: `(factors, base, fixed, data, rng) -> Update` of the factors."""

    local: Any
    scale: float

    @property
    def how(self) -> str:
        """Say how sites are trained."""
        return "site by site: what trains are factors of the model's matrices"

    def __call__(self, factors: Flat, base: Any, fixed: Any, data: Any, rng: Key) -> Update:
        """Train the factors of one site over a base that stays as it is."""
        over = pursuing(self.local, OverBase(base, fixed, self.scale), "fedlora")
        update: Update = over(factors, data, rng)
        return update


@dataclass(frozen=True, slots=True)
class Learnt:
    """What one site learnt in one round: its factors, rows and metrics."""

    factors: Flat
    num_examples: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrainedAnew:
    """The local update of a site that draws adapters of its own rank in every round."""

    local: Any
    adapters: Adapters
    rank: Callable[[str], int]

    @property
    def how(self) -> str:
        """Say how sites are trained."""
        return "site by site: what trains are factors of the model's matrices"

    def __call__(self, base: Flat, stacks: Sequence[Flat], data: Any, rng: Key, stream: Key) -> Learnt:
        """Train fresh adapters over the base with all stacks merged in."""
        rank = self.rank(rng.site)
        own = merged(base, *stacks)
        drawn = self.adapters.lower(own, rank, stream) | self.adapters.upper(own, rank)
        factors = tree.flatten(drawn)
        factors = Flat(factors.buffer.to(base.buffer.device), factors.schema)
        update = Trained(self.local, self.adapters.scale(rank))(factors, own, {}, data, rng)
        return Learnt(tree.add(factors, update.delta), update.num_examples, update.metrics)
