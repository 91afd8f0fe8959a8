"""Shards: a federation of very many sites in a few memory-mapped files.

    shards.json       {format, name, version, features, outcome, num_classes, regions, num_sites, num_rows,
                       columns: {name: {dtype, shape}}}; written last, so a folder without it is not complete
    names.npy         site ids as UTF-8 bytes, sorted
    ranges.npy        int64 (sites, 6): first row, training, validation, test and all rows, region (-1: none)
    column_<name>.npy one array of all rows of all sites

A site is a range of rows, in it training rows lie first, then validation and test rows, then rows of no
split. So a site and each of its splits are slices of one mapping per process: opening a site copies nothing
and takes no file descriptor. `write_shards` (`shard_writer.py`) streams sites into a folder, `read_shards`
gives the `Dataset`; what that pickles is the folder's name and, where sites were chosen, their numbers.
"""

import functools
import json
from abc import abstractmethod
import mmap
import platform
import sys
from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray.data.site import SPLITS, Dataset, Open, SiteData
from fedray.errors import DataError

FORMAT = 1
INDEX, NAMES, RANGES = "shards.json", "names.npy", "ranges.npy"
FIRST, TOTAL, REGION = 0, 4, 5  # columns of ranges.npy; 1 to 3 count the rows of the splits
# Python names the flag from 3.13 on; without it Linux refuses to map a file larger than the memory
_IS_KNOWN = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if _IS_KNOWN else 0)


class ShardSite(SiteData):
    """A site, or one split of it, as slices of the mapped columns. Pickled it is a reference to its rows."""

    __slots__ = ("_index", "_parts", "_start", "_table")

    def __init__(self, table: "_Table", start: int, parts: tuple[int, int, int, int]) -> None:
        # not SiteData.__init__: columns of one table have equal lengths, and no row number is made
        self._table, self._start, self._parts = table, start, parts
        end = start + parts[3]
        self.columns = {name: column[start:end] for name, column in table.columns.items()}
        self._views: dict[str, SiteData] = {}
        self._index: dict[str, Tensor] = {}

    @property
    def splits(self) -> dict[str, Tensor]:  # type: ignore[override]
        """Row numbers of the splits, made when they are asked for."""
        if not self._index:
            ends = np.cumsum((0, *self._parts[:3])).tolist()
            self._index = {
                split: torch.arange(ends[i], ends[i + 1]) for i, split in enumerate(SPLITS)
            }
        return self._index

    def view(self, split: str) -> SiteData:
        """Return the rows of one split without a copy; the view's own rows are all training rows."""
        if split not in self._views:
            place = SPLITS.index(split)
            rows = self._parts[place]
            start = self._start + sum(self._parts[:place])
            self._views[split] = ShardSite(self._table, start, (rows, 0, 0, rows))
        return self._views[split]

    def __reduce__(self) -> tuple[Any, ...]:
        # a slice of a mapped tensor would take the whole column with it
        return _reopen, (self._table.folder, self._table.version, self._start, self._parts)


class _Table:
    """The files of a folder, mapped into this process."""

    def __init__(self, folder: str) -> None:
        self.folder, path = folder, Path(folder)
        self.index = _read_index(path)
        self.version: str = self.index["version"]
        count, rows = self.index["num_sites"], self.index["num_rows"]
        self.names = _map(path / NAMES, (count,), None)
        self.ranges = _map(path / RANGES, (count, 6), "int64")
        self.columns = {
            name: torch.from_numpy(_map(path / file_of(name), (rows, *told["shape"]), told["dtype"]))
            for name, told in self.index["columns"].items()
        }
        starts, lengths = self.ranges[:, FIRST], self.ranges[:, TOTAL]
        is_whole = bool((self.ranges[:, : TOTAL + 1] >= 0).all()) and int(lengths.sum()) == rows
        if not is_whole or bool((starts + lengths > rows).any()):
            raise _broken(path / RANGES, f"its ranges do not cover the {rows} rows of the columns")

    def find(self, site: Any) -> int:
        """Return the number of a site, or -1."""
        if not isinstance(site, str):
            return -1
        wanted = np.bytes_(site.encode())
        place = int(np.searchsorted(self.names, wanted))
        return place if place < len(self.names) and self.names[place] == wanted else -1

    def site(self, number: int) -> ShardSite:
        """Return a site by its number."""
        start, train, valid, test, total, _ = self.ranges[number].tolist()
        return ShardSite(self, start, (train, valid, test, total))


@functools.lru_cache(maxsize=8)
def _table(folder: str, version: str) -> _Table:
    """Map a folder once per process. `version` is part of the key: a folder may be written anew."""
    found = _Table(folder)
    if version and found.version != version:
        raise DataError(f"{folder} holds version {found.version} and this data set was read as {version}. "
                        "Fix: read it again with read_shards()")
    return found


def _reopen(folder: str, version: str, start: int, parts: tuple[int, int, int, int]) -> ShardSite:
    return ShardSite(_table(folder, version), start, parts)


@dataclass(frozen=True, slots=True)
class OpenShard:
    """Open one site of a folder of shards, in whatever process it is called."""

    folder: str
    version: str
    number: int
    is_mapped = True  # opened again it is the same rows: nothing is gained by keeping it

    def __call__(self) -> ShardSite:
        """Return the site: slices, no copy."""
        return _table(self.folder, self.version).site(self.number)


class _Values(ValuesView[Any]):
    def __iter__(self) -> Iterator[Any]:
        return map(self._mapping.value, self._mapping.numbers())


class _Items(ItemsView[str, Any]):
    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return zip(self._mapping, self._mapping.values(), strict=True)


@dataclass(frozen=True, eq=False)
class _Sites(Mapping[str, Any]):
    """Sites of a folder, all or those numbered in `chosen`; what it pickles does not grow with their data."""

    folder: str
    version: str
    chosen: np.ndarray | None = None

    @property
    def table(self) -> _Table:
        """The folder's files in this process."""
        return _table(self.folder, self.version)

    @functools.cached_property
    def _sorted(self) -> np.ndarray:
        return np.sort(self.chosen)

    def _number(self, site: Any) -> int:
        number = self.table.find(site)
        if number >= 0 and self.chosen is not None:
            place = int(np.searchsorted(self._sorted, number))
            return number if place < len(self._sorted) and int(self._sorted[place]) == number else -1
        return number

    def __getitem__(self, site: str) -> Any:
        number = self._number(site)
        if number < 0:
            raise KeyError(site)
        return self.value(number)

    def __contains__(self, site: object) -> bool:
        return self._number(site) >= 0

    def __iter__(self) -> Iterator[str]:
        names = self.table.names if self.chosen is None else self.table.names[self.chosen]
        return (name.decode() for name in names.tolist())

    def __len__(self) -> int:
        return len(self.table.names if self.chosen is None else self.chosen)

    def values(self) -> ValuesView[Any]:
        """Return what the mapping tells of each site, without a look-up by name."""
        return _Values(self)

    def items(self) -> ItemsView[str, Any]:
        """Return the pairs, without a look-up by name."""
        return _Items(self)

    def numbers(self) -> Iterable[int]:
        """Return the numbers of the sites, in order."""
        return range(len(self)) if self.chosen is None else self.chosen.tolist()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "version": self.version, "chosen": self.chosen}

    @abstractmethod
    def value(self, number: int) -> Any:
        """Return what the mapping tells of a site."""

    def column(self, place: int) -> np.ndarray:
        """Return one column of the ranges, in the order of the sites."""
        ranges = self.table.ranges[:, place]
        return np.array(ranges if self.chosen is None else ranges[self.chosen])

    def subset(self, sites: Iterable[str]) -> Any:
        """Return the mapping of these sites alone, in the order given."""
        numbers = [self._number(site) for site in sites]
        if -1 in numbers:
            raise KeyError("a site that is not among the shards was selected")
        return replace(self, chosen=np.array(numbers, dtype=np.int64))


class ShardSites(_Sites):
    """Openers of the sites, made on demand."""

    def value(self, number: int) -> Open:
        """Return the opener of a site."""
        return OpenShard(self.folder, self.version, number)

    def train_rows(self) -> dict[str, int]:
        """Return the training rows of each site, without opening one."""
        return dict(zip(self, self.column(FIRST + 1).tolist(), strict=True))


class ShardSizes(_Sites):
    """Rows of each site, read from the ranges."""

    def value(self, number: int) -> int:
        """Return the rows of a site, all splits together."""
        return int(self.table.ranges[number, TOTAL])


class ShardRegions(_Sites):
    """The declared region of each site."""

    def value(self, number: int) -> str:
        """Return the region of a site."""
        return str(self.table.index["regions"][int(self.table.ranges[number, REGION])])


@dataclass(frozen=True)
class ShardDataset(Dataset):
    """A `Dataset` whose sites, sizes and regions stay in the files."""

    def select(self, sites: Iterable[str]) -> "ShardDataset":
        """Return the data set of these sites alone, in the order given."""
        assert isinstance(self.sites, ShardSites)
        chosen = self.sites.subset(sites)
        told = (chosen.folder, chosen.version, chosen.chosen)
        regions = ShardRegions(*told) if self.regions else {}
        return replace(self, sites=chosen, sizes=ShardSizes(*told), regions=regions)


def read_shards(folder: str | Path) -> ShardDataset:
    """Map a folder of shards and return its data set; no row is read.

    Where sites are opened on other machines the folder must lie there too, under the same name.
    Raises DataError where the folder is not complete or a file does not fit the index.
    """
    path = str(Path(folder).absolute())
    index = _read_index(Path(path))
    version = index["version"]
    _table(path, version)
    return ShardDataset(
        sites=ShardSites(path, version),
        name=index["name"],
        features=tuple(index["features"]),
        outcome=index["outcome"],
        num_classes=index["num_classes"],
        sizes=ShardSizes(path, version),
        regions=ShardRegions(path, version) if index["regions"] else {},
        version=version,
    )


def file_of(column: str) -> str:
    """Return the name of a column's file."""
    return f"column_{column}.npy"


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((path / INDEX).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds no complete shards ({type(error).__name__} at {INDEX}). Fix: write it "
                        "with write_shards(); on a cluster the folder must lie on every machine") from error
    if index.get("format") != FORMAT:
        raise DataError(f"{path / INDEX} has format {index.get('format')}, this fedray reads {FORMAT}. "
                        "Fix: write the shards anew")
    return index


def _broken(file: Path, why: str) -> DataError:
    return DataError(f"{file} does not fit {INDEX}: {why}. Fix: copy or write the whole folder again")


def _map(file: Path, shape: tuple[int, ...], dtype: str | None) -> np.ndarray:
    """Map an array copy-on-write: a write to it never reaches the file, and torch has nothing to warn of."""
    try:
        with file.open("rb") as opened:
            np.lib.format.read_magic(opened)
            found, is_fortran, kind = np.lib.format.read_array_header_1_0(opened)
            offset, size = opened.tell(), file.stat().st_size
            if found != shape or is_fortran or (dtype is not None and kind != np.dtype(dtype)):
                raise _broken(file, f"it is {found} of {kind}, expected {shape} of {dtype or 'names'}")
            expected = offset + kind.itemsize * int(np.prod(shape))
            if size != expected:
                raise _broken(file, f"it has {size} bytes, expected {expected}")
            flags, access = mmap.MAP_PRIVATE | NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            mapped = mmap.mmap(opened.fileno(), size, flags=flags, prot=access)
    except (OSError, ValueError) as error:
        raise _broken(file, f"{type(error).__name__}") from error
    return np.ndarray(shape, kind, buffer=mapped, offset=offset)
