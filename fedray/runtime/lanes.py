"""Lanes: the arithmetic of the exact sum on plain buffers, in blocks of columns that stay in the cache.

No function here makes a temporary of the whole matrix. Scaling by a power of two, rounding to whole numbers
and the remainder of a float32 are exact in float32, so those passes run there; only the weighted addition is
float64. Work buffers are reused from block to block. `fold.py` says what the numbers mean.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedray.errors import FoldError

LANE_BITS = 26
MAX_EXPONENT = 900  # beyond it a grid is no longer a normal float64
NO_NEED = -1000  # the exponent of what fits every grid: zeros, and what needs no grid
WORK_ELEMENTS = 2**18  # rows x columns of a block: 4 MB of buffers, above which they are page-faulted anew
MOST_COLUMNS = 2**17
LEAST_COLUMNS = 2**10
SMALL_ELEMENTS = 2**16  # below it one copy is cheaper than a call for each row
MOST_ROWS = 64  # rows of several operands that are added in one pass
TOTAL_COLUMNS = 2**15  # of a block while lanes are put together or divided
NARROW = (torch.float32, torch.bfloat16, torch.float16)
FLOAT32_SHIFTS = range(-126, 128)  # powers of two that are normal float32 numbers

Rows = tuple[Tensor | np.ndarray, Tensor]  # a matrix (rows, columns) and the rows' weights


def exponent_of(largest: float) -> int:
    """Return the smallest exponent e with largest < 2^e; a large negative number for zero."""
    return math.frexp(largest)[1] if largest > 0 else NO_NEED


def largest_of(matrix: Tensor, weights: Tensor | None = None) -> float:
    """Return the largest |x| of the rows whose weight is not zero, reading each once and copying none."""
    numbers = matrix[:1] if is_repeated(matrix) else matrix
    if numbers.dtype == torch.bool:
        numbers = numbers.double()
    if weights is not None and numbers is not matrix:
        weights = None
    parts: Sequence[Tensor] = [numbers] if numbers.is_contiguous() else list(numbers)
    if weights is not None and not bool(weights.all()):
        alive = torch.nonzero(weights).flatten()
        is_small = numbers.numel() <= SMALL_ELEMENTS
        parts = [numbers[alive]] if is_small else [numbers[row] for row in alive.tolist()]
    return _nan_or_max([abs(float(end)) for part in parts if part.numel() for end in part.aminmax()])


def _nan_or_max(numbers: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, numbers)) else max(numbers, default=0.0)


def is_repeated(matrix: Tensor | np.ndarray) -> bool:
    """Tell whether all rows are one row in memory."""
    return isinstance(matrix, Tensor) and matrix.shape[0] > 1 and matrix.stride(0) == 0


def accumulate(lanes: Tensor, rows: Sequence[Rows], exponent: int, is_new: bool = False) -> None:
    """Add sum_i weights[i] * matrix[i] on the grid to the lanes (num_lanes, columns), in place.

    Lanes that are new memory are written instead.

    Equal rows are added as one row with the total weight, which is as exact. Raises FoldError on a grid that
    float64 cannot hold.
    """
    if abs(exponent) > MAX_EXPONENT:
        raise FoldError(f"values of size 2^{exponent} cannot be summed exactly: scale the update down")
    batch: list[Rows] = []
    for matrix, weights in rows:
        one = (matrix[:1], weights.sum().view(1)) if is_repeated(matrix) else (matrix, weights)
        if batch and sum(len(held) for _, held in batch) + len(one[1]) > MOST_ROWS:
            _accumulate(lanes, batch, exponent, is_new)
            batch, is_new = [], False
        batch.append(one)
    if batch:
        _accumulate(lanes, batch, exponent, is_new)


def _accumulate(lanes: Tensor, rows: Sequence[Rows], exponent: int, is_new: bool) -> None:
    weights = torch.cat([held for _, held in rows])
    dead = torch.nonzero(weights == 0).flatten()
    shift = LANE_BITS - exponent
    is_narrow = shift in FLOAT32_SHIFTS and all(_is_narrow(matrix) for matrix, _ in rows)
    dtype = torch.float32 if is_narrow else torch.float64
    num_lanes, columns = lanes.shape
    width = min(columns, MOST_COLUMNS, max(LEAST_COLUMNS, WORK_ELEMENTS // len(weights)))
    # one allocation each; a narrower last block uses their first elements, so that it stays contiguous
    rest_1, whole_1 = (torch.empty(len(weights) * width, dtype=dtype) for _ in range(2))
    wide_1 = torch.empty(len(weights) * width, dtype=torch.float64) if is_narrow else whole_1
    for start in range(0, columns, width):
        stop = min(columns, start + width)
        rest, whole, wide = (
            flat[: len(weights) * (stop - start)].view(len(weights), -1) for flat in (rest_1, whole_1, wide_1)
        )
        _scale_into(rest, rows, slice(start, stop), math.ldexp(1.0, shift))
        if len(dead):
            rest.index_fill_(0, dead, 0.0)  # a lost row may hold anything
        for lane in range(num_lanes):
            torch.round(rest, out=whole)
            if is_narrow:
                wide.copy_(whole)
            if is_new:
                torch.mv(wide.t(), weights, out=lanes[lane, start:stop])
            else:
                lanes[lane, start:stop].addmv_(wide.t(), weights)
            if lane + 1 < num_lanes:
                rest.sub_(whole).mul_(float(2**LANE_BITS))


def _is_narrow(matrix: Tensor | np.ndarray) -> bool:
    if isinstance(matrix, Tensor):
        return matrix.dtype in NARROW
    return matrix.dtype in (np.float32, np.float16)


def _scale_into(out: Tensor, rows: Sequence[Rows], here: slice, factor: float) -> None:
    first = 0
    for matrix, weights in rows:
        target = out[first : first + len(weights)]
        first += len(weights)
        if isinstance(matrix, np.ndarray):  # of the object store: torch does not take what it cannot write
            np.multiply(matrix[:, here], factor, out=target.numpy(), dtype=target.numpy().dtype)
        elif matrix.dtype == out.dtype and matrix.device == out.device:
            torch.mul(matrix[:, here], factor, out=target)
        else:
            target.copy_(matrix[:, here]).mul_(factor)


def accumulate_fast(total: Tensor, rows: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Add sum_i weights[i] * matrix[i] to a float32 buffer (columns,), in place and in float32."""
    for matrix, weights in rows:
        alive = torch.nonzero(weights).flatten().tolist()
        is_plain = matrix.dtype == total.dtype and matrix.device == total.device and matrix.is_contiguous()
        if len(alive) == len(weights) > 1 and is_plain:
            total.addmv_(matrix.t(), weights.to(total.dtype))  # one pass over all rows
            continue
        for row in alive:
            total.add_(matrix[row].to(total), alpha=float(weights[row]))


def total(lanes: np.ndarray, exponent: int, in_place: bool) -> np.ndarray:
    """Return the sum that lanes hold, in float64, small lanes first; `in_place` writes it over lane one.

    Each product is exact (a power of two), so that there is one rounding for each addition.
    """
    num_lanes, columns = lanes.shape
    found = lanes[0] if in_place else np.empty(columns)
    scales = [math.ldexp(1.0, exponent - LANE_BITS * (lane + 1)) for lane in range(num_lanes)]
    sums, part = np.empty(min(columns, TOTAL_COLUMNS)), np.empty(min(columns, TOTAL_COLUMNS))
    for start in range(0, columns, TOTAL_COLUMNS):
        stop = min(columns, start + TOTAL_COLUMNS)
        block, term = sums[: stop - start], part[: stop - start]
        block.fill(0.0)  # 0 + -0 is 0: a sum has no negative zero
        for lane in range(num_lanes - 1, -1, -1):
            block += np.multiply(lanes[lane, start:stop], scales[lane], out=term)
        found[start:stop] = block
    return found


def divided(numbers: Tensor, weight: float, dtype: torch.dtype) -> Tensor:
    """Return numbers / weight: one division in float64 and one rounding to the dtype, without a wide copy.

    Where the dtype is that of the numbers the mean is written over them: a sum is divided once.
    """
    found = numbers.contiguous() if numbers.dtype == dtype else torch.empty(numbers.shape, dtype=dtype)
    source, target = numbers.reshape(-1), found.view(-1)
    quotient = torch.empty(min(len(source), TOTAL_COLUMNS), dtype=torch.float64)
    for start in range(0, len(source), TOTAL_COLUMNS):
        block = source[start : start + TOTAL_COLUMNS]
        here = quotient[: len(block)]
        torch.div(block.double() if block.dtype != torch.float64 else block, weight, out=here)
        target[start : start + TOTAL_COLUMNS].copy_(here)
    return found
