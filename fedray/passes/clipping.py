"""Clipping: how long what one site sends may be. Every pass that protects a whole site stands on it.

    passes=[fr.passes.clip(1.0)]         a bound that honest sites obey, and no privacy by itself

The norm is that of all numbers that leave under a name together, in float64. A site that is too long is
scaled so that it is no longer than the bound after it was rounded to its own dtype, whatever it held.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray import coded, rows, tree
from fedray.core import trace as fr
from fedray.core.rewrite import Pass, on_reduce
from fedray.core.trace import Site
from fedray.core.value import Value
from fedray.rows import Column, Group, Ragged, Tagged, column
from fedray.settings import is_number

Names = Collection[str]


@dataclass(frozen=True)
class ClipByNorm:
    """Scale what is longer than `max_norm` down to it; what is shorter stays as it is, bit for bit."""

    max_norm: float

    @property
    def bound(self) -> float:
        """The largest norm of its result."""
        return self.max_norm

    def __call__(self, x: Any) -> Any:
        """Clip the value of one site."""
        return coded.alone(self.rows, x)

    def rows(self, group: Group, x: Tagged) -> Any:
        """Clip the values of a group."""
        value = stacked(x, group.k)
        return shortened(value, group, row_norms(value, group), self.max_norm)


def clip(max_norm: float, only: Names = ("delta",)) -> Pass:
    """Bound the L2 norm of what each site adds to a mean; the mean itself, and its weights, stay.

    Values: any structure of floats and numbers. A bound alone is no differential privacy: see `site_dp`.
    Raises: PassError where no mean has a name of `only`; ValueError on a bound that is no number above 0.
    """
    check_bound("clip", max_norm)

    def clipped(x: Value, weight: Value | None, name: str, site: Site) -> Value:
        return fr.mean(fr.map(ClipByNorm(max_norm), x), weight=weight, name=name)

    return on_reduce("mean", only, f"clip({max_norm:g})")(clipped)


def check_bound(who: str, max_norm: float) -> None:
    """Raise ValueError where a bound is no finite number above 0."""
    if not is_number(max_norm) or max_norm <= 0:
        raise ValueError(f"{who}: clip={max_norm} is no number above 0, say 1.0")


def stacked(x: Tagged, k: int) -> Any:
    """Return a value with k rows at every leaf. Raises TypeError where rows differ in shape."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Ragged):
            raise TypeError("sites sent values of different shapes: a sum needs the same structure of each")
        return column([leaf] * k) if tree.is_number(leaf) else leaf

    value = rows.expand(x, k)
    return tree.replace_leaves(value, [one(leaf) for _, leaf in tree.leaves(value)])


def row_norms(value: Any, group: Group) -> Tensor:
    """Return each row's L2 norm over all leaves, float64; 0 for lost rows, which may hold anything.

    Raises ArithmeticError where a living row is not finite.
    """
    matrices = [_matrix(leaf, group.k) for _, leaf in tree.leaves(value)]
    found = torch.zeros(group.k, dtype=torch.float64)
    for index in group.alive:  # each row by itself: its bits do not depend on who is beside it
        parts = [each[index] for each in matrices]
        found[index] = length = _length(parts)
        if not math.isfinite(length):
            found[index] = length = _scaled_length(parts)
        if not math.isfinite(length):
            raise ArithmeticError("an update that is not finite has no length to clip")
    return found


def _matrix(leaf: Any, k: int) -> Tensor:
    """Return a stacked leaf as (k, elements)."""
    if isinstance(leaf, tree.Flat):
        return leaf.buffer
    if isinstance(leaf, Column):
        return leaf.numbers.view(k, 1)
    return leaf.detach().reshape(k, -1) if isinstance(leaf, Tensor) else torch.zeros(k, 0)


def _length(parts: list[Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts))


def _scaled_length(parts: list[Tensor]) -> float:
    """Return the norm of numbers whose squares are too large for a float64."""
    largest = max((float(part.double().abs().max()) for part in parts if part.numel()), default=0.0)
    return largest * _length([part.double() / largest for part in parts]) if largest < math.inf else math.nan


def shortened(value: Any, group: Group, norms: Tensor, max_norm: float) -> Any:
    """Return rows that are no longer than `max_norm`, given their norms. Numbers come out as floats."""
    factors = [0.0 if not is_alive else min(1.0, max_norm / norm) if norm else 1.0
               for is_alive, norm in zip(group.is_alive, norms.tolist(), strict=True)]  # fmt: skip

    def one(leaf: Any) -> Any:
        if isinstance(leaf, tree.Flat):
            return tree.Flat(_times(leaf.buffer, factors), leaf.schema)
        if isinstance(leaf, Column):
            return Column(_times(leaf.numbers, factors), is_whole=False)
        if not isinstance(leaf, Tensor):
            return leaf
        return _times(leaf if leaf.is_floating_point() else leaf.double(), factors)

    return tree.replace_leaves(value, [one(leaf) for _, leaf in tree.leaves(value)])


def _times(numbers: Tensor, factors: Sequence[float]) -> Tensor:
    """Return each row times its factor; what a factor of 0 meets may be anything."""
    if all(factor == 1.0 for factor in factors):
        return numbers
    found = numbers.detach().clone()
    for row, factor in zip(found, factors, strict=True):
        if factor == 0.0:
            row.zero_()
        elif factor != 1.0:  # the product in float64; rounding it lengthens a row by less than eps
            row.copy_(row.double() * (factor * (1 - torch.finfo(numbers.dtype).eps)))
    return found
