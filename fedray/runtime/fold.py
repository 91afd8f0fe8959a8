"""The exact sum: any order, nesting or split of sites gives equal bits.

Every reduced float becomes whole multiples of a grid, held in float64. A leaf's values lie below 2^exponent;
lane 1 holds the multiples of 2^(exponent - 26), lane 2 those of 2^(exponent - 52), and so on. |whole number|
<= 2^26 and the weights add up to at most 2^26, so every partial sum stays below 2^53, where float64 addition
is exact. Two lanes hold a float32 value to 2^-52 of the range, three hold a float64. The exponent follows
the server's last aggregate and travels with the downlink; values out of range make the fold, not the
training, repeat on a coarser grid. A contribution of ONE site travels as its own row and weight, and the
parent lifts it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray import tree
from fedray.errors import FoldError, QuorumError
from fedray.rows import Column

LANE_BITS = 26
MAX_WEIGHT = 2**26  # 53 bits of float64 less the bits of a lane, less one
START_EXPONENT = 4  # the first round's range of a float32 leaf is below 16
START_EXPONENT_WIDE = 30  # and of what has three lanes (numbers, counts, float64): 2^30, in steps of 2^-48
HEADROOM_BITS = 6  # a site's value may exceed the mean's largest 64 times before the fold repeats
HEADROOM_BITS_WIDE = 20  # of what has three lanes
MAX_EXPONENT = 900  # beyond it a grid is no longer a normal float64


class LeafSpec:
    """What a summed leaf is: a `Flat` of a schema, a tensor of a shape and dtype, or a number."""

    __slots__ = ("dtype", "schema", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype | None, schema: tree.Schema | None) -> None:
        self.shape, self.dtype, self.schema = shape, dtype, schema

    @property
    def size(self) -> int:
        """Number of elements, padding included."""
        return self.schema.stride if self.schema else math.prod(self.shape)

    @property
    def num_lanes(self) -> int:
        """Lanes that hold the dtype: three for float64, numbers and integers, two for what is narrower."""
        return 2 if self.dtype in (torch.float32, torch.bfloat16, torch.float16) else 3

    @property
    def start(self) -> int:
        """The first round's exponent."""
        return START_EXPONENT if self.num_lanes == 2 else START_EXPONENT_WIDE

    @property
    def row_bytes(self) -> int:
        """Bytes of one site's own value."""
        return self.size * (self.dtype.itemsize if self.dtype is not None else 8)

    @property
    def sum_bytes(self) -> int:
        """Bytes of a partial sum."""
        return self.size * self.num_lanes * 8

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LeafSpec) and (self.shape, self.dtype, self.schema) == (
            other.shape,
            other.dtype,
            other.schema,
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class LaneSum:
    """One named sum: a row of one site (`weight` its own) or lanes over many. `spec` is the value's
    structure.
    """

    spec: Any
    exponents: tuple[int, ...]
    arrays: tuple[np.ndarray, ...]
    weight: int
    is_row: bool

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return sum(array.nbytes for array in self.arrays)


class ExactSum:
    """The result of a weighted sum, still in float64: `divide` rounds it once."""

    __slots__ = ("dtypes", "value")

    def __init__(self, value: Any, dtypes: Sequence[torch.dtype | None]) -> None:
        self.value, self.dtypes = value, tuple(dtypes)

    def divided_by(self, weight: float) -> Any:
        """Return sum / weight in the leaves' own dtypes. Raises QuorumError where the weights add up to
        zero.
        """
        if weight == 0:
            raise QuorumError(
                "the weights of the sites that delivered add up to 0: no site had a row to learn from"
            )
        leaves = [
            _cast(_over(leaf, weight), dtype)
            for (_, leaf), dtype in zip(tree.leaves(self.value), self.dtypes, strict=True)
        ]
        return tree.replace_leaves(self.value, leaves)


def _over(leaf: Any, weight: float) -> Any:
    return tree.Flat(leaf.buffer / weight, leaf.schema) if isinstance(leaf, tree.Flat) else leaf / weight


def _cast(leaf: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(leaf, tree.Flat):
        kept = dtype or torch.float64
        return tree.Flat(leaf.buffer.to(kept), replace(leaf.schema, dtype=kept))
    if isinstance(leaf, Tensor) and dtype is not None:
        if dtype.is_floating_point:
            return leaf.to(dtype)
        # a mean of whole numbers may be a fraction: it stays float64
        is_whole = bool((leaf == leaf.round()).all())
        return leaf.to(torch.int64 if dtype == torch.bool else dtype) if is_whole else leaf
    return leaf


def _matrix(leaf: Any, k: int) -> Tensor:
    """Return the leaf's rows as (k, elements)."""
    if isinstance(leaf, tree.Flat):
        return leaf.buffer
    if isinstance(leaf, Column):
        return leaf.numbers.view(k, 1)
    if isinstance(leaf, Tensor):
        return leaf.reshape(k, -1)
    return torch.full((k, 1), float(leaf), dtype=torch.float64)


def spec_of(value: Any) -> Any:
    """Return the structure of a stacked value with a `LeafSpec` at each leaf."""

    def one(leaf: Any) -> LeafSpec:
        if isinstance(leaf, tree.Flat):
            return LeafSpec((), leaf.schema.dtype, leaf.schema)
        return (
            LeafSpec(tuple(leaf.shape[1:]), leaf.dtype, None)
            if isinstance(leaf, Tensor)
            else LeafSpec((), None, None)
        )

    return tree.replace_leaves(value, [one(leaf) for _, leaf in tree.leaves(value)])


def specs(spec: Any) -> list[LeafSpec]:
    """Return the leaf specs of a structure in order."""
    return [leaf for _, leaf in tree.leaves(spec)]


def needed_exponent(numbers: Tensor) -> int:
    """Return the smallest exponent e with |x| < 2^e for all x; a large negative number where all are zero."""
    largest = float(numbers.abs().max()) if numbers.numel() else 0.0
    return math.frexp(largest)[1] if largest > 0 else -1000


@dataclass(frozen=True, slots=True)
class Operand:
    """Rows that enter a sum: kept until the round is over, so that a coarser grid needs no second
    training.
    """

    spec: Any
    matrices: tuple[Tensor, ...]
    weights: Tensor  # float64 whole numbers, zero for lost rows
    needs: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that keeping it takes."""
        return sum(matrix.numel() * matrix.element_size() for matrix in self.matrices)


def operand(value: Any, weights: Tensor) -> Operand:
    """Prepare a stacked value of k rows; rows of weight zero are blanked, so that they cannot count."""
    k = weights.shape[0]
    matrices = []
    for _, leaf in tree.leaves(value):
        matrix = _matrix(leaf, k)
        if bool((weights == 0).any()):
            matrix = torch.where((weights == 0).view(k, 1), torch.zeros((), dtype=matrix.dtype), matrix)
        matrices.append(matrix)
    return Operand(
        spec_of(value), tuple(matrices), weights, tuple(needed_exponent(matrix) for matrix in matrices)
    )


def fold_rows(matrix: Tensor, weights: Tensor, exponent: int, num_lanes: int) -> np.ndarray:
    """Return the lanes (num_lanes, elements) of sum_i weights[i] * matrix[i]."""
    if abs(exponent) > MAX_EXPONENT:
        raise FoldError(f"values of size 2^{exponent} cannot be summed exactly: scale the update down")
    rest = torch.ldexp(matrix.to(torch.float64), torch.tensor(LANE_BITS - exponent))
    lanes = torch.empty(num_lanes, matrix.shape[1], dtype=torch.float64)
    for lane in range(num_lanes):
        whole = rest.round()
        torch.mv(whole.t(), weights, out=lanes[lane])
        if lane + 1 < num_lanes:
            rest = (rest - whole).mul_(float(2**LANE_BITS))
    return lanes.numpy()


def fold(item: Operand, exponents: Sequence[int]) -> LaneSum:
    """Sum an operand's rows on the given grid; the caller has checked that the grid is wide enough."""
    arrays = tuple(
        fold_rows(matrix, item.weights, exponent, leaf.num_lanes)
        for matrix, exponent, leaf in zip(item.matrices, exponents, specs(item.spec), strict=True)
    )
    return LaneSum(item.spec, tuple(exponents), arrays, int(item.weights.sum()), is_row=False)


def single(item: Operand, index: int) -> LaneSum:
    """Return one site's own row and weight, as they travel from a hospital that is alone in its pack."""
    arrays = tuple(matrix[index].detach().cpu().numpy().copy() for matrix in item.matrices)
    return LaneSum(item.spec, (), arrays, int(item.weights[index]), is_row=True)


def lifted(part: LaneSum, exponents: Sequence[int]) -> LaneSum:
    """Return a part as lanes on the grid."""
    if not part.is_row:
        return part
    weight = torch.tensor([float(part.weight)], dtype=torch.float64)
    arrays = tuple(
        fold_rows(torch.from_numpy(np.array(array)).view(1, -1), weight, exponent, leaf.num_lanes)
        for array, exponent, leaf in zip(part.arrays, exponents, specs(part.spec), strict=True)
    )
    return LaneSum(part.spec, tuple(exponents), arrays, part.weight, is_row=False)


def merge(name: str, parts: Sequence[LaneSum], exponents: Sequence[int]) -> LaneSum:
    """Add partial sums; the order of `parts` does not matter. Raises FoldError where structures or grids
    differ.
    """
    first = parts[0]
    weight = sum(part.weight for part in parts)
    if weight > MAX_WEIGHT:
        raise FoldError(
            f"the weights of {name!r} add up to {weight}, more than {MAX_WEIGHT}: give "
            "mean(..., weight_cap=) so that they are rounded to 2^-14 of a public bound"
        )
    if len(parts) == 1:
        return first
    if any(specs(part.spec) != specs(first.spec) for part in parts):
        raise FoldError(f"sites sent {name!r} in different shapes: every site must return the same structure")
    lanes = [lifted(part, exponents) for part in parts]
    if any(lane.exponents != tuple(exponents) for lane in lanes):
        raise FoldError(f"partial sums of {name!r} lie on different grids")
    arrays = tuple(np.sum(columns, axis=0) for columns in zip(*(lane.arrays for lane in lanes), strict=True))
    return LaneSum(first.spec, tuple(exponents), arrays, weight, is_row=False)


def result(part: LaneSum, exponents: Sequence[int], is_exact: bool) -> Any:
    """Return the sum as a value: in float64 as an `ExactSum`, else rounded once to the leaves' dtypes."""
    part = lifted(part, exponents)
    leaves: list[Any] = []
    for array, exponent, leaf in zip(part.arrays, exponents, specs(part.spec), strict=True):
        total = np.zeros(leaf.size)
        for lane in range(leaf.num_lanes - 1, -1, -1):  # small lanes first: one rounding at the end
            total += np.ldexp(array[lane], exponent - LANE_BITS * (lane + 1))
        leaves.append(_as_value(torch.from_numpy(total), leaf))
    value = tree.replace_leaves(part.spec, leaves)
    dtypes = [leaf.dtype for leaf in specs(part.spec)]
    return (
        ExactSum(value, dtypes)
        if is_exact
        else tree.replace_leaves(
            value, [_cast(leaf, dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]
        )
    )


def _as_value(numbers: Tensor, leaf: LeafSpec) -> Any:
    if leaf.schema is not None:
        return tree.Flat(numbers.view(1, -1), replace(leaf.schema, dtype=torch.float64))
    return numbers.view(leaf.shape) if leaf.dtype is not None else float(numbers[0])


def next_exponents(value: Any, part: LaneSum) -> tuple[int, ...]:
    """Return next round's grid from this round's aggregate (public): its largest mean value and headroom."""
    found = []
    for (_, leaf), spec in zip(tree.leaves(value), specs(part.spec), strict=True):
        numbers = leaf.buffer if isinstance(leaf, tree.Flat) else leaf
        tensor = numbers if isinstance(numbers, Tensor) else torch.tensor(float(numbers), dtype=torch.float64)
        exponent = needed_exponent(tensor.double() / max(part.weight, 1))
        headroom = HEADROOM_BITS if spec.num_lanes == 2 else HEADROOM_BITS_WIDE
        found.append(spec.start if exponent == -1000 else exponent + headroom)
    return tuple(found)
