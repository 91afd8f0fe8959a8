"""Values inside a pack: one for all sites of a group (`Same`), or one row per site (`Rows`).

The tag is explicit, never told from shapes. Under `Rows` a `Flat` has k rows, a tensor gains a first
dimension of k, a number becomes a `Column` of float64, and what cannot be stacked (a site's data, ragged
tensors) is a `Ragged`. A plain leaf inside `Rows` is the same for every row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray import tree
from fedray.core.value import Record


@dataclass(frozen=True, slots=True)
class Same:
    """One value for every site of the group."""

    value: Any


@dataclass(frozen=True, slots=True)
class Rows:
    """A stacked value: row i belongs to the group's i-th site."""

    value: Any


Tagged = Same | Rows


class Column:
    """One number per row, float64; whole numbers stay whole when they are read back."""

    __slots__ = ("is_whole", "numbers")
    is_numeric = True

    def __init__(self, numbers: Tensor, is_whole: bool) -> None:
        self.numbers, self.is_whole = numbers, is_whole

    def row(self, index: int) -> float | int:
        """Return the number of one row."""
        number = float(self.numbers[index])
        return int(number) if self.is_whole else number


class Ragged:
    """One object per row that is not stacked."""

    __slots__ = ("items",)

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = list(items)


class Group:
    """Up to `group_size` sites that are interpreted together. A lost site is masked out, its row never
    moves.
    """

    __slots__ = ("cache", "ids", "is_alive", "values")

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = tuple(ids)
        self.is_alive = [True] * len(self.ids)
        self.values: dict[int, Tagged] = {}
        self.cache: dict[Any, Any] = {}

    @property
    def k(self) -> int:
        """Number of rows, lost ones included."""
        return len(self.ids)

    @property
    def alive(self) -> list[int]:
        """Rows that are still in the round."""
        return [index for index, is_alive in enumerate(self.is_alive) if is_alive]


def row(tagged: Tagged, index: int) -> Any:
    """Return what one site sees: views, never copies."""
    if isinstance(tagged, Same):
        return tagged.value
    return _row(tagged.value, index)


def _row(value: Any, index: int) -> Any:
    if isinstance(value, tree.Flat):
        return value.row(index)
    if isinstance(value, Tensor):
        return value[index]
    if isinstance(value, Column):
        return value.row(index)
    if isinstance(value, Ragged):
        return value.items[index]
    if tree.is_leaf(value):
        return value
    return tree.rebuild(value, [_row(child, index) for _, child in tree.children(value)])


def stack(values: Sequence[Any]) -> Rows:
    """Stack one value per row; structures that differ between rows are kept as they are."""
    return Rows(_stack(list(values)))


def _stack(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, tree.Flat) and all(
        isinstance(v, tree.Flat) and v.schema == first.schema for v in values
    ):
        return tree.Flat(torch.cat([value.buffer for value in values]), first.schema)
    if isinstance(first, Tensor) and all(
        isinstance(v, Tensor) and v.shape == first.shape and v.dtype == first.dtype for v in values
    ):
        return torch.stack([value.detach() for value in values])
    if all(tree.is_number(value) for value in values):
        is_whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
        return Column(torch.tensor([float(value) for value in values], dtype=torch.float64), is_whole)
    if (
        not tree.is_leaf(first)
        and not hasattr(first, "splits")
        and all(type(v) is type(first) for v in values)
    ):
        keys = [key for key, _ in tree.children(first)]
        parts = [dict(tree.children(value)) for value in values]
        if all(list(part) == keys for part in parts):
            return tree.rebuild(first, [_stack([part[key] for part in parts]) for key in keys])
    return Ragged(values)


def expand(tagged: Tagged, k: int) -> Any:
    """Return the stacked value with k rows, a `Same` repeated as views."""
    return tagged.value if isinstance(tagged, Rows) else _expand(tagged.value, k)


def _expand(value: Any, k: int) -> Any:
    if isinstance(value, tree.Flat):
        return tree.Flat(value.buffer.expand(k, -1), value.schema)
    if isinstance(value, Tensor):
        return value.unsqueeze(0).expand(k, *value.shape)
    if tree.is_number(value):
        return Column(torch.full((k,), float(value), dtype=torch.float64), isinstance(value, int))
    if tree.is_leaf(value):
        return value
    return tree.rebuild(value, [_expand(child, k) for _, child in tree.children(value)])


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
                leaf.numbers.to(wide.dtype).view(shape) if isinstance(leaf, Column) else leaf
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


def finite_rows(tagged: Tagged, k: int) -> list[bool]:
    """Tell for each row whether all its numbers are finite."""
    flags = torch.ones(k, dtype=torch.bool)
    for _, leaf in tree.leaves(tagged.value):
        numbers = (
            leaf.buffer if isinstance(leaf, tree.Flat) else leaf.numbers if isinstance(leaf, Column) else leaf
        )
        if isinstance(leaf, Ragged):
            flags &= torch.tensor([all(finite_rows(Same(item), 1)) for item in leaf.items])
        elif isinstance(numbers, Tensor) and numbers.is_floating_point():
            good = torch.isfinite(numbers)
            if isinstance(tagged, Rows):
                flags &= good.reshape(k, -1).all(dim=1)
            else:
                flags &= good.all()
        elif tree.is_number(numbers):
            flags &= bool(torch.isfinite(torch.tensor(float(numbers))))
    return [bool(flag) for flag in flags]
