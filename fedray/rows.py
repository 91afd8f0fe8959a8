"""Values inside a pack, and twins: one value for all sites of a group (`Same`), or one row per site (`Rows`).

The tag is explicit, never told from shapes. Under `Rows` a `Flat` has k rows, a tensor gains a first
dimension of k, a number becomes a `Column` of float64, and what cannot be stacked (a site's data, ragged
tensors) is a `Ragged`. A plain leaf inside `Rows` is the same for every row.

A function that is mapped over sites may have a twin `rows(group, *args, **kwargs)`: arguments arrive tagged,
the result is a structure of k rows. Where a twin exists it is always used, for one site too; row i must have
the same bits in every group (`fedray.testing.check_rows`). `rows_of` ties a twin to a function.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedray import tree

Twin = TypeVar("Twin", bound=Callable[..., Any])


@dataclass(slots=True)  # not frozen, which makes one in half the time: there is one for every node and group
class Same:
    """One value for every site of the group."""

    value: Any


@dataclass(slots=True)
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
    """One object per row that is not stacked. The sequence is kept as it is: nobody writes to it."""

    __slots__ = ("items",)

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items


class Group:
    """Sites that are interpreted together. A lost site is masked out, its row never moves.

    Where a plan goes by regions, all are of one `region`.
    `cache` outlives the group and the round: a twin keeps its work buffers there, under keys of its own.
    """

    __slots__ = ("_everyone", "cache", "ids", "is_alive", "largest", "region", "values")

    def __init__(self, ids: Sequence[str], cache: dict[Any, Any] | None = None, region: str = "") -> None:
        self.ids, self.region = tuple(ids), region
        self.is_alive = [True] * len(self.ids)
        self._everyone = range(len(self.ids))
        self.values: dict[int, Tagged] = {}
        self.largest: dict[
            int, tuple[Any, Tensor]
        ] = {}  # id of a buffer -> (buffer, largest |x| of each row)
        self.cache: dict[Any, Any] = {} if cache is None else cache

    @property
    def k(self) -> int:
        """Number of rows, lost ones included."""
        return len(self.ids)

    @property
    def alive(self) -> Sequence[int]:
        """Rows that are still in the round."""
        if all(self.is_alive):
            return self._everyone
        return [index for index, is_alive in enumerate(self.is_alive) if is_alive]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, as row invariance needs, and restore what was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def column(numbers: Iterable[float]) -> Column:
    """Return plain numbers, one per row, as a column."""
    given = list(numbers)
    is_whole = all(isinstance(number, int) and not isinstance(number, bool) for number in given)
    return Column(torch.tensor(given, dtype=torch.float64), is_whole)


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


def only(value: Any, index: int) -> Any:
    """Return a stacked value that holds one row alone, in the form that it has among others."""
    if isinstance(value, tree.Flat):
        return value.row(index)
    if isinstance(value, Tensor):
        return value[index : index + 1]
    if isinstance(value, Column):
        return Column(value.numbers[index : index + 1], value.is_whole)
    if isinstance(value, Ragged):
        return Ragged(value.items[index : index + 1])
    if tree.is_leaf(value):
        return value
    return tree.rebuild(value, [only(child, index) for _, child in tree.children(value)])


def stack(values: Sequence[Any]) -> Rows:
    """Stack one value per row; structures that differ between rows are kept as they are."""
    return Rows(_stack(list(values)))


def _stack(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, tree.Flat) and all(
        isinstance(v, tree.Flat) and v.schema == first.schema for v in values
    ):
        buffers = [value.buffer for value in values]
        return tree.Flat(buffers[0] if len(buffers) == 1 else torch.cat(buffers), first.schema)
    if isinstance(first, Tensor) and all(
        isinstance(v, Tensor) and v.shape == first.shape and v.dtype == first.dtype for v in values
    ):
        return torch.stack([value.detach() for value in values])
    if all(tree.is_number(value) for value in values):
        return column(value if isinstance(value, (int, float)) else float(value) for value in values)
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


def beside(numbers: Tensor, wide: Tensor) -> Tensor:
    """Return one number per row, shaped and typed so that it meets the rows of `wide`."""
    return numbers.to(wide).view(-1, *(1,) * (wide.dim() - 1))


def rows_of(fn: Callable[..., Any]) -> Callable[[Twin], Twin]:
    """Make the decorated function the twin of `fn`: `@rows_of(clip)` above `def clip_rows(group, x): ...`."""

    def attach(twin: Twin) -> Twin:
        fn.rows = twin  # type: ignore[attr-defined]
        return twin

    return attach
