"""Which patients a private step takes: Poisson batches, the same in the plain and in the stacked form.

A unit is what privacy protects: a patient, named by a column of the data (`unit`), or a row where there is no
such column. In every step each unit of a site takes part with probability q, whatever the others do, so that
batches differ in size and may be empty. A step's sum is divided by the EXPECTED number of units, q n: divided
by the number drawn, one patient more would also change what all others add.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedray import noise
from fedray.accounting import Mechanism
from fedray.errors import DataError
from fedray.learn.batches import Batch, num_rows
from fedray.learn.dropout import splitmix
from fedray.learn.ghost import Units
from fedray.learn.layout import BLOCK, block_width
from fedray.rng import Key

RECORDS = "records"  # stream that chooses the records of a patient who has more than are taken


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Which units there are and what a step does with them. `private_sgd` makes it and says the options.

    `mechanism` is what is accounted, and so what is done: its rate, steps and noise at a site of so many
    units. `unit` is a column of the data, None where every row is a unit. Without `adds_noise` the noise is
    another's; `divisor` then replaces the expected number of units.
    """

    mechanism: Mechanism
    unit: str | None = None
    max_records: int | None = None
    is_secret: bool = False
    adds_noise: bool = True
    divisor: float | None = None
    source: Callable[[], noise.Source] = noise.keystream

    def steps_at(self, num_units: int) -> int:
        """Return the steps of a round at a site, none where there is no unit."""
        return self.mechanism.at_site(num_units).steps or 0 if num_units else 0

    @property
    def width(self) -> int:
        """Rows of a block of the stacked form; from the settings alone, so that rows are invariant."""
        size = self.mechanism.batch_size
        if self.unit is not None or size is None:
            return BLOCK
        return min(BLOCK, block_width(math.ceil(size)))


@dataclass(frozen=True, slots=True)
class Sampled:
    """The Poisson batches of one site in one round, step after step.

    `rows` are row numbers of the training rows, those of a unit side by side; `unit` and `step` say of each
    whose it is and in which step. A step adds noise of `noise` clip bounds to a sum, over `divisor`.
    """

    rows: Tensor
    unit: Tensor
    step: Tensor
    steps: int
    divisor: float
    noise: float

    def batches(self) -> Iterator[tuple[Tensor, Units]]:
        """Yield each step's rows and their units."""
        begin = 0
        for end in torch.bincount(self.step, minlength=self.steps).cumsum(0).tolist():
            found, inverse = torch.unique_consecutive(self.unit[begin:end], return_inverse=True)
            yield self.rows[begin:end], Units(inverse, len(found))
            begin = end


@dataclass(frozen=True, slots=True)
class Records:
    """The training rows that may be drawn, sorted by unit, and the unit of each: 0 to count - 1."""

    rows: Tensor
    unit: Tensor
    count: int


def records_of(batch: Batch, privacy: Privacy, rng: Key) -> Records:
    """Return a site's records. Raises DataError where the column of units is missing or holds no numbers.

    Of a unit with more than `max_records` rows, so many are chosen, the same in every round.
    """
    total = num_rows(batch)
    if privacy.unit is None:
        rows = torch.arange(total)
        return Records(rows, rows, total)
    if privacy.unit not in batch or batch[privacy.unit].is_floating_point():
        raise DataError(
            f"private_sgd: site {rng.site or '?'} has no column {privacy.unit!r} of whole numbers, one a "
            "patient. Fix: add it (SiteData.with_columns), or unit=None for a guarantee per row"
        )
    _, unit = torch.unique(batch[privacy.unit].cpu(), return_inverse=True)
    order = torch.argsort(unit, stable=True)
    if privacy.max_records is not None:
        order = _capped(order, unit[order], batch[privacy.unit].cpu()[order], privacy.max_records, rng)
    count = int(unit.max()) + 1 if total else 0
    return Records(order, unit[order], count)


def _capped(order: Tensor, unit: Tensor, name: Tensor, most: int, rng: Key) -> Tensor:
    """Return rows that are sorted by unit without those of a unit that are more than `most`.

    Which ones, a hash of the unit's name and the place of a row in it decides: one patient more or less at
    the site changes no other's choice, for who knows the seed too.
    """
    sizes = torch.bincount(unit)
    place = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[unit]
    key = np.array([Key(rng.seed, 0, rng.site, RECORDS).value], dtype=np.uint64)
    named, placed = (numbers.numpy().astype(np.int64).view(np.uint64) for numbers in (name, place))
    draws = splitmix(splitmix(splitmix(key) ^ named) ^ placed)
    mixed = np.lexsort((draws, unit.numpy()))  # by unit, then by lot
    return order[torch.from_numpy(mixed[place.numpy() < most])]


def sample(batch: Batch, privacy: Privacy, rng: Key, steps: int | None = None) -> Sampled:
    """Draw the batches of a site's round from its stream, or from the system's entropy."""
    records = records_of(batch, privacy, rng)
    count = records.count
    if not count:
        return Sampled(records.rows, records.unit, records.rows, 0, 1.0, 0.0)
    here = privacy.mechanism.at_site(count)
    multiplier, rate, usual = here.known
    shape = (usual if steps is None else steps, count)
    if privacy.is_secret:
        drawn = noise.uniform(shape)
    else:
        drawn = torch.rand(shape, generator=rng.generator(), dtype=torch.float64)
    step, place = (drawn < rate)[:, records.unit].nonzero(as_tuple=True)
    divisor = rate * count if privacy.divisor is None else privacy.divisor
    added = multiplier if privacy.adds_noise else 0.0
    return Sampled(records.rows[place], records.unit[place], step, shape[0], divisor, added)
