"""The parameters of a group while they are trained: each matrix in a plane of its own, all vectors in one.

A batched product writes in place only into a contiguous (sites, out, in) tensor, so a matrix gets a plane
(sites, elements); what is left (biases, width-one layers, scales) shares one. An operation over all
parameters is then one call a plane. A plane's rows are multiples of 32 elements, so that rows begin on
64-byte lines and vector loops have no tail: the padding is zero and stays zero.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedray.tree import Leaf, Schema

LINE = 32


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


class Leaves:
    """A flat buffer read and written leaf by leaf where it lies: no copy, for models that are large."""

    def __init__(self, buffer: Tensor, schema: Schema) -> None:
        self.buffer, self.leaves = buffer, {leaf.name: leaf for leaf in schema.leaves}

    def view(self, name: str, active: int) -> Tensor:
        """Return a leaf of the first `active` rows, (active, *shape)."""
        leaf = self.leaves[name]
        return self.buffer[:active, leaf.offset : leaf.offset + leaf.size].unflatten(1, leaf.shape or (1,))


def blank(rows: int, schema: Schema, device: torch.device) -> Tensor:
    """Return a new flat buffer whose padding is zero and whose leaves are still to be written."""
    buffer = torch.empty(rows, schema.stride, dtype=schema.dtype, device=device)
    ends = [0, *(leaf.offset + leaf.size for leaf in schema.leaves)]
    for end, begin in zip(ends, [*(leaf.offset for leaf in schema.leaves), schema.stride], strict=True):
        buffer[:, end:begin] = 0
    return buffer


class Planes:
    """Rows of a flat value, leaf by leaf. `matrices` names the leaves that get a plane of their own."""

    def __init__(self, schema: Schema, matrices: Sequence[str], rows: int, device: torch.device) -> None:
        self.schema, self.rows = schema, rows
        self.places: dict[str, tuple[int, int, Leaf]] = {}
        widths: list[int] = []
        shared = 0
        for leaf in schema.leaves:
            if leaf.name in matrices:
                self.places[leaf.name] = (len(widths), 0, leaf)
                widths.append(-(-leaf.size // LINE) * LINE)
        vectors = len(widths)
        for leaf in schema.leaves:
            if leaf.name not in matrices:
                self.places[leaf.name] = (vectors, shared, leaf)
                shared += -(-leaf.size // LINE) * LINE
        if shared:
            widths.append(shared)
        self.tensors = [torch.zeros(rows, width, dtype=schema.dtype, device=device) for width in widths]

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
        for number, offset, leaf in self.places.values():
            target = self.tensors[number][:, offset : offset + leaf.size]
            found = buffer[:, leaf.offset : leaf.offset + leaf.size]
            if isinstance(by, Tensor) or by != 1:
                torch.mul(found, by, out=target)
            else:
                target.copy_(found)
        return self

    def view(self, name: str, active: int) -> Tensor:
        """Return a leaf of the first `active` rows, (active, *shape)."""
        number, offset, leaf = self.places[name]
        return self.tensors[number][:active, offset : offset + leaf.size].unflatten(1, leaf.shape or (1,))

    def active(self, rows: int) -> list[Tensor]:
        """Return every plane's first rows."""
        return [plane[:rows] for plane in self.tensors]

    def copy_row(self, row: int, out: Tensor) -> None:
        """Copy one row into a flat buffer of one row."""
        for number, offset, leaf in self.places.values():
            found = self.tensors[number][row, offset : offset + leaf.size]
            out[0, leaf.offset : leaf.offset + leaf.size] = found

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
        for number, offset, leaf in self.places.values():
            here, there = slice(offset, offset + leaf.size), slice(leaf.offset, leaf.offset + leaf.size)
            rows = self.tensors[number][:, here]
            torch.sub(rows if back is None else rows[back], origin[:, there], out=result[:, there])
        return result
