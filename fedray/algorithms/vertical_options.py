"""Vertical algorithms as options of the command line: they start by themselves, from a few settings.

A run hands every algorithm the first parameters of its configured model, which has all columns in one place.
No site has that model here, so these are not used.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

import fedray as fr
from fedray.algorithms.split import Rate
from fedray.algorithms.towers import mlp_tower, vertical_towers
from fedray.algorithms.vertical_logistic import vertical_logistic
from fedray.learn.models import mlp


def from_bias(
    bias: float = 0.0,
    lr: Rate = 0.1,
    batch_size: int | None = None,
    l2: float = 0.0,
    task: str = "binary",
) -> fr.Algorithm:
    """Return `vertical_logistic` that starts from zeros and an intercept.

    Raises ValueError where the outcome is not binary.
    """
    if task != "binary":
        raise ValueError(f"vertical_logistic: the outcome is {task}, it takes a binary one: vertical_towers")
    made = vertical_logistic(lr, batch_size, l2)
    first = {"bias": torch.tensor(bias, dtype=torch.float64)}
    return replace(made, init=lambda params: made.init(first))


def of_widths(
    num_sites: int,
    hidden: Sequence[int] = (16,),
    width: int = 8,
    head: Sequence[int] = (16,),
    lr: Rate = 0.1,
    batch_size: int | None = None,
    merge: str = "concat",
    task: str = "binary",
    num_classes: int = 2,
    seed: int = 0,
) -> fr.Algorithm:
    """Return `vertical_towers` of fully connected layers, whose head is drawn from the seed.

    The first parameters that it is given are not used: they belong to a model of all columns in one place.
    """
    entries = width * num_sites if merge == "concat" else width
    model = mlp(entries, head, num_classes, task=task)
    made = vertical_towers(mlp_tower(hidden, width), model, lr, batch_size, merge)
    return replace(made, init=lambda params: made.init(model.init(seed)))
