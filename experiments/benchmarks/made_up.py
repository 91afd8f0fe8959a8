"""Sites that make an update of the model's size without training, for what is measured beside training."""

from dataclasses import dataclass
from typing import Any

import torch

import fedray as fr
from fedray.core.trace import Algorithm, Outputs
from fedray.tree import Flat


@dataclass(frozen=True)
class Rows:
    """A site's data: a number of rows."""

    num_rows: int

    def __len__(self) -> int:
        return self.num_rows


@dataclass(frozen=True)
class Learnt:
    """An update."""

    delta: Flat
    num_examples: int


def update(params: Flat, data: Rows) -> Learnt:
    """Return an update of the model's size, made in one buffer; no two sites' are equal."""
    return Learnt(Flat(torch.full_like(params.buffer, 1e-3 * data.num_rows), params.schema), data.num_rows)


def averaging() -> Algorithm:
    """Average the updates."""

    def round(server: Any, site: Any) -> Outputs:
        learnt = fr.map(update, fr.broadcast(server), site.data)
        return Outputs(server=server + fr.mean(learnt.delta, weight=learnt.num_examples))

    return Algorithm(lambda params: params, round, name="averaging")
