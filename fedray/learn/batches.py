"""The batches of one local training: which rows, in which order.

The order is `randperm` of the site's generator, one generator across epochs. The last batch of an epoch may
be smaller and is kept. A batch of all rows is the table as it is, without a draw.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray.rng import SERVER, Key

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Read:
    """The data of several sites, their training rows, and whether all fit a training's stacked form."""

    items: Sequence[Any]
    rows: Sequence[Batch]
    sizes: Sequence[int]
    fits: bool


def training_rows(data: Any) -> Batch:
    """Return the training rows of a site, or the mapping itself where it has no splits."""
    return data.train if hasattr(data, "train") else data


def valid_rows(data: Any) -> Batch | None:
    """Return the validation rows of a site, None where it has none."""
    rows = getattr(data, "valid", None)
    return rows if rows is not None and num_rows(rows) else None


def num_rows(rows: Batch) -> int:
    """Return how many rows the columns have."""
    return int(next(iter(rows.values())).shape[0]) if len(rows) else 0


def count_steps(rows: int, batch_size: int | None, epochs: int | None, steps: int | None) -> int:
    """Return the number of batches; none where there is no row."""
    if rows == 0:
        return 0
    return steps if steps is not None else -(-rows // (batch_size or rows)) * (epochs or 0)


def steps_of(
    sizes: Sequence[int], batch_size: int | None, epochs: int | None, steps: Sequence[int | None]
) -> list[int]:
    """Return the number of batches of each of several sites, from their numbers of rows."""
    return [count_steps(size, batch_size, epochs, most) for size, most in zip(sizes, steps, strict=True)]


def batches(
    rows: Batch, batch_size: int | None, steps: int, rng: Key, device: torch.device
) -> Iterator[Batch]:
    """Yield `steps` batches, epoch after epoch. A generator is opened only where an order is drawn."""
    total = num_rows(rows)
    size = min(batch_size or total, total)
    if size == total:
        whole = {name: column.to(device) for name, column in rows.items()}
        for _ in range(steps):
            yield whole
        return
    generator = rng.generator()
    while steps > 0:
        order = torch.randperm(total, generator=generator)[: steps * size]
        shuffled = {name: column[order.to(column.device)].to(device) for name, column in rows.items()}
        parts = {name: column.split(size) for name, column in shuffled.items()}
        for index in range(-(-len(order) // size)):
            yield {name: part[index] for name, part in parts.items()}
            steps -= 1


def nth_batch(rows: Batch, batch_size: int | None, number: int, rng: Key) -> Batch:
    """Return batch `number` of those that `batches` yields, where they are not taken in one go."""
    total = num_rows(rows)
    size = min(batch_size or total, total)
    if size == total:
        return rows
    epoch, place = divmod(number, -(-total // size))
    generator = rng.generator()
    for _ in range(epoch):
        torch.randperm(total, generator=generator)
    return _chosen(rows, torch.randperm(total, generator=generator), place, size)


def shared_batch(rows: Batch, batch_size: int | None, rng: Key) -> Batch:
    """Return the batch of a round: the same places in the tables of all sites, from a stream without a site.

    Batches run through all rows, in an order that is drawn anew for each pass; which pass and which batch of
    it follows from the round alone.
    """
    total = num_rows(rows)
    size = min(batch_size or total, total)
    if size == total:
        return rows
    done, place = divmod(rng.round, -(-total // size))
    # the round of this key is the number of the pass; its label keeps it apart from others
    generator = Key(rng.seed, done, SERVER, "records").generator()
    return _chosen(rows, torch.randperm(total, generator=generator), place, size)


def _chosen(rows: Batch, order: Tensor, place: int, size: int) -> Batch:
    chosen = order[place * size : (place + 1) * size]
    return {name: column[chosen.to(column.device)] for name, column in rows.items()}
