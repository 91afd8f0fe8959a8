"""What the interpreter does with values of a group: arithmetic once per group, records, fields, finiteness.

The values themselves (`Same`, `Rows`, `Column`, `Ragged`, `Group`) are in `fedray.rows`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedray import tree
from fedray.core.value import Record
from fedray.rows import Column, Group, Ragged, Rows, Same, Tagged, expand, stack

LARGE_ROW = 2**16  # numbers


def _first_dimension(value: Any) -> Any:
    """Give the tensors of a `Same` a first dimension of one, so that they meet stacked tensors row by row."""
    if isinstance(value, Tensor):
        return value.unsqueeze(0)
    if tree.is_leaf(value):
        return value
    return tree.rebuild(value, [_first_dimension(child) for _, child in tree.children(value)])


def leafwise(fn: Callable[..., Any], operands: Sequence[Tagged]) -> Tagged:
    """Apply arithmetic once per group. `+ - * /` give each row the bits that it has alone."""
    if all(isinstance(operand, Same) for operand in operands):
        return Same(tree.map(fn, *(operand.value for operand in operands)))

    def on_leaves(*leaves: Any) -> Any:
        if not any(isinstance(leaf, Column) for leaf in leaves):
            return fn(*leaves)
        wide = next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)
        if wide is None:
            is_whole = all(
                leaf.is_whole if isinstance(leaf, Column) else isinstance(leaf, int) for leaf in leaves
            )
            result = fn(*(leaf.numbers if isinstance(leaf, Column) else leaf for leaf in leaves))
            return Column(result, is_whole and bool((result == result.round()).all()))
        shape = (-1,) + (1,) * (wide.dim() - 1)
        return fn(
            *(
                leaf.numbers.to(wide).view(shape) if isinstance(leaf, Column) else leaf
                for leaf in leaves
            )
        )

    return Rows(
        tree.map(
            on_leaves,
            *(
                operand.value if isinstance(operand, Rows) else _first_dimension(operand.value)
                for operand in operands
            ),
        )
    )


def record(template: Record, parts: Sequence[Tagged], k: int) -> Tagged:
    """Put values into a structure."""
    if all(isinstance(part, Same) for part in parts):
        return Same(template(*(part.value for part in parts)))
    return Rows(template(*(expand(part, k) for part in parts)))


def read(tagged: Tagged, key: Any, is_attribute: bool) -> Tagged:
    """Read a field or an entry, for all rows at once."""
    value = tagged.value
    if isinstance(tagged, Same):
        return Same(getattr(value, key) if is_attribute else value[key])
    if isinstance(value, Ragged):
        return stack([getattr(item, key) if is_attribute else item[key] for item in value.items])
    if isinstance(value, tree.Flat):
        return Rows(value.stacked(key))
    if isinstance(value, Tensor):
        return Rows(getattr(value, key) if is_attribute else value[:, key])
    return Rows(getattr(value, key) if is_attribute else value[key])


def filler(value: Any) -> Any:
    """Return what stands in a lost row: zeros shaped as the value of another row."""
    return tree.map(lambda leaf: torch.zeros_like(leaf) if isinstance(leaf, Tensor) else 0, value)


def largest(numbers: Tensor, k: int, group: Group | None = None) -> Tensor:
    """Return the largest |x| of each of k rows, NaN or infinity where a row has one: one pass, no copy.

    With a group it is computed once, however many nodes ask.
    """
    if group is not None and id(numbers) in group.largest and group.largest[id(numbers)][0] is numbers:
        return group.largest[id(numbers)][1]
    flat = numbers.detach().reshape(k, -1)
    if not flat.shape[1]:
        found = flat.new_zeros(k)
    elif flat.shape[1] == 1:
        found = flat.abs().view(k)
    elif k == 1:
        least, most = torch.aminmax(flat)
        found = torch.maximum(most, -least).view(1)
    else:  # two passes of amax and amin take a twentieth of one of a norm or of aminmax by rows
        found = torch.maximum(flat.amax(1), -flat.amin(1))
    if group is not None:
        group.largest[id(numbers)] = (numbers, found)
    return found


def has_rows(value: Any, k: int) -> bool:
    """Tell whether every leaf of a stacked value has k rows."""
    if isinstance(value, Tensor):
        return value.dim() > 0 and value.shape[0] == k
    if isinstance(value, (tree.Flat, Column)):
        return len(value.buffer if isinstance(value, tree.Flat) else value.numbers) == k
    if isinstance(value, Ragged):
        return len(value.items) == k
    children = value.values() if type(value) is dict else [child for _, child in _children(value)]
    return bool(children) and all(has_rows(child, k) for child in children)


def _children(value: Any) -> list[tuple[Any, Any]]:
    return [] if tree.is_leaf(value) else tree.children(value)


def check_count(found: Tagged, group: Group, what: str) -> None:
    """Raise ValueError where a twin's result does not have a row for every site of the group."""
    for path, leaf in tree.leaves(found.value):
        if isinstance(leaf, Ragged):
            count = len(leaf.items)
        elif isinstance(leaf, (tree.Flat, Column, Tensor)):
            numbers: Any = getattr(leaf, "buffer", getattr(leaf, "numbers", leaf))
            count = len(numbers) if numbers.dim() else -1
        else:
            count = -1
        if count != group.k:
            told = "one number" if count < 0 else f"{count} rows"
            place = path or "its result"
            raise ValueError(f"{what} returned {told} at {place} for {group.k} sites: give each a row")


def finite_rows(tagged: Tagged, group: Group, is_largest_needed: bool = True) -> list[bool]:
    """Tell for each row whether all its numbers are finite.

    The group keeps the largest of each row where a sum will need it; else large rows are read faster.
    """
    flags = torch.ones(group.k, dtype=torch.bool)
    for _, leaf in tree.leaves(tagged.value):
        numbers = (
            leaf.buffer if isinstance(leaf, tree.Flat) else leaf.numbers if isinstance(leaf, Column) else leaf
        )
        if isinstance(leaf, Ragged):
            flags &= torch.tensor([all(finite_rows(Same(item), _ONE)) for item in leaf.items])
        elif isinstance(numbers, Tensor) and numbers.is_floating_point():
            rows = group.k if isinstance(tagged, Rows) else 1
            if not is_largest_needed and _is_surely_finite(numbers, rows):
                continue
            flags &= torch.isfinite(largest(numbers, rows, group if isinstance(tagged, Rows) else None)).cpu()
        elif tree.is_number(numbers):
            flags &= math.isfinite(numbers)
    return flags.tolist()


def _is_surely_finite(numbers: Tensor, k: int) -> bool:
    """Tell whether the squares of large rows add up to a finite number: half the cost of the largest."""
    flat = numbers.detach().reshape(k, -1)
    if flat.shape[1] < LARGE_ROW or not flat.is_contiguous() or flat.is_cuda:
        return False
    return all(math.isfinite(float(torch.dot(row, row))) for row in flat)


_ONE = Group([""])
