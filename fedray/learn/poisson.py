"""Poisson batches of a group of sites, laid out as `layout.py` lays out batches of one size.

A batch is as many blocks as it needs, one at least; a unit's rows are in one block, so that its gradient is
clipped as one. Padding repeats the site's first row with weight zero. Which rows, is what `patients.py` says.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedray.learn.layout import CHUNK_BYTES, Layout, moves_of
from fedray.learn.patients import Privacy, Sampled

Ints = NDArray[np.int64]


def poisson_layout(
    sampled: Sequence[Sampled], privacy: Privacy, row_bytes: int, dtype: torch.dtype,
    chunk_bytes: int = CHUNK_BYTES,
) -> Layout:  # fmt: skip
    """Lay out the batches of several sites, with the row numbers that slots point at and rows' units."""
    width, k = privacy.width, len(sampled)
    order = sorted(range(k), key=lambda i: -sampled[i].steps)
    sites = [sampled[i] for i in order]
    steps = np.array([one.steps for one in sites], dtype=np.int64)
    placed = [_placed(one, width, privacy.unit is None) for one in sites]
    wide = np.ones((k, int(steps.max(initial=0))), dtype=np.int64)
    for site, (step, block, _) in enumerate(placed):
        np.maximum.at(wide[site], step, block + 1)
    chunks, step, block, site = moves_of(steps, wide, False, max(1, chunk_bytes // (width * row_bytes)))
    number = np.zeros((*wide.shape, int(wide.max(initial=1))), dtype=np.int64)
    number[site, step, block] = np.arange(len(site))
    sizes = tuple(len(one.rows) for one in sites)
    starts = np.cumsum([0, *(1 + size for size in sizes)])  # a site's first row is there for padding
    slots = np.repeat(starts[site][:, None], width, 1)
    weights, units = np.zeros(slots.shape), np.full(slots.shape, -1)
    for here, (one, (step, block, place)) in enumerate(zip(sites, placed, strict=True)):
        at = number[here, step, block], place
        slots[at], weights[at] = starts[here] + 1 + np.arange(len(step)), 1 / one.divisor
        units[at] = one.unit.numpy()
    first = torch.zeros(1, dtype=torch.int64)
    return Layout(
        order=tuple(order), sizes=sizes, steps=tuple(steps.tolist()), starts=tuple(starts[:-1].tolist()),
        num_draws=int(starts[-1]), width=width, slots=torch.from_numpy(slots),
        weights=torch.from_numpy(weights).to(dtype), site=torch.from_numpy(site),
        lengths=torch.from_numpy((weights > 0).sum(1)), seen=sizes, chunks=chunks, is_static=False,
        is_wide=True, drawn=torch.cat([part for one in sites for part in (first, one.rows)]),
        units=None if privacy.unit is None else torch.from_numpy(units),
    )  # fmt: skip


def _placed(one: Sampled, width: int, is_alone: bool) -> tuple[Ints, Ints, Ints]:
    """Return the step, the block within it and the place within that of every row drawn."""
    step, unit = one.step.numpy(), one.unit.numpy()
    if is_alone:
        place = np.arange(len(step)) - np.searchsorted(step, np.arange(one.steps))[step]
        return step, place // width, place % width
    changes = np.flatnonzero((np.diff(step, prepend=-1) != 0) | (np.diff(unit, prepend=-1) != 0))
    sizes = np.diff([*changes, len(step)])
    if sizes.max(initial=0) > width:
        raise ValueError(
            f"private_sgd: a patient has more than {width} records, which the stacked form keeps together. "
            f"Fix: max_records_per_unit={width} or less, or form='loop'"
        )
    block, begin = np.empty_like(step), np.empty_like(step)
    number, at, last = 0, 0, -1
    for change, size in zip(changes.tolist(), sizes.tolist(), strict=True):
        if step[change] != last:
            number, at, last = 0, 0, int(step[change])
        elif at + size > width:
            number, at = number + 1, 0
        block[change : change + size], begin[change : change + size] = number, at
        at += size
    return step, block, begin + np.arange(len(step)) - np.repeat(changes, sizes)
