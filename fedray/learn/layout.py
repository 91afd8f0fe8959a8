"""The batches of a group of sites, laid out step by step, so that one product trains all of them.

Sites are sorted by their number of steps, so those that still have a batch in a step are a prefix. A batch is
padded to a block of rows whose number depends on the batch size alone (a multiple of 32: the shape of every
product is then the same for every group, which keeps rows invariant); padding has weight zero and repeats the
batch's first row. A wide batch is several blocks whose gradients add up. Which rows, in which order, is what
`batches.py` says: both give equal batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray.learn.batches import Batch
from fedray.rng import Key

LINE = 32  # rows of a block are a multiple of it: no vector loop then has a tail that another group has not
WIDE = 256  # a larger batch is cut into blocks
BLOCK = 64  # rows of such a block
KEPT_LAYOUTS = 16
GPU_CHUNK_BYTES = 64 * 2**20  # of a table on a GPU, where calls cost and not the cache; not measured
CHUNK_BYTES = 2 * 2**20  # what is gathered at a time: it stays in the processor's cache until it is used


def is_wide(batch_size: int | None) -> bool:
    """Tell whether a batch may be several blocks; like the width it depends on the batch size alone."""
    return batch_size is None or batch_size > WIDE


def block_width(batch_size: int | None) -> int:
    """Return the rows of a block."""
    if batch_size is None or is_wide(batch_size):
        return BLOCK
    return -(-batch_size // LINE) * LINE


@dataclass(frozen=True, slots=True)
class Move:
    """One block of each active site: blocks `here` of its chunk.

    A step begins with its block 0 and ends with `is_last`; it moves the first `stepping` sites.
    """

    step: int
    block: int
    here: slice
    active: int
    stepping: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class Chunk:
    """Blocks that are gathered together, and the moves over them."""

    blocks: slice
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Layout:
    """Where each row of each batch goes. Sites are counted in sorted order: position p is site `order[p]`.

    `slots` (blocks, width) are positions in the concatenated draws of all sites, `weights` (blocks, width)
    the share of a row in its batch's mean, `site` (blocks,) positions of sites, `lengths` (blocks,) rows of
    the
    batch that a block is of, `seen` the rows in all batches of each site.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    starts: tuple[int, ...]  # of a site's draws
    num_draws: int
    width: int
    slots: Tensor
    weights: Tensor
    site: Tensor
    lengths: Tensor
    seen: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    is_static: bool  # every batch is a whole table: gathered once
    is_wide: bool  # a step may have several blocks
    drawn: Tensor | None = None  # row numbers, where a draw is no order of the whole table: Poisson batches
    units: Tensor | None = None  # (blocks, width) whose rows are clipped together, -1 for padding

    @property
    def is_sorted(self) -> bool:
        """Tell whether the given order is the sorted one."""
        return self.order == tuple(range(len(self.order)))


def layout(
    sizes: Sequence[int],
    steps: Sequence[int],
    batch_size: int | None,
    row_bytes: int,
    dtype: torch.dtype,
    chunk_bytes: int = CHUNK_BYTES,
) -> Layout:
    """Lay out `steps[i]` batches of site i, which has `sizes[i]` rows."""
    width = block_width(batch_size)
    batch = np.minimum(batch_size or max(sizes, default=0), sizes)
    blocks_a_step = np.maximum(-(-batch // width), 1)
    order = sorted(range(len(sizes)), key=lambda i: (-steps[i], -blocks_a_step[i]))
    size, taken, batch, wide = (
        np.array([int(column[i]) for i in order]) for column in (sizes, steps, batch, blocks_a_step)
    )
    is_static = bool((is_whole := batch == size).all())
    draws = np.where(is_whole, size, rows_drawn(size, taken, batch))
    starts = np.concatenate([[0], np.cumsum(draws)])
    chunks, step, block, site = moves_of(taken, wide, is_static, max(1, chunk_bytes // (width * row_bytes)))
    begin, length = _batches(step, batch[site], size[site])
    lane = np.arange(width)[None, :]
    is_real = lane < np.clip(length - block * width, 0, width)[:, None]
    slots = (starts[site] + begin)[:, None] + np.where(is_real, block[:, None] * width + lane, 0)
    return Layout(
        order=tuple(order),
        sizes=tuple(int(number) for number in size),
        steps=tuple(int(number) for number in taken),
        starts=tuple(int(number) for number in starts[:-1]),
        num_draws=int(starts[-1]),
        width=width,
        slots=torch.from_numpy(slots),
        weights=torch.from_numpy(is_real / np.maximum(length, 1)[:, None]).to(dtype),
        site=torch.from_numpy(site),
        lengths=torch.from_numpy(length),
        seen=tuple(int(number) for number in np.where(is_whole, taken * size, draws)),
        chunks=chunks,
        is_static=is_static,
        is_wide=is_wide(batch_size),
    )


def layout_of(
    cache: dict[Any, Any],
    sizes: Sequence[int],
    steps: Sequence[int],
    batch_size: int | None,
    rows: Batch,
    dtype: torch.dtype,
) -> Layout:
    """Return a layout, out of the cache where the same sizes were laid out lately."""
    kept: dict[Any, Layout] = cache.setdefault("layouts", {})
    row_bytes = sum(column[0].numel() * column.element_size() for column in rows.values() if len(column))
    is_placed = any(column.is_cuda for column in rows.values())
    chunk_bytes = GPU_CHUNK_BYTES if is_placed else CHUNK_BYTES
    key = (tuple(sizes), tuple(steps), batch_size, row_bytes, dtype, chunk_bytes)
    if key not in kept:
        if len(kept) >= KEPT_LAYOUTS:
            kept.pop(next(iter(kept)))
        kept[key] = layout(sizes, steps, batch_size, max(row_bytes, 1), dtype, chunk_bytes)
    return kept[key]


def _batches(step: np.ndarray, batch: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where in a site's order the batch of each block's step begins, and its rows."""
    per_epoch = np.maximum(-(-size // np.maximum(batch, 1)), 1)
    within = step % per_epoch
    begin = np.where(batch == size, 0, step // per_epoch * size + within * batch)
    return begin, np.minimum(batch, size - within * batch)


def rows_drawn(size: np.ndarray, steps: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Return how many rows a site's order holds: whole epochs, and what its last one begins."""
    per_epoch = np.maximum(-(-size // np.maximum(batch, 1)), 1)
    return steps // per_epoch * size + np.minimum(steps % per_epoch * batch, size)


def moves_of(
    steps: np.ndarray, wide: np.ndarray, is_static: bool, blocks_at_once: int
) -> tuple[tuple[Chunk, ...], np.ndarray, np.ndarray, np.ndarray]:
    """Return chunks, and for every block its step, its number within the batch and its site.

    `wide` says how many blocks a site's step has, (sites, steps), or (sites,) where all have as many.
    """
    if wide.ndim == 1:
        wide = np.broadcast_to(wide[:, None], (len(wide), int(steps.max(initial=0))))
    last = int(steps.max(initial=0))
    found: list[tuple[int, int, int]] = []  # step, number, active
    chunks: list[Chunk] = []
    moves: list[Move] = []
    first_block = total = 0
    offsets: dict[int, int] = {}
    for step in range(last):
        stepping = int((steps > step).sum())
        blocks = int(wide[:stepping, step].max())
        if not is_static and moves and total - first_block + stepping * blocks > blocks_at_once:
            chunks.append(Chunk(slice(first_block, total), tuple(moves)))
            moves, first_block = [], total
        for number in range(blocks):
            active = int(np.flatnonzero(wide[:stepping, step] > number)[-1]) + 1  # less: padding
            if not is_static or step == 0:
                offsets[number] = total - first_block
                found.append((step, number, active))
                total += active
            here = slice(offsets[number], offsets[number] + active)
            moves.append(Move(step, number, here, active, stepping, number == blocks - 1))
    if moves:
        chunks.append(Chunk(slice(first_block, total), tuple(moves)))
    counts = [active for _, _, active in found]
    whole = np.concatenate([np.arange(count) for count in counts]) if counts else np.zeros(0, dtype=np.int64)
    return (
        tuple(chunks),
        np.repeat([step for step, _, _ in found], counts).astype(np.int64),
        np.repeat([number for _, number, _ in found], counts).astype(np.int64),
        whole.astype(np.int64),
    )


def draw(plan: Layout, keys: Sequence[Key], batch_size: int | None, generator: torch.Generator) -> Tensor:
    """Return the row numbers of all sites, concatenated, each within its own table: (num_draws,) int64."""
    found = torch.empty(plan.num_draws, dtype=torch.int64)
    ends = (*plan.starts[1:], plan.num_draws)
    for place, (size, begin, end) in enumerate(zip(plan.sizes, plan.starts, ends, strict=True)):
        if min(batch_size or size, size) == size:
            torch.arange(end - begin, out=found[begin:end])
            continue
        generator.manual_seed(keys[plan.order[place]].value)
        for at in range(begin, end, size):
            if end - at >= size:
                torch.randperm(size, generator=generator, out=found[at : at + size])
            else:
                found[at:end] = torch.randperm(size, generator=generator)[: end - at]
    return found


def table_of(columns: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Return one table that holds the columns of several sites, and the row at which each begins.

    No copy is made where the columns are ranges of one table already (`SiteData.together`, shards).
    """
    first, base = columns[0], columns[0]._base
    shape = first.shape[1:]
    is_shared = len(columns) > 1 and base is not None and base.is_contiguous() and base.shape[1:] == shape
    step = base.stride() if base is not None else ()
    if is_shared and all(c._base is base and c.shape[1:] == shape and c.stride() == step for c in columns):
        width = max(1, shape.numel())
        offsets = [column.storage_offset() - base.storage_offset() for column in columns]
        if all(offset % width == 0 for offset in offsets):
            return base.detach(), [offset // width for offset in offsets]
    starts = np.cumsum([0, *(column.shape[0] for column in columns[:-1])]).tolist()
    return (torch.cat(list(columns)) if len(columns) > 1 else first), starts
