"""Coded rows: fewer numbers, or bytes, that stand for the rows of another layout.

A coded leaf is a `Flat` whose schema knows what the row stands for (`origin`) and how it is read (`coder`),
so it is decoded wherever it arrives: by the parent of a site that is alone in its pack, and at the door of a
pack for what the server has sent. The bytes of its buffer are the bytes that travel. `Encode` and `Decode`
are the two functions that a pass maps; a sum of decoded rows is recognised by `Decode` (passes/lowering.py).

A coder is a frozen record with `encode(numbers, keys) -> rows`, `decode(rows, schema) -> numbers` (numbers
and rows are matrices with one row for each site, without padding), `title`, and `conflict`: why its rows
cannot be masked, empty where decoding is linear. The numbers of a row must not depend on who is in the
matrix.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray import rows, tree
from fedray.rng import Key
from fedray.rows import Group, Ragged, Rows, Same, Tagged


@dataclass(frozen=True, slots=True)
class Coded(tree.Schema):
    """Layout of a coded row. `is_bare` where the origin is a tensor that is no part of a `Flat`."""

    origin: tree.Schema
    is_bare: bool
    coder: Any


def layout(sizes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, origin: "Plain", coder: Any) -> Coded:
    """Return the schema of coded rows that hold leaves of these shapes one after the other, unpadded."""
    leaves, offset = [], 0
    for name, shape in sizes.items():
        leaves.append(tree.Leaf(name, shape, offset))
        offset += leaves[-1].size
    return Coded(tuple(leaves), dtype, offset, offset, offset, origin.schema, origin.is_bare, coder)


@dataclass(frozen=True, slots=True)
class Plain:
    """A stacked leaf as a matrix (k, elements) without padding, and the layout that it was taken from."""

    numbers: Tensor
    schema: tree.Schema
    is_bare: bool


def plain(leaf: Any) -> Plain:
    """Return a stacked `Flat` or tensor as a matrix."""
    if isinstance(leaf, tree.Flat):
        return Plain(dense(leaf.buffer, leaf.schema), leaf.schema, False)
    size = leaf[:1].numel()
    schema = tree.Schema((tree.Leaf("", tuple(leaf.shape[1:]), 0),), leaf.dtype, size, size, size)
    return Plain(leaf.reshape(leaf.shape[0], size), schema, True)


def dense(buffer: Tensor, schema: tree.Schema) -> Tensor:
    """Return the rows of a buffer without padding."""
    if schema.num_elements == schema.stride:
        return buffer
    return torch.cat([buffer[:, leaf.offset : leaf.offset + leaf.size] for leaf in schema.leaves], 1)


def spread(numbers: Tensor, schema: tree.Schema) -> Tensor:
    """Return the rows of a matrix with the padding of a schema, which is zero."""
    if schema.num_elements == schema.stride:
        return numbers
    buffer = numbers.new_zeros(numbers.shape[0], schema.stride)
    parts = numbers.split([leaf.size for leaf in schema.leaves], 1)
    for leaf, part in zip(schema.leaves, parts, strict=True):
        buffer[:, leaf.offset : leaf.offset + leaf.size] = part
    return buffer


def restored(numbers: Tensor, schema: Coded) -> Any:
    """Return the stacked leaf that a matrix without padding stands for."""
    if schema.is_bare:
        return numbers.view(numbers.shape[0], *schema.origin.leaves[0].shape)
    return tree.Flat(spread(numbers, schema.origin), schema.origin)


def is_coded(leaf: Any) -> bool:
    """Tell whether a leaf is coded."""
    return isinstance(leaf, tree.Flat) and isinstance(leaf.schema, Coded)


def decoded_leaf(leaf: Any) -> Any:
    """Return a stacked leaf decoded; one that is not coded as it is."""
    if not is_coded(leaf):
        return leaf
    return restored(leaf.schema.coder.decode(leaf.buffer, leaf.schema), leaf.schema)


def arrived(value: Any) -> Any:
    """Return a value of one row as its receiver reads it: what came coded is decoded."""
    found = tree.leaves(value)
    if not any(is_coded(leaf) for _, leaf in found):
        return value
    leaves = [rows.row(Rows(decoded_leaf(leaf)), 0) if is_coded(leaf) else leaf for _, leaf in found]
    return tree.replace_leaves(value, leaves)


def is_float(leaf: Any) -> bool:
    """Tell whether a stacked leaf holds tensors of floats: only they are coded."""
    if isinstance(leaf, Ragged):
        raise TypeError("sites sent values of different shapes: a sum needs the same structure of each")
    return isinstance(leaf, tree.Flat) or (isinstance(leaf, Tensor) and leaf.is_floating_point())


def on_leaves(fn: Callable[[Any, int], Any], value: Any) -> Any:
    """Apply `fn(leaf, number of the leaf)` to the leaves of floats of a stacked value."""
    found = [leaf for _, leaf in tree.leaves(value)]
    new = [fn(leaf, number) if is_float(leaf) else leaf for number, leaf in enumerate(found)]
    return tree.replace_leaves(value, new)


def alone(twin: Callable[..., Any], *args: Any) -> Any:
    """Call a twin for one site with plain arguments: the plain form of a function that is written as rows.

    What all sites share is given as `Same`. The server calls it too: on one thread, so that bits do not
    depend on how many it has.
    """
    tagged = [_tagged(arg) for arg in args]
    with rows.one_thread():
        return rows.row(Rows(twin(Group(["alone"]), *tagged)), 0)


def _tagged(arg: Any) -> Tagged:
    if isinstance(arg, Same):
        return arg
    if isinstance(arg, Key):
        return Rows(Ragged([arg]))
    return rows.stack([arg])


def keys_of(tagged: Tagged | None, number: int) -> Sequence[Key]:
    """Return each row's key for a leaf; the first leaf takes the key as it is, others a stream beside it."""
    items = tagged.value.items if tagged is not None and isinstance(tagged.value, Ragged) else ()
    return [key.child(f"{key.label}.{number}") for key in items] if number else list(items)


@dataclass(frozen=True)
class Encode:
    """Code every tensor of a value; numbers and whole numbers go as they are."""

    coder: Any

    def __call__(self, x: Any, key: Key | None = None) -> Any:
        """Code the value of one site, or of the server."""
        return alone(self.rows, x) if key is None else alone(self.rows, x, key)

    def rows(self, group: Group, x: Tagged, key: Tagged | None = None) -> Any:
        """Code the values of a group."""

        def one(leaf: Any, number: int) -> tree.Flat:
            origin = plain(leaf)
            numbers = origin.numbers.detach()
            if not all(group.is_alive):  # a lost row may hold anything
                alive = torch.tensor(group.is_alive, device=numbers.device).unsqueeze(1)
                numbers = torch.where(alive, numbers, 0.0)
            coded = self.coder.encode(numbers, keys_of(key, number))
            schema = layout({"bytes": (coded.shape[1],)}, coded.dtype, origin, self.coder)
            return tree.Flat(coded, schema)

        return on_leaves(one, rows.expand(x, group.k))


@dataclass(frozen=True)
class Decode:
    """Return what coded values stand for."""

    coder: Any  # for who reads the graph; a value brings its own

    def __call__(self, coded: Any) -> Any:
        """Decode the value of one site."""
        return alone(self.rows, coded)

    def rows(self, group: Group, coded: Tagged) -> Any:
        """Decode the values of a group."""
        return on_leaves(lambda leaf, _: decoded_leaf(leaf), rows.expand(coded, group.k))
