"""What a test of the airlock looks at (`Leaving`), and what it answers (`Finding`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fedray import tree
from fedray.learn.batches import Batch, num_rows, training_rows, valid_rows
from fedray.learn.models import Model
from fedray.learn.update import Update
from fedray.rng import Key


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of a test, in numbers alone.

    `value` is NaN where it could not be measured. `margin` is what sampling may have added to it; `is_floor`
    says that `limit` is a least value, not a largest one.
    """

    name: str
    value: float
    limit: float
    margin: float = 0.0
    is_floor: bool = False

    @property
    def is_ok(self) -> bool:
        """Tell whether the update may leave as far as this test goes; what was not measured is no reason."""
        if math.isnan(self.value):
            return True
        return self.value >= self.limit if self.is_floor else self.value - self.margin <= self.limit

    def __str__(self) -> str:
        sure = f" (+- {self.margin:.2g})" if self.margin else ""
        allowed = "at least" if self.is_floor else "at most"
        return f"{self.name} {self.value:.3g}{sure}, {allowed} {self.limit:.3g}"


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """An update that is about to leave a site: from `params`, by `training`, on the site's own `data`.

    `update.delta` are the leaves that leave, before any other pass has changed them.
    """

    training: Any
    params: Any
    update: Update
    data: Any
    rng: Key

    @cached_property
    def model(self) -> Mapping[str, Tensor]:
        """The model that the update shows to who knows `params`."""
        start, moved = tree.flatten(self.params), tree.flatten(self.update.delta)
        if start.schema == moved.schema:
            return tree.flatten(tree.add(start, moved))
        model = getattr(self.training, "model", None)
        known = set(model.functional.start()) if isinstance(model, Model) else set(start)
        names = [name for name in start if name in known]  # an algorithm may lay more beside the model
        return {name: start[name] + moved[name] if name in moved else start[name] for name in names}

    @property
    def training_rows(self) -> Batch:
        """The rows that were trained on."""
        return training_rows(self.data)

    @property
    def num_rows(self) -> int:
        """Their number."""
        return num_rows(self.training_rows)

    def losses(self, *tables: Batch) -> list[Tensor]:
        """Return the loss of each row of some tables under the model that the update shows, float64."""
        together = {name: torch.cat([table[name] for table in tables]) for name in tables[0]}
        found = self.training.row_losses(self.model, together).to("cpu", torch.float64)
        return list(found.split([num_rows(table) for table in tables]))

    @property
    def held_out(self) -> Batch | None:
        """The site's validation rows. Test rows are no part of it: who withholds by them selects by them."""
        return valid_rows(self.data)


class Test(Protocol):
    """Look at an update before it leaves. Frozen, with settings only; a finding depends on one site alone."""

    name: ClassVar[str]
    """What is measured, in words."""

    def check(self, leaving: Leaving) -> Finding:
        """Return what was found."""
