"""Robust rules coordinate by coordinate: sort what the sites sent for each number, and keep the middle.

Each function takes a block of columns (rows, columns) and returns one number for each. A block is laid out
column after column first, so that each sort runs over numbers that lie together: the other ways are two to
ten times slower (experiments/benchmarks/README.md).
"""

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

    In order they are neighbours: the window moves up while what it gains is nearer than what it loses.
    """
    ordered = in_order(block).t().contiguous()
    middle = (ordered[(len(block) - 1) // 2] + ordered[len(block) // 2]) / 2
    lowest = torch.zeros(block.shape[1], dtype=torch.int64)
    for lost, gained in zip(ordered[: len(block) - count], ordered[count:], strict=True):
        lowest += gained - middle < middle - lost
    total = torch.zeros_like(middle)
    for place, numbers in enumerate(ordered):  # not by differences: one of the numbers may be enormous
        total += torch.where((lowest <= place) & (place < lowest + count), numbers, 0.0)
    return total / count
