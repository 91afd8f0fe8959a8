"""Totals: what partial sums come to, computed block by block whenever it is read.

The aggregator reads an aggregate twice: for its hash and next grid, and for the mean. Doing the addition
again costs less than keeping it: no part is written to, and no float64 copy of a model is made.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray import tree
from fedray.errors import QuorumError
from fedray.runtime import lanes
from fedray.runtime.fold import HEADROOM_BITS, HEADROOM_BITS_WIDE, LaneSum, LeafSpec, lanes_of, specs

COLUMNS = 2**15  # of a block


class Total:
    """One leaf of a sum: in float64, small lanes first; of a fast sum in float32.

    Each product is exact (a power of two) and lanes of several parts add up exactly, so that there is one
    rounding for each lane.
    """

    __slots__ = ("__weakref__", "_arrays", "_largest", "_scales", "_whole", "spec")

    def __init__(self, arrays: Sequence[np.ndarray], exponent: int, spec: LeafSpec) -> None:
        self._arrays, self.spec = tuple(arrays), spec
        bits = lanes.LANE_BITS.get(len(arrays[0]), 0)
        self._scales = [math.ldexp(1.0, exponent - bits * (lane + 1)) for lane in range(len(arrays[0]))]
        self._whole: np.ndarray | None = None  # of a small leaf: one block
        self._largest: float | None = None  # found by the first pass

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers."""
        return torch.float32 if self.spec.is_fast else torch.float64

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self._arrays[0].shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers."""
        return self.size * self.dtype.itemsize

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the numbers in order, block by block; a block's memory is used again for the next."""
        if self.size <= COLUMNS:
            if self._whole is None:
                self._whole = self._block(0, np.empty((2, self.size), self._numpy_dtype))
            yield self._whole
            return
        work, largest = np.empty((2, COLUMNS), self._numpy_dtype), [0.0]
        for start in range(0, self.size, COLUMNS):
            block = self._block(start, work)
            if self._largest is None:
                largest += [float(block.max()), -float(block.min())]
            yield block
        if self._largest is None:
            self._largest = max(largest)

    def largest(self) -> float:
        """Return the largest |x|."""
        if self._largest is None and self.size:
            for block in self.blocks():
                if len(block) == self.size:
                    self._largest = max(0.0, float(block.max()), -float(block.min()))
        return self._largest or 0.0

    @property
    def _numpy_dtype(self) -> type[np.floating[Any]]:
        return np.float32 if self.spec.is_fast else np.float64

    def _block(self, start: int, work: np.ndarray) -> np.ndarray:
        stop = min(self.size, start + work.shape[1])
        block, term = work[0, : stop - start], work[1, : stop - start]
        if self.spec.is_fast:
            return self._lane(0, start, stop, block)
        block.fill(0.0)  # 0 + -0 is 0: a sum has no negative zero
        for lane in range(len(self._scales) - 1, -1, -1):
            block += np.multiply(self._lane(lane, start, stop, term), self._scales[lane], out=term)
        return block

    def _lane(self, lane: int, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        """Return what all parts hold in a lane: the part's own memory where there is one."""
        first, *others = (array[lane, start:stop] for array in self._arrays)
        for other in others:
            first = np.add(first, other, out=out)
        return first

    def whole(self) -> Tensor:
        """Return a copy of all numbers, in the leaf's shape."""
        found = torch.empty(self.size, dtype=self.dtype)
        for block, target in self._beside(found):
            target.numpy()[:] = block
        return self._shaped(found)

    def number(self) -> float:
        """Return the only number: the same additions without arrays."""
        found = 0.0
        for lane in range(len(self._scales) - 1, -1, -1):
            found += sum(float(array[lane, 0]) for array in self._arrays) * self._scales[lane]
        return found

    def divided(self, weight: float, dtype: torch.dtype) -> Tensor:
        """Return the mean: one division in float64 and one rounding to the dtype."""
        found, quotient = torch.empty(self.size, dtype=dtype), np.empty(min(self.size, COLUMNS))
        for block, target in self._beside(found):
            here = quotient[: len(block)]
            np.divide(block, weight, out=here, dtype=np.float64)
            target.copy_(torch.from_numpy(here))
        return self._shaped(found)

    def _beside(self, found: Tensor) -> Iterator[tuple[np.ndarray, Tensor]]:
        start = 0
        for block in self.blocks():
            yield block, found[start : start + len(block)]
            start += len(block)

    def _shaped(self, numbers: Tensor) -> Tensor:
        return numbers.view(1, -1) if self.spec.schema is not None else numbers.view(self.spec.shape)


class Scaled(Total):
    """One leaf of several totals of one structure, each times a factor."""

    __slots__ = ("_terms",)

    def __init__(self, terms: Sequence[tuple[float, Total]]) -> None:
        super().__init__(terms[0][1]._arrays, 0, terms[0][1].spec)
        self._terms = tuple(terms)

    def _block(self, start: int, work: np.ndarray) -> np.ndarray:
        block, term = work[0, : min(self.size, start + work.shape[1]) - start], np.empty_like(work)
        block.fill(0.0)
        for factor, total in self._terms:
            block += total._block(start, term) * factor
        return block


class ExactSum:
    """The result of a weighted sum, not rounded to the leaves' dtypes yet: `divided_by` does that, once.

    `parts` is the sum's structure, of totals and, for numbers and whole numbers, of values.
    """

    __slots__ = ("dtypes", "parts")

    def __init__(self, parts: Any, dtypes: Sequence[torch.dtype | None]) -> None:
        self.parts, self.dtypes = parts, tuple(dtypes)

    @property
    def value(self) -> Any:
        """The sum in float64, float32 where it is fast."""
        leaves = [_flat(leaf, leaf.whole()) if isinstance(leaf, Total) else leaf
                  for _, leaf in tree.leaves(self.parts)]
        return tree.replace_leaves(self.parts, leaves)

    def divided_by(self, weight: float) -> Any:
        """Return sum / weight in the leaves' own dtypes.

        Raises QuorumError where the weights add up to zero.
        """
        if weight == 0:
            raise QuorumError(
                "the weights of the sites that delivered add up to 0: no site had a row to learn from"
            )
        leaves = [
            _flat(leaf, leaf.divided(weight, dtype or torch.float64))
            if isinstance(leaf, Total)
            else _cast(leaf / weight, dtype)
            for (_, leaf), dtype in zip(tree.leaves(self.parts), self.dtypes, strict=True)
        ]
        return tree.replace_leaves(self.parts, leaves)


def _flat(total: Total, numbers: Tensor) -> Any:
    """Return numbers in the form that the leaf has at the sites."""
    schema = total.spec.schema
    return numbers if schema is None else tree.Flat(numbers, replace(schema, dtype=numbers.dtype))


def _cast(leaf: Any, dtype: torch.dtype | None) -> Any:
    """Return whole numbers in their dtype; a mean of whole numbers may be a fraction: it stays float64."""
    if not isinstance(leaf, Tensor) or dtype is None:
        return leaf
    is_whole = bool((leaf == leaf.round()).all())
    return leaf.to(torch.int64 if dtype == torch.bool else dtype) if is_whole else leaf


def result(parts: Sequence[LaneSum], exponents: Sequence[int], is_exact: bool) -> Any:
    """Return the sum of the parts of one name: as an `ExactSum`, else rounded once to the leaves' dtypes."""
    summed, spec = lanes_of(parts, exponents), parts[0].spec
    leaves: list[Any] = []
    for index, (exponent, leaf) in enumerate(zip(exponents, specs(spec), strict=True)):
        arrays = [part.arrays[index] for part in summed]
        if leaf.is_ring:
            leaves.append(_wrapped(arrays, leaf))
            continue
        total = Total(arrays, exponent, leaf)
        if leaf.dtype is None:
            leaves.append(total.number())
        else:
            leaves.append(total if leaf.dtype.is_floating_point else total.whole())
    found = ExactSum(tree.replace_leaves(spec, leaves), [leaf.dtype for leaf in specs(spec)])
    return found if is_exact else found.divided_by(1.0)


def rounded(part: LaneSum) -> LaneSum:
    """Return a partial sum as one row: its mean, rounded once to the leaves' dtype, and the sum of weights.

    A region sends this where a plan has fold="regional": a quarter of the bytes. Which host has which of its
    sites does not matter to the row. Sums of float64 and of whole numbers stay as they are.
    """
    is_narrow = all(leaf.dtype in lanes.NARROW and not leaf.is_fast for leaf in specs(part.spec))
    if part.is_row or not part.weight or not is_narrow:
        return part
    mean = result([part], part.exponents, True).divided_by(float(part.weight))
    leaves = [leaf.buffer if isinstance(leaf, tree.Flat) else leaf for _, leaf in tree.leaves(mean)]
    rows = [leaf.reshape(-1).to(torch.float32).numpy() for leaf in leaves]
    return LaneSum(part.spec, (), tuple(rows), part.weight, is_row=True)


def _wrapped(arrays: Sequence[np.ndarray], leaf: LeafSpec) -> tree.Flat:
    """Return the sum of some rows of the ring, modulo 2^32, in memory of its own."""
    assert leaf.schema is not None
    words = arrays[0].copy()
    for array in arrays[1:]:
        np.add(words, array, out=words)
    return tree.Flat(torch.from_numpy(words), leaf.schema)


def scaled(sums: Sequence[tuple[float, Any]], is_exact: bool) -> Any:
    """Return the sum of `ExactSum`s times their factors, added in the order given; as `result` does."""
    first = sums[0][1]
    if len(sums) > 1 or sums[0][0] != 1.0:
        each = [[leaf for _, leaf in tree.leaves(found.parts)] for _, found in sums]
        factors = [factor for factor, _ in sums]
        leaves = [_scaled(list(zip(factors, terms, strict=True))) for terms in zip(*each, strict=True)]
        first = ExactSum(tree.replace_leaves(first.parts, leaves), first.dtypes)
    return first if is_exact else first.divided_by(1.0)


def _scaled(terms: list[tuple[float, Any]]) -> Any:
    if isinstance(terms[0][1], Total):
        return Scaled(terms)
    found = terms[0][0] * terms[0][1]
    for factor, leaf in terms[1:]:
        found = found + factor * leaf
    return found


def next_exponents(value: Any, parts: Sequence[LaneSum]) -> tuple[int, ...]:
    """Return next round's grid from this round's aggregate (public): its largest mean value and headroom."""
    found, weight = [], max(sum(part.weight for part in parts), 1)
    for (_, leaf), spec in zip(tree.leaves(value), specs(parts[0].spec), strict=True):
        if spec.is_ring:
            found.append(spec.start)
            continue
        numbers = leaf.buffer if isinstance(leaf, tree.Flat) else leaf
        if isinstance(numbers, Total):
            largest = numbers.largest()
        elif isinstance(numbers, Tensor):
            largest = lanes.largest_of(numbers.reshape(1, -1))
        else:
            largest = abs(numbers)
        # division keeps the order, so the largest of the means is the mean of the largest
        exponent = lanes.exponent_of(largest / weight)
        headroom = HEADROOM_BITS if spec.num_lanes == 2 else HEADROOM_BITS_WIDE
        found.append(spec.start if exponent == lanes.NO_NEED else exponent + headroom)
    return tuple(found)
