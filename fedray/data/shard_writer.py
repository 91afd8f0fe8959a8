"""Write shards: see `shard_files.py` for what they are and how they are read."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from fedray.data.shard_files import FORMAT, INDEX, NAMES, RANGES, file_of
from fedray.data.site import SPLITS, Dataset, Open, SiteData
from fedray.errors import DataError

DTYPES = ("float32", "float64", "int64", "int32", "int16", "uint8", "bool")


def write_shards(
    folder: str | Path,
    sites: Mapping[str, Open] | Iterable[tuple[str, SiteData]],
    *,
    name: str = "shards",
    features: Sequence[str] = (),
    outcome: str = "binary",
    num_classes: int = 2,
    regions: Mapping[str, str] | None = None,
) -> Path:
    """Write sites into `folder` one after the other, in the memory of one site and 60 bytes for each name.

    `sites` is a data set, or pairs of a name and its `SiteData`; of a data set its name, features, outcome
    and regions are kept. Rows are put into the order of the splits. Without `features` the columns of `x` are
    called x0, x1, ...
    Raises DataError on sites with different columns, a row in two splits, a name twice, or shards already
    there.
    """
    if isinstance(sites, Dataset):
        name, features, outcome, num_classes = sites.name, sites.features, sites.outcome, sites.num_classes
        regions = sites.regions if regions is None else regions
    path = Path(folder)
    if (path / INDEX).exists():
        raise DataError(f"{path} already holds shards. Fix: remove them, or give another folder")
    path.mkdir(parents=True, exist_ok=True)
    pairs = ((site, opener()) for site, opener in sites.items()) if isinstance(sites, Mapping) else sites
    with ExitStack() as stack:
        writer = _Writer(path, stack, regions or {})
        for site, data in pairs:
            writer.add(site, data)
        told = writer.finish()
    shape = told["columns"].get("x", {"shape": ()})["shape"]
    if not features and len(shape) == 1:
        features = [f"x{i}" for i in range(shape[0])]
    index = {"format": FORMAT, "name": name, "features": list(features), "outcome": outcome,
             "num_classes": num_classes, **told}
    (path / INDEX).write_text(json.dumps(index, indent=1))
    return path


class _Writer:
    """Columns grow row by row; names and ranges are kept and written at the end, sorted by name."""

    def __init__(self, path: Path, stack: ExitStack, regions: Mapping[str, str]) -> None:
        self.path, self.stack, self.regions = path, stack, regions
        self.codes = {region: code for code, region in enumerate(sorted(set(regions.values())))}
        self.files: dict[str, BinaryIO] = {}
        self.told: dict[str, dict[str, Any]] = {}
        self.names: list[bytes] = []
        self.ranges: list[tuple[int, ...]] = []
        self.rows = 0
        self.digest = hashlib.sha256()

    def add(self, site: str, data: SiteData) -> None:
        """Append one site."""
        if not self.files:
            self._begin(data)
        told = {name: _told(column) for name, column in data.columns.items()}
        if told != self.told:
            raise DataError(f"site {site!r} has columns {told}, the sites before have {self.told}. "
                            "Fix: give every site the same columns")
        parts = [data.splits[split] for split in SPLITS]
        order = torch.cat(parts)
        is_split = torch.zeros(data.num_rows, dtype=torch.bool)
        is_split[order] = True
        if int(is_split.sum()) != len(order):
            raise DataError(f"site {site!r} has a row in two splits. Fix: give each row to one split at most")
        order = torch.cat([order, torch.nonzero(~is_split).flatten()])
        for name, file in self.files.items():
            # numpy: torch would wake a second thread for each site
            block = data.columns[name].numpy()[order.numpy()]
            file.write(block.data)
            self.digest.update(block.data)
        self.names.append(site.encode())
        region = self.codes[self.regions[site]] if site in self.regions else -1
        self.ranges.append((self.rows, *map(len, parts), data.num_rows, region))
        self.rows += data.num_rows

    def _begin(self, data: SiteData) -> None:
        for name, column in data.columns.items():
            self.told[name] = _told(column)
            if self.told[name]["dtype"] not in DTYPES or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise DataError(f"column {name!r} of {self.told[name]['dtype']} cannot be a shard. Fix: use "
                                f"letters, digits and _ in its name, and one of {', '.join(DTYPES)}")
            self.files[name] = self.stack.enter_context((self.path / file_of(name)).open("wb"))
            _write_header(self.files[name], self.told[name], 0)

    def finish(self) -> dict[str, Any]:
        """Write what is known at the end, and return it for the index."""
        order = sorted(range(len(self.names)), key=self.names.__getitem__)
        names = np.array([self.names[i] for i in order], dtype=np.bytes_)
        if not len(names) or (names[1:] == names[:-1]).any() or any(b"\0" in name for name in self.names):
            raise DataError("shards need at least one site and each name once. Fix: rename the sites")
        ranges = np.array(self.ranges, dtype=np.int64)[order]
        for name, file in self.files.items():
            end = file.tell()
            file.seek(0)
            _write_header(file, self.told[name], self.rows)
            file.seek(end)
        np.save(self.path / NAMES, names)
        np.save(self.path / RANGES, ranges)
        for part in (names, ranges):
            self.digest.update(part.tobytes())
        return {"num_sites": len(names), "num_rows": self.rows, "columns": self.told,
                "regions": list(self.codes), "version": self.digest.hexdigest()[:16]}


def _told(column: Tensor) -> dict[str, Any]:
    return {"dtype": str(column.dtype).removeprefix("torch."), "shape": list(column.shape[1:])}


def _write_header(file: BinaryIO, told: Mapping[str, Any], rows: int) -> None:
    """Write the header of a column; numpy leaves room in it for the first dimension to grow."""
    dtype = np.dtype(told["dtype"])
    shape = (rows, *told["shape"])
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})


def made_up_sites(
    num_sites: int, rows: int = 50, features: int = 64, valid: int = 0, test: int = 0, seed: int = 0
) -> Iterator[tuple[str, SiteData]]:
    """Yield sites for benchmarks, drawn 1,000 at a time: normal inputs, a logistic outcome.

    Of the `rows` of a site the last `test` are test rows, and `valid` before them validation rows.
    """
    generator = np.random.default_rng(seed)
    weights = (generator.standard_normal(features) / np.sqrt(features)).astype(np.float32)
    train = rows - valid - test
    ends = {"train": (0, train), "valid": (train, train + valid), "test": (train + valid, rows)}
    for first in range(0, num_sites, 1000):
        count = min(1000, num_sites - first)
        x = generator.standard_normal((count, rows, features), dtype=np.float32)
        chance = 1 / (1 + np.exp(-2 * (x @ weights)))
        y = (generator.random((count, rows)) < chance).astype(np.float32)
        for i in range(count):
            splits = {split: torch.arange(*between) for split, between in ends.items()}
            columns = {"x": torch.from_numpy(x[i]), "y": torch.from_numpy(y[i])}
            yield f"s{first + i:07d}", SiteData(columns, splits)
