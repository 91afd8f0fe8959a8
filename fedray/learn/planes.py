"""The parameters of a group while they are trained: each matrix in a plane of its own, all vectors in one.

A batched product writes in place only into a contiguous (sites, out, in) tensor, so a matrix gets a plane
(sites, elements); what is left (biases, width-one layers, scales) shares one. An operation over all
parameters is then one call a plane. A plane's rows are multiples of 32 elements, so that rows begin on
64-byte lines and vector loops have no tail: the padding is zero and stays zero.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray.tree import Leaf, Schema

LINE = 32
PAIR = 2  # rows of a matrix of one row, the second zero: a product then has no dimension of one


@dataclass(frozen=True, slots=True)
class Matrices:
    """The leaves that get a plane of their own.

    Of these `pairs` (of one row) get a second row of zeros, and `flipped` lie transposed, (inputs, outputs):
    x W' is then a product of two plain matrices, which takes two thirds of the time.
    """

    names: tuple[str, ...]
    pairs: tuple[str, ...] = ()
    flipped: tuple[str, ...] = ()


class Space:
    """Work buffers that are used again: the same name gives the same memory, with what is left in it."""

    def __init__(self) -> None:
        self._held: dict[Any, Tensor] = {}

    def take(self, name: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a tensor of this shape; it is new, and larger, only where none large enough is held."""
        wanted = 1
        for side in shape:
            wanted *= side
        key = (name, dtype, device)
        held = self._held.get(key)
        if held is None or held.numel() < wanted:
            held = self._held[key] = torch.empty(wanted, dtype=dtype, device=device)
        return held[:wanted].view(*shape)


def _leaf_of(buffer: Tensor, leaf: Leaf) -> Tensor:
    """Return a leaf of the rows of a flat buffer, (rows, *shape)."""
    return buffer[:, leaf.offset : leaf.offset + leaf.size].unflatten(1, leaf.shape or (1,))


class Leaves:
    """A flat buffer read and written leaf by leaf where it lies: no copy, for models that are large."""

    def __init__(self, buffer: Tensor, schema: Schema) -> None:
        self.buffer, self.leaves = buffer, {leaf.name: leaf for leaf in schema.leaves}

    def view(self, name: str, active: int) -> Tensor:
        """Return a leaf of the first `active` rows, (active, *shape)."""
        return _leaf_of(self.buffer[:active], self.leaves[name])

    def stored(self, name: str, active: int) -> Tensor:
        """Return a matrix as it lies; one site alone needs no second row to be invariant."""
        return self.view(name, active)

    def is_flipped(self, name: str) -> bool:
        """Tell whether a matrix lies transposed: none does here."""
        return False


def blank(rows: int, schema: Schema, device: torch.device) -> Tensor:
    """Return a new flat buffer whose padding is zero and whose leaves are still to be written."""
    buffer = torch.empty(rows, schema.stride, dtype=schema.dtype, device=device)
    ends = [0, *(leaf.offset + leaf.size for leaf in schema.leaves)]
    for end, begin in zip(ends, [*(leaf.offset for leaf in schema.leaves), schema.stride], strict=True):
        buffer[:, end:begin] = 0
    return buffer


class Planes:
    """Rows of a flat value, leaf by leaf."""

    def __init__(self, schema: Schema, matrices: Matrices, rows: int, device: torch.device) -> None:
        self.schema, self.matrices, self.rows = schema, matrices, rows
        self.places: dict[str, tuple[int, int, Leaf]] = {}
        widths: list[int] = []
        shared = 0
        for leaf in schema.leaves:
            if leaf.name in matrices.names:
                self.places[leaf.name] = (len(widths), 0, leaf)
                size = leaf.size * (PAIR if leaf.name in matrices.pairs else 1)
                widths.append(-(-size // LINE) * LINE)
        vectors = len(widths)
        for leaf in schema.leaves:
            if leaf.name not in matrices.names:
                self.places[leaf.name] = (vectors, shared, leaf)
                shared += -(-leaf.size // LINE) * LINE
        if shared:
            widths.append(shared)
        self.tensors = [torch.zeros(rows, width, dtype=schema.dtype, device=device) for width in widths]
        self._padding = list(self._gaps())

    def _gaps(self) -> Iterator[Tensor]:
        """Yield what lies between leaves and behind them, the second rows of pairs among it."""
        for number, plane in enumerate(self.tensors):
            here = [(offset, leaf.size) for place, offset, leaf in self.places.values() if place == number]
            held = sorted(here)
            ends = [0, *(offset + size for offset, size in held)]
            for end, begin in zip(ends, [*(offset for offset, _ in held), plane.shape[1]], strict=True):
                if begin > end:
                    yield plane[:, end:begin]

    def clear_padding(self) -> None:
        """Make the padding zero again: what is not finite stays so whatever it is multiplied by."""
        for gap in self._padding:
            gap.zero_()

    def zero(self) -> "Planes":
        """Fill with zeros."""
        for plane in self.tensors:
            plane.zero_()
        return self

    def load(self, buffer: Tensor, order: Tensor | None = None, by: float | Tensor = 1.0) -> "Planes":
        """Copy from a flat buffer of one row or of k, times a number or one of each row; row p comes from
        `order[p]`.
        """
        if order is not None and buffer.shape[0] > 1:
            buffer = buffer[order]
        for _, _, leaf in self.places.values():
            target = self.view(leaf.name, self.rows)
            found = _leaf_of(buffer, leaf)
            if isinstance(by, Tensor):
                torch.mul(found, by.view(-1, *(1,) * (found.dim() - 1)), out=target)
            elif by != 1:
                torch.mul(found, by, out=target)
            else:
                target.copy_(found)
        return self

    def view(self, name: str, active: int) -> Tensor:
        """Return a leaf of the first `active` rows, (active, *shape)."""
        number, offset, leaf = self.places[name]
        plane = self.tensors[number][:active, offset : offset + leaf.size]
        if name in self.matrices.flipped:
            return plane.unflatten(1, leaf.shape[::-1]).transpose(1, 2)
        return plane.unflatten(1, leaf.shape or (1,))

    def stored(self, name: str, active: int) -> Tensor:
        """Return a matrix as it lies: with its second row, or transposed."""
        if name in self.matrices.pairs:
            plane = self.tensors[self.places[name][0]][:active]
            return plane.view(len(plane), PAIR, -1)
        found = self.view(name, active)
        return found.transpose(1, 2) if name in self.matrices.flipped else found

    def is_flipped(self, name: str) -> bool:
        """Tell whether a matrix lies transposed."""
        return name in self.matrices.flipped

    def active(self, rows: int) -> list[Tensor]:
        """Return every plane's first rows."""
        return [plane[:rows] for plane in self.tensors]

    def copy_row(self, row: int, out: Tensor) -> None:
        """Copy one row into a flat buffer of one row."""
        for _, _, leaf in self.places.values():
            _leaf_of(out, leaf).copy_(self.view(leaf.name, row + 1)[row:])

    def factors(self, by_leaf: dict[str, float]) -> list[Tensor]:
        """Return for every plane a row of numbers, one per leaf; zero in the padding."""
        found = [torch.zeros_like(plane[0]) for plane in self.tensors]
        for name, (number, offset, leaf) in self.places.items():
            found[number][offset : offset + leaf.size] = by_leaf[name]
        return found

    def difference(self, origin: Tensor, order: Tensor | None) -> Tensor:
        """Return rows - origin as a flat buffer in the given order; `origin` has one row or k."""
        result = blank(self.rows, self.schema, origin.device)
        back = None if order is None else order.argsort()
        for _, _, leaf in self.places.values():
            rows = self.view(leaf.name, self.rows)
            torch.sub(
                rows if back is None else rows[back], _leaf_of(origin, leaf), out=_leaf_of(result, leaf)
            )
        return result
