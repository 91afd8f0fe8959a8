"""The state of all sites of a pack for one slot: a table with one row for every site that was ever committed.

A site's row is made on its first commit; until then it has the value that all sites start with. Leaves are
stored as columns (sites, ...), so that a group is read and written by one operation for each leaf, however
many sites there are. Above a limit the columns lie in a sparse file without a name, which goes with the
process however that ends. Values that do not have the structure of the others are kept as they are.
"""

import mmap
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedray import rows as stacked
from fedray import tree
from fedray.errors import MemoryForecastError
from fedray.rows import Column, Ragged, Rows

LIMIT_BYTES = 2**30
FIRST_ROWS = 64
_CONSTANTS = (str, bytes, bool, type(None))  # what a structure may hold besides tensors and numbers
CHUNK = 1024  # sites read or written together where all of them are wanted


class _Uneven(Exception):
    """A value that has no columns; never leaves this file."""


class _Leaf:
    """Where a leaf lies among the columns, and how it is put together from them."""

    __slots__ = ("count", "kind", "schema", "start", "value")

    def __init__(self, kind: str, start: int, count: int, schema: Any = None, value: Any = None) -> None:
        self.kind, self.start, self.count, self.schema, self.value = kind, start, count, schema, value

    def join(self, columns: Sequence[Tensor]) -> Any:
        """Return the stacked leaf."""
        if self.kind == "same":
            return self.value
        if self.kind == "number":
            return Column(columns[self.start], bool(columns[self.start + 1].all()))
        return columns[self.start] if self.kind == "tensor" else tree.Flat(columns[self.start], self.schema)


class _Stored:
    """One column of the table: rows of one shape and dtype, in memory or in a file."""

    def __init__(self, like: Tensor) -> None:
        self.shape, self.dtype, self.device = tuple(like.shape[1:]), like.dtype, like.device
        self.row_bytes = like.element_size() * like[:1].numel()
        self.data = torch.empty((0, *self.shape), dtype=self.dtype, device=self.device)
        self.file: Any = None

    def resize(self, rows: int, directory: Path | None) -> None:
        """Make room for `rows`, of which the present ones stay; with a directory, in a file there."""
        before = self.data
        if directory is None or not self.row_bytes:
            self.data = torch.empty((rows, *self.shape), dtype=self.dtype, device=self.device)
            self.data[: len(before)].copy_(before)
            return
        is_first = self.file is None
        if is_first:
            self.file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed with the table)
        self.file.truncate(rows * self.row_bytes)
        # the same pages as before: growing a file copies nothing
        mapped = mmap.mmap(self.file.fileno(), rows * self.row_bytes)
        self.data = torch.frombuffer(mapped, dtype=self.dtype).view(rows, *self.shape)
        if is_first:
            self.data[: len(before)].copy_(before)

    def close(self) -> None:
        """Give memory and file back."""
        self.data = self.data[:0].clone()
        if self.file is not None:
            self.file.close()


class SiteTable:
    """Values of all sites for one slot. A context manager: leaving it gives memory and disk back."""

    def __init__(
        self, initial: Any = None, limit_bytes: int = LIMIT_BYTES, directory: str | Path | None = None
    ) -> None:
        """Start with `initial` for every site.

        Above `limit_bytes` the table lies in `directory` (the folder for temporary files where there is
        none), which should be on a disk: a folder in memory gains nothing.
        """
        self.initial, self.limit_bytes = initial, limit_bytes
        self.directory = Path(directory or tempfile.gettempdir())
        self._signature: Any = None
        self._like: Any = None  # the structure, with a _Leaf at each leaf
        self._stored: list[_Stored] = []
        self._slots: dict[str, int] = {}  # site -> row; row 0 is the initial value
        self._objects: dict[str, Any] = {}  # values that do not have the structure of the others
        self._capacity = 0
        self._has_initial = False
        self._is_on_disk = False
        self._begin(stacked.stack([initial]).value)

    def rows(self, sites: Sequence[str]) -> Any:
        """Return the stacked value of these sites, as `stacked.Rows` holds it; a copy, never a view.

        A `Flat` has a row for each site, a tensor a new first dimension, numbers are a `Column`. Where the
        sites' values differ in structure the leaf is a `Ragged`.
        """
        is_even = self._objects.keys().isdisjoint(sites) and (
            self._has_initial or all(site in self._slots for site in sites)
        )
        if self._signature is None or not is_even:
            return stacked.stack([self.row(site) for site in sites]).value
        return _join(self._like, self._columns(sites))

    def _columns(self, sites: Sequence[str]) -> list[Tensor]:
        index = torch.tensor([self._slots.get(site, 0) for site in sites], dtype=torch.int64)
        return [
            stored.data.index_select(0, index.to(stored.data.device)).to(stored.device)
            for stored in self._stored
        ]

    def row(self, site: str) -> Any:
        """Return the value of one site."""
        if site in self._objects:
            return tree.clone(self._objects[site])
        if site not in self._slots:
            return self.initial
        return stacked.row(Rows(self.rows([site])), 0)

    def store(self, sites: Sequence[str], value: Any, which_rows: Sequence[int] | None = None) -> None:
        """Keep the rows `which_rows` (all where none is named) of a stacked value for their sites.

        Row i belongs to `sites[i]`; a site is there once. What is kept shares no memory with `value`.
        """
        chosen = range(len(sites)) if which_rows is None else which_rows
        if not chosen:
            return
        columns = self._fit(value, len(sites))
        if columns is None:
            for row in chosen:
                self._store_alone(sites[row], stacked.row(Rows(value), row))
            return
        if len(chosen) < len(sites):
            picked = torch.tensor(list(chosen), dtype=torch.int64)
            columns = [column.index_select(0, picked.to(column.device)) for column in columns]
        self._write([sites[row] for row in chosen], columns)

    def load(self, items: Iterable[tuple[str, Any]]) -> None:
        """Keep one value for each site, as `items` gives them."""
        for site, value in items:
            self._store_alone(site, value)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield (site, value) of every site that was committed."""
        for sites in self._chunks():
            columns = self._columns(sites)
            for row, site in enumerate(sites):
                alone = _join(self._like, [column[row : row + 1] for column in columns])
                yield site, stacked.row(Rows(alone), 0)
        yield from self._objects.items()

    def stacked_items(self) -> Iterator[tuple[list[str], Any]]:
        """Yield (sites, stacked value) of those sites that are in the table, some at a time."""
        yield from ((sites, self.rows(sites)) for sites in self._chunks())

    def _chunks(self) -> Iterator[list[str]]:
        source = (site for site in self._slots if site not in self._objects)
        while sites := list(islice(source, CHUNK)):
            yield sites

    def __contains__(self, site: object) -> bool:
        return site in self._slots or site in self._objects

    def __len__(self) -> int:
        return len(self._slots) + sum(site not in self._slots for site in self._objects)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that were made, and of the values kept as they are."""
        return len(self._slots) * self._row_bytes + tree.nbytes(self._objects)

    @property
    def is_on_disk(self) -> bool:
        """Tell whether the rows lie in a file."""
        return self._is_on_disk

    def close(self) -> None:
        """Forget every site, and give memory and disk back."""
        for stored in self._stored:
            stored.close()
        self._signature, self._like, self._stored = None, None, []
        self._slots, self._objects, self._capacity = {}, {}, 0
        self._has_initial = self._is_on_disk = False

    def __enter__(self) -> "SiteTable":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _row_bytes(self) -> int:
        return sum(stored.row_bytes for stored in self._stored)

    def _begin(self, value: Any, k: int = 1) -> None:
        """Take the structure of a stacked value for all rows to come."""
        columns: list[Tensor] = []
        try:
            signature, like = _describe(value, k, columns)
        except _Uneven:
            return
        for old in self._stored:
            old.close()
        self._signature, self._like = signature, like
        self._stored, self._capacity, self._is_on_disk = [_Stored(column) for column in columns], 0, False
        starts: list[Tensor] = []
        try:
            self._has_initial = _describe(stacked.stack([self.initial]).value, 1, starts)[0] == signature
        except _Uneven:
            self._has_initial = False
        self._resize(1)
        if self._has_initial:
            self._copy([0], starts)

    def _fit(self, value: Any, k: int) -> list[Tensor] | None:
        """Return the columns of a stacked value, or None where its structure is not that of the others."""
        columns: list[Tensor] = []
        try:
            signature, _ = _describe(value, k, columns)
        except _Uneven:
            return None
        if signature != self._signature and not self._slots:
            self._begin(value, k)
        return columns if signature == self._signature else None

    def _store_alone(self, site: str, value: Any) -> None:
        columns = self._fit(stacked.stack([value]).value, 1)
        if columns is None:
            self._objects[site] = tree.clone(value)
        else:
            self._write([site], columns)

    def _write(self, sites: Sequence[str], columns: Sequence[Tensor]) -> None:
        rows = 1 + len(self._slots) + sum(site not in self._slots for site in sites)
        if rows > self._capacity:
            self._resize(max(FIRST_ROWS, 2 * self._capacity, rows))
        for site in sites:
            self._objects.pop(site, None)
            self._slots.setdefault(site, len(self._slots) + 1)
        self._copy([self._slots[site] for site in sites], columns)

    def _copy(self, slots: Sequence[int], columns: Sequence[Tensor]) -> None:
        index = torch.tensor(slots, dtype=torch.int64)
        for stored, column in zip(self._stored, columns, strict=True):
            at = stored.data.device
            stored.data.index_copy_(0, index.to(at), column.detach().to(at))

    def _resize(self, rows: int) -> None:
        wanted = rows * self._row_bytes
        is_on_disk = self._is_on_disk or wanted > self.limit_bytes
        if is_on_disk:
            # a mapped file that the disk cannot hold would end the process without a word
            free = shutil.disk_usage(self.directory).free
            more = wanted - self._capacity * self._row_bytes * self._is_on_disk
            if more > free:
                raise MemoryForecastError(
                    f"the state of {len(self._slots)} sites needs {more} bytes more in {self.directory} and "
                    f"{free} are free there: name a folder with more room, or use more machines"
                )
        for stored in self._stored:
            stored.resize(rows, self.directory if is_on_disk else None)
        self._capacity, self._is_on_disk = rows, is_on_disk


def _describe(value: Any, k: int, columns: list[Tensor]) -> tuple[Any, Any]:
    """Return what two stacked values must share to lie in one table, and the structure with a `_Leaf` at each
    leaf; append the leaves' columns, each with k rows. Raises _Uneven where a leaf has none.
    """
    start = len(columns)
    if isinstance(value, tree.Flat):
        columns.append(value.buffer)
        return ("flat", value.schema), _Leaf("flat", start, 1, schema=value.schema)
    if isinstance(value, Tensor):
        columns.append(value)
        return ("tensor", value.shape[1:], value.dtype), _Leaf("tensor", start, 1)
    if isinstance(value, Column) or (tree.is_number(value) and not isinstance(value, bool)):
        column = (
            value
            if isinstance(value, Column)
            else Column(torch.full((k,), float(value), dtype=torch.float64), isinstance(value, int))
        )
        columns.append(column.numbers)
        columns.append(torch.full((k,), column.is_whole, dtype=torch.bool))
        return ("number",), _Leaf("number", start, 2)
    if isinstance(value, Ragged):
        value = _common(value.items)
    if tree.is_leaf(value):
        if not isinstance(value, _CONSTANTS):
            raise _Uneven
        return ("same", type(value), value), _Leaf("same", start, 0, value=value)
    found = [(key, *_describe(child, k, columns)) for key, child in tree.children(value)]
    signature = (type(value), tuple((key, told) for key, told, _ in found))
    return signature, tree.rebuild(value, [like for _, _, like in found])


def _common(items: Sequence[Any]) -> Any:
    """Return the text or other constant that all items are. Raises _Uneven where they are anything else."""
    first = items[0]
    if isinstance(first, _CONSTANTS) and all(type(item) is type(first) and item == first for item in items):
        return first
    raise _Uneven


def _join(like: Any, columns: Sequence[Tensor]) -> Any:
    if isinstance(like, _Leaf):
        return like.join(columns)
    return tree.rebuild(like, [_join(child, columns) for _, child in tree.children(like)])
