"""Frozen leaves and followed values: what of a model need not travel again.

A leaf behind a layout's `moving` elements never changes. Its part of an update is zero, so it is cut off
where the update is checked at the site and put back as zeros at the server (`with_frozen`): `compile` sets
the two around every reduction named "delta". Downwards it goes to a host once: see
runtime/kept.py, which also sends a `Followed` value as the change of the one before.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from fedray import coded, tree
from fedray.tree import Flat

UPDATE = "delta"  # the name of what local training has changed


@dataclass(frozen=True, slots=True)
class Cut(tree.Schema):
    """Layout of an update without its frozen leaves; `origin` is the one with them."""

    origin: tree.Schema


def frozen_leaves(schema: tree.Schema) -> list[tree.Leaf]:
    """Return the leaves that never change."""
    return [leaf for leaf in schema.leaves if leaf.offset >= schema.moving]


def _cut(leaf: Any) -> Any:
    if not _has_frozen(leaf):
        return leaf
    origin, end = leaf.schema, leaf.schema.moving
    stride = -(-end // tree.STRIDE_ELEMENTS) * tree.STRIDE_ELEMENTS
    leaves = tuple(found for found in origin.leaves if found.offset < end)
    schema = Cut(leaves, origin.dtype, stride, origin.trainable, end, origin)
    return Flat(torch.nn.functional.pad(leaf.buffer[:, :end], (0, stride - end)), schema)


def _has_frozen(leaf: Any) -> bool:
    """Tell whether a leaf has a part that moves and one that does not."""
    if not isinstance(leaf, Flat) or not leaf.schema.moving or isinstance(leaf.schema, coded.Coded):
        return False
    return bool(leaf.schema.leaves) and leaf.schema.leaves[-1].offset >= leaf.schema.moving


def _whole(leaf: Any) -> Any:
    if not isinstance(leaf, Flat) or not isinstance(leaf.schema, Cut):
        return leaf
    origin, end = leaf.schema.origin, leaf.schema.moving
    buffer = torch.nn.functional.pad(leaf.buffer[:, :end], (0, origin.stride - end))
    return Flat(buffer, replace(origin, dtype=buffer.dtype))


def _on_leaves(fn: Any, value: Any) -> Any:
    old = [leaf for _, leaf in tree.leaves(value)]
    new = [fn(leaf) for leaf in old]
    is_same = all(a is b for a, b in zip(old, new, strict=True))
    return value if is_same else tree.replace_leaves(value, new)


def without_frozen(update: Any) -> Any:
    """Return an update, of one site or of rows, without its frozen leaves."""
    return _on_leaves(_cut, update)


def strayed(update: Any, k: int) -> list[bool]:
    """Tell of each of k rows whether a frozen leaf has moved in it."""
    found = torch.zeros(k, dtype=torch.bool)
    for _, leaf in tree.leaves(update):
        if _has_frozen(leaf):
            found |= leaf.buffer[:, leaf.schema.moving :].any(1).cpu()
    return found.tolist()


def with_frozen(update: Any) -> Any:
    """Return an update with zeros for the frozen leaves that were cut off."""
    return _on_leaves(_whole, update)


class Followed:
    """A broadcast value that its receivers follow: a coded change of `before`, which they have, to `whole`.

    Who does not have `before` gets `whole`. Without `change` everybody does.
    """

    __slots__ = ("before", "change", "whole")

    def __init__(self, change: Any, before: Any, whole: Any) -> None:
        self.change, self.before, self.whole = change, before, whole


def moved(before: Any, change: Any) -> Any:
    """Return a value after a coded change: the same bits at the server and wherever it is followed."""
    return tree.add(before, with_frozen(coded.arrived(change)))
