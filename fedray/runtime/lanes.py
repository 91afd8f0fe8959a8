"""Lanes: the arithmetic of the exact sum on plain buffers, in blocks of columns that stay in the cache.

No function here makes a temporary of the whole matrix. Scaling by a power of two, rounding to whole numbers
and the remainder of a float32 are exact in float32, so those passes run there; only the weighted addition is
float64. Few rows of small weight are added as whole multiples of the finest grid, whose sum fits a float64,
and that sum is split into lanes once: half the passes, equal totals. `fold.py` says what the numbers mean.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedray.errors import FoldError

LANE_BITS = {2: 23, 3: 26}  # of a lane, by the number of lanes
FLOAT64_BITS = 53  # whole numbers up to 2^53 are exact
MAX_EXPONENT = 900  # beyond it a grid is no longer a normal float64
NO_NEED = -1000  # the exponent of what fits every grid: zeros, and what needs no grid
WORK_ELEMENTS = 2**16  # rows x columns of a block: 1 MB of buffers, which stay in a core's cache
COLUMNS = 2**15  # of a block
SMALL_ELEMENTS = 2**16  # up to it a pass over the whole is cheaper than blocks, and a copy than a call a row
MOST_ROWS = 64  # of a block
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


def accumulate(
    lanes: Tensor, rows: Sequence[Rows], exponent: int, is_new: bool = False, need: int = MAX_EXPONENT
) -> None:
    """Add sum_i weights[i] * matrix[i] on the grid to the lanes (num_lanes, columns), in place.

    Lanes that are new memory are written instead. `need` is an exponent that holds every value, where it is
    known.

    Equal rows are added as one row with the total weight, which is as exact. Raises FoldError on a grid that
    float64 cannot hold.
    """
    if abs(exponent) > MAX_EXPONENT:
        raise FoldError(f"values of size 2^{exponent} cannot be summed exactly: scale the update down")
    one_each = [
        (matrix[:1], weights.sum().view(1)) if is_repeated(matrix) else (matrix, weights)
        for matrix, weights in rows
    ]
    if not lanes.shape[1]:
        return
    size = sum(len(weights) for _, weights in one_each) * lanes.shape[1]
    if size <= SMALL_ELEMENTS and all(isinstance(matrix, Tensor) for matrix, _ in one_each):
        _accumulate_small(lanes.zero_() if is_new else lanes, one_each, exponent)
    else:
        _Pass(lanes, one_each, exponent, need).run(is_new)


def _accumulate_small(lanes: Tensor, rows: Sequence[Rows], exponent: int) -> None:
    """Add few numbers as a whole, in float64: what a pass prepares costs more than they do."""
    bits = LANE_BITS[len(lanes)]
    parts = [matrix.to("cpu", torch.float64) for matrix, _ in rows if isinstance(matrix, Tensor)]
    weights = (rows[0][1] if len(rows) == 1 else torch.cat([held for _, held in rows])).numpy()
    # numpy: a call on a few numbers costs half of what torch takes
    rest = (parts[0] if len(parts) == 1 else torch.cat(parts)).numpy() * math.ldexp(1.0, bits - exponent)
    if not weights.all():
        rest[weights == 0] = 0.0  # a lost row may hold anything
    whole, sums = np.empty_like(rest), lanes.numpy()
    for number in range(len(sums)):
        np.rint(rest, out=whole)
        sums[number] += weights @ whole
        if number + 1 < len(sums):
            np.subtract(rest, whole, out=rest)
            np.multiply(rest, 2.0**bits, out=rest)


class _Bunch:
    """Rows that share the work buffers: pieces of matrices, and their weights."""

    def __init__(self, pieces: Sequence[Rows]) -> None:
        counts = [len(weights) for _, weights in pieces]
        ends = [sum(counts[: number + 1]) for number in range(len(counts))]
        starts = [end - count for end, count in zip(ends, counts, strict=True)]
        self.pieces = [(matrix, a, b) for (matrix, _), a, b in zip(pieces, starts, ends, strict=True)]
        self.weights = torch.cat([weights for _, weights in pieces])
        self.count = ends[-1]
        lost = torch.nonzero(self.weights == 0).flatten()
        self.lost = lost if len(lost) else None

    def scale_into(self, out: Tensor, start: int, factor: float) -> None:
        """Write the rows' columns from `start` on, scaled, where lost rows are zero, whatever they hold."""
        width = out.shape[1]
        for matrix, first, last in self.pieces:
            target = out if last - first == self.count else out.narrow(0, first, last - first)
            if isinstance(matrix, np.ndarray):  # of the object store: torch takes none that it cannot write
                here = matrix[:, start : start + width]
                np.multiply(here, factor, out=target.numpy(), dtype=target.numpy().dtype)
            elif matrix.dtype == out.dtype and not matrix.is_cuda:
                torch.mul(matrix.narrow(1, start, width), factor, out=target)
            else:
                target.copy_(matrix.narrow(1, start, width)).mul_(factor)
        if self.lost is not None:
            out.index_fill_(0, self.lost, 0.0)


def _bunches(rows: Sequence[Rows], most: int) -> list[_Bunch]:
    """Deal rows into bunches of at most `most`."""
    found: list[list[Rows]] = [[]]
    left = most
    for matrix, weights in rows:
        count, start = len(weights), 0
        while start < count:
            stop = min(count, start + left)
            found[-1].append((matrix[start:stop], weights[start:stop]))
            left, start = left - (stop - start), stop
            if left == 0:
                found.append([])
                left = most
    return [_Bunch(pieces) for pieces in found if pieces]


class _Pass:
    """Rows that are added to lanes in one pass over the columns."""

    def __init__(self, lanes: Tensor, rows: Sequence[Rows], exponent: int, need: int) -> None:
        num_lanes, columns = lanes.shape
        self.lanes, self.bits = lanes, LANE_BITS[num_lanes]
        total_bits = math.frexp(sum(float(weights.sum()) for _, weights in rows))[1]
        is_small = 2 * self.bits + min(need - exponent, 0) + total_bits <= FLOAT64_BITS
        self.is_one_sum = num_lanes == 2 and is_small  # of more lanes `total` depends on how they are split
        shift = (2 if self.is_one_sum else 1) * self.bits - exponent
        self.factor = math.ldexp(1.0, shift)
        is_narrow = shift in FLOAT32_SHIFTS and all(_is_narrow(matrix) for matrix, _ in rows)
        self.width = min(columns, COLUMNS)
        self.bunches = _bunches(rows, min(MOST_ROWS, WORK_ELEMENTS // self.width))
        size = self.width * max((bunch.count for bunch in self.bunches), default=0)
        self.rest = torch.empty(size, dtype=torch.float32 if is_narrow else torch.float64)
        self.whole = self.rest if self.is_one_sum else torch.empty_like(self.rest)
        self.wide = torch.empty(size, dtype=torch.float64) if is_narrow else self.whole

    def run(self, is_new: bool) -> None:
        """Add the rows, block by block; what the lanes of a block hold stays in the cache meanwhile."""
        for start in range(0, self.lanes.shape[1], self.width):
            lanes = self.lanes[:, start : start + self.width]
            if self.is_one_sum:
                self._add_one_sum(lanes, start, is_new)
            else:
                self._add_lanes(lanes.zero_() if is_new else lanes, start)

    def _add_lanes(self, lanes: Tensor, start: int) -> None:
        for bunch in self.bunches:
            rest, whole, wide = self._scaled(bunch, start, lanes.shape[1])
            for number, lane in enumerate(lanes):
                lane.addmv_(_rounded(rest, whole, wide).t(), bunch.weights)
                if number + 1 < len(lanes):
                    rest.sub_(whole).mul_(float(2**self.bits))

    def _add_one_sum(self, lanes: Tensor, start: int, is_new: bool) -> None:
        low = torch.zeros(lanes.shape[1], dtype=torch.float64)
        for bunch in self.bunches:
            low.addmv_(_rounded(*self._scaled(bunch, start, len(low))).t(), bunch.weights)
        high = torch.mul(low, 0.5**self.bits, out=lanes[0] if is_new else None).round_()  # a power of two
        if is_new:
            torch.sub(low, high, alpha=2.0**self.bits, out=lanes[1])
        else:
            lanes[0].add_(high)
            lanes[1].add_(low.sub_(high, alpha=2.0**self.bits))

    def _scaled(self, bunch: _Bunch, start: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scaled columns of a bunch, and buffers for them rounded and rounded in float64."""
        size = bunch.count * width  # first elements: of a narrower last block they are contiguous too
        rest, whole, wide = (
            flat[:size].view(bunch.count, width) for flat in (self.rest, self.whole, self.wide)
        )
        bunch.scale_into(rest, start, self.factor)
        return rest, whole, wide


def _rounded(rest: Tensor, whole: Tensor, wide: Tensor) -> Tensor:
    torch.round(rest, out=whole)
    return wide.copy_(whole) if wide.dtype != whole.dtype else whole


def _is_narrow(matrix: Tensor | np.ndarray) -> bool:
    if isinstance(matrix, Tensor):
        return matrix.dtype in NARROW
    return matrix.dtype in (np.float32, np.float16)


def accumulate_fast(total: Tensor, rows: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Add sum_i weights[i] * matrix[i] to a float32 buffer (columns,), in place and in float32.

    Block by block, so that what is written stays in the cache while all rows are added.
    """
    terms: list[tuple[Tensor, Tensor | float]] = []
    for matrix, weights in rows:
        alive = torch.nonzero(weights).flatten().tolist()
        is_plain = matrix.dtype == total.dtype and matrix.device == total.device and matrix.is_contiguous()
        if len(alive) == len(weights) > 1 and is_plain:
            terms.append((matrix.t(), weights.to(total.dtype)))  # one pass over all rows
        else:
            terms += [(matrix[row].to(total), float(weights[row])) for row in alive]
    for start in range(0, len(total), COLUMNS):
        target = total[start : start + COLUMNS]
        for numbers, weight in terms:
            block = numbers[start : start + COLUMNS]
            if isinstance(weight, float):
                target.add_(block, alpha=weight)
            else:
                target.addmv_(block, weight)
