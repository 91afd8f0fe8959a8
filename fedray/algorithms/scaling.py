"""What algorithms against drift share: updates times a number, sums of squares, rates per site.

An update has leaves that are only averaged: BatchNorm statistics, frozen parameters. Where an algorithm
multiplies by what is no weight of a mean (a server rate, a number of steps), they stay. Start at `scaled`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray import tree
from fedray.learn.batches import num_rows, training_rows
from fedray.rows import Column, Tagged, beside, column, expand, row, rows_of
from fedray.settings import check_whole
from fedray.tree import Flat


def scaled(delta: Any, factor: float) -> Any:
    """Return delta * factor on parameters; on the rest delta."""
    return _scaled(delta, lambda leaf: leaf * factor)


@rows_of(scaled)
def scaled_rows(group: Any, delta: Tagged, factor: Tagged) -> Any:
    """Return the scaled deltas of a group."""
    numbers = expand(factor, group.k).numbers
    return _scaled(expand(delta, group.k), lambda leaf: leaf * beside(numbers, leaf))


def _scaled(delta: Any, times: Callable[[Tensor], Tensor]) -> Any:
    found = tree.map(times, delta)
    if isinstance(delta, Flat):
        cut = delta.schema.trainable
        found.buffer[:, cut:] = delta.buffer[:, cut:]
    return found


def trainable(value: Any) -> Any:
    """Return the value with zeros in place of what is only averaged."""
    if not isinstance(value, Flat):
        return value
    found = value.clone()
    found.buffer[:, found.schema.trainable :] = 0.0
    return found


def squared_norm(delta: Any) -> float:
    """Return the sum of squares over the parameters, in float64."""
    return float(sum(float(part.double().square().sum()) for part in _parts(delta)))


@rows_of(squared_norm)
def squared_norm_rows(group: Any, delta: Tagged) -> Column:
    """Return one sum of squares per row; each row is added up alone, so that its bits are its own."""
    total = torch.zeros(group.k, dtype=torch.float64)
    for wide in _parts(expand(delta, group.k)):
        total += torch.tensor([float(row.double().square().sum()) for row in wide], dtype=torch.float64)
    return Column(total, False)


def _parts(value: Any) -> list[Tensor]:
    """Return the tensors of an update without what is only averaged."""
    found = [leaf for _, leaf in tree.leaves(value)]
    return [leaf.buffer[:, : leaf.schema.trainable] if isinstance(leaf, Flat) else leaf for leaf in found]


def num_rows_of(data: Any) -> int:
    """Return the number of a site's training rows."""
    return num_rows(training_rows(data))


@dataclass(frozen=True)
class RateOf:
    """A local update's learning rate times `factor`, shared out over its steps where `is_shared`."""

    local: Any
    factor: float = 1.0
    is_shared: bool = False

    @property
    def constant(self) -> float | None:
        """The rate where it is the same number in every round and at every site."""
        return None if callable(self.local.lr) or self.is_shared else self.local.lr * self.factor

    def __call__(self, data: Any, rng: Any) -> float:
        """Return the rate of one site in this round."""
        lr = self.local.lr(rng.round) if callable(self.local.lr) else self.local.lr
        steps = self.local.steps_at(data, rng) if self.is_shared else 1
        return float(lr * self.factor / max(1, steps))

    def rows(self, group: Any, data: Tagged, rng: Tagged) -> Column:
        """Return the rates of a group's sites."""
        return column(self(row(data, i), row(rng, i)) for i in range(group.k))


def share_of_all(count: int, num_sites: int) -> float:
    """Return which part of all sites was counted."""
    return count / num_sites


def check_num_sites(num_sites: int, name: str) -> None:
    """Raise ValueError where there are no sites to divide by."""
    check_whole(name, num_sites=num_sites)


def check_has(local: Any, name: str, *needs: str) -> None:
    """Raise ValueError where a local update lacks what an algorithm asks of it."""
    if lacks := [need for need in needs if not hasattr(local, need)]:
        raise ValueError(
            f"{name}: {getattr(local, '__name__', type(local).__name__)} has no {', '.join(lacks)}: use "
            "fedray.learn.sgd, or give your local update what `fedray.learn.LocalUpdate` says"
        )


def check_plain(local: Any, name: str, *needs: str) -> None:
    """Raise ValueError where local steps are not plain gradient steps, or the update lacks a method."""
    check_has(local, name, "lr", *needs)
    if getattr(local, "momentum", 0.0) != 0:
        raise ValueError(
            f"{name}: local steps must be plain SGD, without momentum or another rule: use fedray.learn.sgd "
            "with momentum=0"
        )
