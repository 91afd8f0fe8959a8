"""The exact sum: any order, nesting or split of sites gives equal bits.

Every reduced float becomes whole multiples of a grid, held in float64. A leaf's values lie below 2^exponent;
lane 1 holds the multiples of 2^(exponent - b), lane 2 those of 2^(exponent - 2b), and so on. |whole number|
<= 2^b, b is at most 26, and the weights add up to at most 2^26, so every partial sum stays below 2^53, where
float64 addition is exact. Two lanes of 23 bits hold a float32 to 2^-46 of the range, which is less than 1e-12
of the leaf's largest value; three of 26 bits hold a float64. The exponent follows the server's last aggregate
and travels with the downlink; values out of range make the fold, not the training, repeat on a coarser grid.
A contribution of ONE site travels as its own row and weight, and the parent lifts it. The passes over the
numbers are in `lanes.py`.

A plan with `fold="fast"` sums model-shaped leaves (a `Flat` of floats of at most 32 bits) in one float32
buffer instead: a quarter of the bytes, no equal bits. Numbers and tensors stay exact. With `fold="regional"`
a region sends its exact mean as a row: see `totals.rounded`.

A `Flat` of uint32 is a row of the ring of integers mod 2^32, as secure sums send it: it is added word by
word, wrapping, and needs no grid. That is exact in any order too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray import coded, tree
from fedray.errors import FoldError
from fedray.rows import Column, Ragged
from fedray.runtime import lanes

MAX_WEIGHT = 2**26  # 53 bits of float64 less the 26 bits of a lane, less one
START_EXPONENT = 4  # the first round's range of a float32 leaf is below 16
START_EXPONENT_WIDE = 30  # and of what has three lanes (numbers, counts, float64): 2^30, in steps of 2^-48
HEADROOM_BITS = 6  # a site's value may exceed the mean's largest 64 times before the fold repeats
HEADROOM_BITS_WIDE = 20  # of what has three lanes


class LeafSpec:
    """What a summed leaf is: a `Flat` of a schema, a tensor of a shape and dtype, or a number; and how it is
    summed.
    """

    __slots__ = ("dtype", "is_fast", "schema", "shape")

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype | None,
        schema: tree.Schema | None,
        is_fast: bool = False,
    ) -> None:
        self.shape, self.dtype, self.schema, self.is_fast = shape, dtype, schema, is_fast

    @property
    def is_ring(self) -> bool:
        """Tell whether sums wrap at 2^32."""
        return self.schema is not None and self.dtype == torch.uint32

    @property
    def size(self) -> int:
        """Number of elements, padding included."""
        return self.schema.stride if self.schema else math.prod(self.shape)

    @property
    def num_lanes(self) -> int:
        """Lanes that hold the dtype: three for float64, numbers and integers, two for what is narrower."""
        return 2 if self.dtype in lanes.NARROW else 3

    @property
    def start(self) -> int:
        """The first round's exponent."""
        if self.is_ring:
            return 0
        return START_EXPONENT if self.num_lanes == 2 else START_EXPONENT_WIDE

    @property
    def row_bytes(self) -> int:
        """Bytes of one site's own value."""
        return self.size * (_row_dtype(self.dtype).itemsize if self.dtype is not None else 8)

    @property
    def sum_bytes(self) -> int:
        """Bytes of a partial sum."""
        return self.size * (4 if self.is_fast or self.is_ring else self.num_lanes * 8)

    def zeros(self) -> Tensor:
        """Return an empty sum."""
        return self.buffer().zero_()

    def buffer(self) -> Tensor:
        """Return memory for a sum: (num_lanes, size) of float64, or (1, size) of float32 for a fast one, of
        uint32 in the ring.
        """
        if self.is_fast or self.is_ring:
            return torch.empty(1, self.size, dtype=torch.uint32 if self.is_ring else torch.float32)
        return torch.empty(self.num_lanes, self.size, dtype=torch.float64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LeafSpec) and (self.shape, self.dtype, self.schema, self.is_fast) == (
            other.shape,
            other.dtype,
            other.schema,
            other.is_fast,
        )

    __hash__ = None  # type: ignore[assignment]


def _row_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which one site's own row travels: numpy has no bfloat16."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


@dataclass(frozen=True, slots=True)
class LaneSum:
    """One named sum: a row of one site (`weight` its own) or lanes over many. `spec` is the value's
    structure; `codes` the schema of each leaf of a row that came coded.
    """

    spec: Any
    exponents: tuple[int, ...]
    arrays: tuple[np.ndarray, ...]
    weight: int
    is_row: bool
    codes: tuple[coded.Coded | None, ...] = ()

    def matrices(self) -> list[np.ndarray]:
        """Return the leaves of a row as matrices of one row, decoded."""
        if not self.codes:
            return [array.reshape(1, -1) for array in self.arrays]
        return [_read(array, code) for array, code in zip(self.arrays, self.codes, strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return sum(array.nbytes for array in self.arrays)


def _read(array: np.ndarray, code: coded.Coded | None) -> np.ndarray:
    if code is None:
        return array.reshape(1, -1)
    # a copy: torch takes no memory that it cannot write
    leaf = coded.decoded_leaf(tree.Flat(torch.from_numpy(array.reshape(1, -1).copy()), code))
    return _matrix(leaf, 1).numpy()


def _matrix(leaf: Any, k: int) -> Tensor:
    """Return the leaf's rows as (k, elements)."""
    if isinstance(leaf, tree.Flat):
        return leaf.buffer
    if isinstance(leaf, Column):
        return leaf.numbers.view(k, 1)
    if isinstance(leaf, Tensor):
        return leaf.reshape(k, -1)
    if isinstance(leaf, Ragged):
        raise FoldError(
            "sites sent values of different shapes to one sum: every site must return the same structure"
        )
    return torch.full((k, 1), float(leaf), dtype=torch.float64)


def spec_of(value: Any, kind: str = "exact") -> Any:
    """Return the structure of a stacked value with a `LeafSpec` at each leaf."""

    def one(leaf: Any) -> LeafSpec:
        if isinstance(leaf, tree.Flat):
            dtype = leaf.schema.dtype
            return LeafSpec((), dtype, leaf.schema, kind == "fast" and dtype in lanes.NARROW)
        return (
            LeafSpec(tuple(leaf.shape[1:]), leaf.dtype, None)
            if isinstance(leaf, Tensor)
            else LeafSpec((), None, None)
        )

    return tree.replace_leaves(value, [one(leaf) for _, leaf in tree.leaves(value)])


def specs(spec: Any) -> list[LeafSpec]:
    """Return the leaf specs of a structure in order."""
    if isinstance(spec, LeafSpec):
        return [spec]
    return [leaf for _, leaf in tree.leaves(spec)]


@dataclass(frozen=True, slots=True)
class Operand:
    """Rows that enter a sum, as they lie in the group's buffers: nothing is copied, lost rows weigh zero."""

    spec: Any
    matrices: tuple[Tensor, ...]
    weights: Tensor  # float64 whole numbers, zero for lost rows
    needs: tuple[int, ...]
    wire: tuple[Any, ...] = ()  # the leaves as a site alone sends them, where they are coded

    @property
    def nbytes(self) -> int:
        """Bytes that keeping it takes; a value that all rows share counts once."""
        return sum(
            matrix.numel() * matrix.element_size() // (len(matrix) if lanes.is_repeated(matrix) else 1)
            for matrix in self.matrices
        )


Known = Mapping[int, tuple[Any, Tensor]]  # id of a buffer -> (buffer, the largest |x| of each row)


def operand(
    value: Any, weights: Tensor, kind: str = "exact", known: Known | None = None, wire: Any = None
) -> Operand:
    """Prepare a stacked value of k rows; rows of weight zero do not count, whatever they hold.

    `wire` is the same value as it travels from a site that is alone in its pack, where that is coded.
    """
    matrices = tuple(_matrix(leaf, weights.shape[0]) for _, leaf in tree.leaves(value))
    spec = spec_of(value, kind)
    needs = tuple(
        lanes.NO_NEED
        if leaf.is_fast or leaf.is_ring
        else lanes.exponent_of(_largest(matrix, weights, known or {}))
        for matrix, leaf in zip(matrices, specs(spec), strict=True)
    )
    sent = tuple(leaf for _, leaf in tree.leaves(wire)) if wire is not None else ()
    return Operand(spec, matrices, weights, needs, sent)


def _largest(matrix: Tensor, weights: Tensor, known: Known) -> float:
    """Return the largest |x| of the rows that count, from what a check has found already where it has."""
    held = known.get(id(matrix))
    if held is None or held[0] is not matrix or held[1].shape != weights.shape:
        return lanes.largest_of(matrix, weights)
    return float(torch.where(weights > 0, held[1].to(weights), 0.0).max())


def empty(spec: Any) -> list[Tensor]:
    """Return the buffers of a sum to which nothing was added."""
    return [leaf.zeros() for leaf in specs(spec)]


def add(
    buffers: Sequence[Tensor], items: Sequence[Operand], exponents: Sequence[int], is_new: bool = False
) -> None:
    """Add operands of one structure to the buffers of a sum, in place, on a grid that is wide enough."""
    leaves = specs(items[0].spec)
    for index, (buffer, exponent, leaf) in enumerate(zip(buffers, exponents, leaves, strict=True)):
        rows = [(item.matrices[index], item.weights) for item in items]
        if leaf.is_ring:
            add_in_ring(buffer.zero_() if is_new else buffer, rows)
        elif leaf.is_fast:
            lanes.accumulate_fast(buffer[0].zero_() if is_new else buffer[0], rows)
        else:
            need = max(item.needs[index] for item in items)
            lanes.accumulate(buffer, rows, exponent, is_new, need)


def add_in_ring(buffer: Tensor, rows: Sequence[lanes.Rows]) -> None:
    """Add the rows that count to a buffer (1, size), modulo 2^32."""
    words = buffer.numpy()[0]
    for matrix, weights in rows:
        for row in torch.nonzero(weights).flatten().tolist():
            added = matrix[row]
            np.add(words, added.numpy() if isinstance(added, Tensor) else added, out=words)


def summed(items: Sequence[Operand], exponents: Sequence[int]) -> list[Tensor]:
    """Return the buffers of the sum of some operands; new memory is written once, not zeroed first."""
    buffers = [leaf.buffer() for leaf in specs(items[0].spec)]
    add(buffers, items, exponents, is_new=True)
    return buffers


def closed(spec: Any, exponents: Sequence[int], buffers: Sequence[Tensor], weight: int) -> LaneSum:
    """Return the buffers as a sum that can travel."""
    return LaneSum(spec, tuple(exponents), tuple(buffer.numpy() for buffer in buffers), weight, is_row=False)


def fold(item: Operand, exponents: Sequence[int]) -> LaneSum:
    """Sum an operand's rows on the given grid; the caller has checked that the grid is wide enough."""
    return closed(item.spec, exponents, summed([item], exponents), int(item.weights.sum()))


def single(item: Operand, index: int) -> LaneSum:
    """Return one site's own row and weight, as they travel from a hospital that is alone in its pack."""
    leaves: Sequence[Any] = item.wire or (None,) * len(item.matrices)
    codes = tuple(leaf.schema if coded.is_coded(leaf) else None for leaf in leaves)
    sent = [
        matrix if code is None else _matrix(leaf, len(matrix))
        for leaf, code, matrix in zip(leaves, codes, item.matrices, strict=True)
    ]
    rows = (matrix[index].detach().cpu() for matrix in sent)
    arrays = tuple(row.to(_row_dtype(row.dtype)).numpy().copy() for row in rows)
    weight = int(item.weights[index])
    return LaneSum(item.spec, (), arrays, weight, is_row=True, codes=codes if any(codes) else ())


def lanes_of(parts: Sequence[LaneSum], exponents: Sequence[int]) -> list[LaneSum]:
    """Return parts of one name as lanes on the grid: lanes as they are, the rows of lone sites as one sum."""
    summed, alone = [part for part in parts if not part.is_row], [part for part in parts if part.is_row]
    if alone:
        buffers = empty(alone[0].spec)
        _lift_into(buffers, alone, exponents)
        weight = sum(part.weight for part in alone)
        summed.append(closed(alone[0].spec, exponents, buffers, weight))
    return summed


def _lift_into(buffers: Sequence[Tensor], rows: Sequence[LaneSum], exponents: Sequence[int]) -> None:
    """Add the rows of sites that were alone, which lie in memory that cannot be written; no sum of theirs is
    fast.
    """
    weights = [torch.tensor([float(row.weight)], dtype=torch.float64) for row in rows]
    read = [row.matrices() for row in rows]
    leaf_specs = specs(rows[0].spec)
    for index, (buffer, exponent, leaf) in enumerate(zip(buffers, exponents, leaf_specs, strict=True)):
        lifted = list(zip([leaves[index] for leaves in read], weights, strict=True))
        if leaf.is_ring:
            add_in_ring(buffer, lifted)
        else:
            lanes.accumulate(buffer, lifted, exponent)


def check_weight(name: str, weight: int) -> None:
    """Raise FoldError where weights add up to more than float64 can sum exactly."""
    if weight > MAX_WEIGHT:
        raise FoldError(
            f"the weights of {name!r} add up to {weight}, more than {MAX_WEIGHT}: give "
            "mean(..., weight_cap=) so that they are rounded to 2^-14 of a public bound"
        )


def joined(name: str, parts: Sequence[LaneSum], exponents: Sequence[int]) -> tuple[LaneSum, ...]:
    """Return the parts of one name, which can be added in any order: see `added` and totals.py.

    Raises FoldError where structures or grids differ, or weights add up to too much.
    """
    check_weight(name, sum(part.weight for part in parts))
    if any(specs(part.spec) != specs(parts[0].spec) for part in parts[1:]):
        raise FoldError(f"sites sent {name!r} in different shapes: every site must return the same structure")
    if len(parts) > 1 and any(part.exponents != tuple(exponents) for part in parts if not part.is_row):
        raise FoldError(f"partial sums of {name!r} lie on different grids")
    return tuple(parts)


def added(parts: Sequence[LaneSum], exponents: Sequence[int]) -> LaneSum:
    """Add parts to one partial sum, in one new buffer whatever their number: no part is written to."""
    if len(parts) == 1:
        return parts[0]
    first, *others = lanes_of(parts, exponents)
    arrays = first.arrays
    for number, part in enumerate(others):
        into = arrays if number else [None] * len(arrays)
        arrays = tuple(
            np.add(a, b, out=out) for a, b, out in zip(arrays, part.arrays, into, strict=True)
        )
    return replace(first, arrays=arrays, weight=sum(part.weight for part in parts))
