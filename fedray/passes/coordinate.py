"""Robust rules coordinate by coordinate: sort what the sites sent for each number, and keep the middle.

Each function takes a block of columns (rows, columns) and returns one number for each. A block is laid out
column after column first, so that each sort runs over numbers that lie together: the other ways are two to
ten times slower (experiments/benchmarks/README.md).
"""

import numpy as np
import torch
from torch import Tensor


def in_order(block: Tensor) -> Tensor:
    """Return (columns, rows) with the numbers of each column in ascending order."""
    columns = block.t().contiguous()
    columns.numpy().sort(axis=1)
    return columns


def trimmed(block: Tensor, cut: int) -> Tensor:
    """Return the mean of each column without its `cut` largest and `cut` smallest numbers."""
    rows = len(block)
    share = block.new_zeros(rows)
    share[cut : rows - cut] = 1.0 / (rows - 2 * cut)
    return in_order(block) @ share


def median(block: Tensor) -> Tensor:
    """Return the median of each column, the mean of the middle two where there is no middle one."""
    return trimmed(block, (len(block) - 1) // 2)


def around_median(block: Tensor, count: int) -> Tensor:
    """Return the mean of the `count` numbers of each column that are nearest to its median.

    In order they are neighbours, a window: it moves up as long as what it gains is nearer than what it loses,
    which halving finds, since what it gains comes ever farther off.
    """
    rows, ordered = len(block), in_order(block).numpy()
    middle = (ordered[:, (rows - 1) // 2] + ordered[:, rows // 2]) / 2
    column = np.arange(len(ordered))
    low, high = np.zeros(len(ordered), np.int64), np.full(len(ordered), rows - count)
    for _ in range((rows - count).bit_length()):
        half = (low + high) // 2
        gained, lost = ordered[column, np.minimum(half + count, rows - 1)], ordered[column, half]
        is_nearer = (gained - middle < middle - lost) & (half < high)
        low, high = np.where(is_nearer, half + 1, low), np.where(is_nearer, high, half)
    starts = column * rows + low
    edges = np.stack([starts, starts + count], 1).ravel()  # of windows, and of what lies between two
    sums = np.add.reduceat(np.append(ordered.ravel(), ordered.dtype.type(0)), edges)[::2]
    return torch.from_numpy(sums / ordered.dtype.type(count))
