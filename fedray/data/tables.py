"""Any table as a data set: CSV or Parquet files, pandas frames, torch data sets, one site each.

Start reading at `csv`. Files are read and checked against a contract where the site lives, columns are found
by name, and each site's split into train, valid and test depends on (seed, site) alone.
"""

import logging
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedray.data.contract import Column, Contract, near
from fedray.data.findings import read_columns, refuse
from fedray.data.folder import Recipe, check_unique, hash_file, site_data
from fedray.data.site import SPLITS, Dataset, SiteData
from fedray.data.split import check_fractions, split_rows
from fedray.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
ENDINGS = (".csv", ".csv.gz", ".tsv", ".parquet")
_GUESS_ROWS = 1000  # enough to tell numbers from texts
_SPLIT = "split_rows"  # the column that holds a drawn split, beside the contract's


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Shares and seed of the random splits. A group column of the contract keeps its rows together."""

    valid_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_fractions(self.valid_fraction, self.test_fraction)


def csv(path: str | Path, contract: str | Path | Contract | None = None, *, target: str | None = None,
        site_column: str | None = None, valid_fraction: float = 0.1, test_fraction: float = 0.2,
        split_seed: int = 0, features: Sequence[str] | None = None) -> Dataset:
    """Return the sites of a folder (one CSV or Parquet file a site, or files with a site column) or of one
    file.

    With a site column (`site_column`, or the contract's column of role `site`) rows of all files are told
    apart by it; else each file is a site named after it. `contract` is a Contract or the path of its YAML
    file; without one, `target` names the outcome, a 0/1 column, and every other column of numbers in the
    first file is an input. A contract's split column, where it has one, replaces the random split. Files are
    looked at when a site is opened; here only their headers, and the site column, are read. Raises:
    DataError.
    """
    files = files_of(Path(path))
    if contract is None:
        agreed = _guess_contract(Path(path).stem, read_table(files[0], rows=_GUESS_ROWS), target, site_column)
    else:
        agreed = contract if isinstance(contract, Contract) else Contract.load(contract)
    by = site_column or agreed.role("site")
    sites = _sites_by_column(files, by) if by else _sites_by_file(files)
    split = Split(valid_fraction=valid_fraction, test_fraction=test_fraction, seed=split_seed)
    recipe = recipe_of(agreed, features, split_seed)
    told = agreed.digest + repr((split, recipe.features)) + "".join(hash_file(file) for file in files)
    openers = {site: OpenTable(site, tuple(map(str, places)), by, recipe, split)
               for site, (places, _) in sites.items()}
    return _dataset(agreed.name, recipe, openers, {site: rows for site, (_, rows) in sites.items()}, told)


def from_frames(frames: Mapping[str, "pd.DataFrame"], target: str | None = None, *,
                contract: Contract | None = None, name: str = "frames", valid_fraction: float = 0.1,
                test_fraction: float = 0.2, split_seed: int = 0,
                features: Sequence[str] | None = None) -> Dataset:
    """Return a data set of pandas frames, one a site, in memory; for simulation, since the rows travel with
    it.

    With `target` alone, the inputs are the columns of numbers of the first frame, matched by name in the
    others, and the outcome is 0/1. Raises: DataError.
    """
    check_unique(list(frames), name)
    agreed = contract or _guess_contract(name, next(iter(frames.values())), target, None)
    split = Split(valid_fraction=valid_fraction, test_fraction=test_fraction, seed=split_seed)
    recipe = recipe_of(agreed, features, split_seed)
    told = agreed.digest + repr((split, recipe.features)) + "".join(
        f"{site}:{_hash_frame(frame)}" for site, frame in frames.items())
    return _dataset(name, recipe, {str(site): OpenFrame(str(site), frame, recipe, split)
                                   for site, frame in frames.items()},
                    {str(site): len(frame) for site, frame in frames.items()}, told)


def from_datasets(datasets: Mapping[str, Any], *, outcome: str = "classes", num_classes: int = 2,
                  name: str = "datasets", valid_fraction: float = 0.1, test_fraction: float = 0.2,
                  split_seed: int = 0) -> Dataset:
    """Return a data set of torch data sets, one a site, whose items are pairs (input, label).

    A value may also be a function without arguments that returns the torch data set: it is then called on the
    host that holds the site, and the rows do not travel. Raises: DataError.
    """
    check_unique(list(datasets), name)
    split = Split(valid_fraction=valid_fraction, test_fraction=test_fraction, seed=split_seed)
    openers = {str(site): OpenTorch(str(site), items, outcome, split) for site, items in datasets.items()}
    sizes = {str(site): len(items) for site, items in datasets.items() if hasattr(items, "__len__")}
    return Dataset(openers, name=name, outcome=outcome, num_classes=num_classes, sizes=sizes)


@dataclass(frozen=True, slots=True)
class OpenTable:
    """Opens one site of CSV or Parquet files, on the host that calls it."""

    site: str
    paths: tuple[str, ...]
    by: str | None
    recipe: Recipe
    split: Split

    @property
    def contract(self) -> Contract:
        """The contract that the table must keep to."""
        return self.recipe.contract

    def at(self, path: str | Path) -> "OpenTable":
        """Return the opener that reads another file, or the files of these names in another folder."""
        path = Path(path)
        if not path.is_dir():
            return replace(self, paths=(str(path),))
        return replace(self, paths=tuple(str(path / Path(own).name) for own in self.paths))

    def frame(self) -> "pd.DataFrame":
        """Return the site's rows as they are in its files."""
        import pandas as pd
        frames = [read_table(path) for path in self.paths]
        if self.by:
            frames = [frame[frame[self.by].astype(str) == self.site] for frame in frames]
        return pd.concat(frames, ignore_index=True)

    def __call__(self) -> SiteData:
        """Read, check and split the site's rows. Raises: DataError with site and column, never a value."""
        return open_frame(self.site, self.frame(), self.recipe, self.split)


@dataclass(frozen=True, slots=True)
class OpenFrame:
    """Opens one site of a frame in memory."""

    site: str
    table: "pd.DataFrame"
    recipe: Recipe
    split: Split

    @property
    def contract(self) -> Contract:
        """The contract that the table must keep to."""
        return self.recipe.contract

    def frame(self) -> "pd.DataFrame":
        """Return the site's rows."""
        return self.table

    def __call__(self) -> SiteData:
        """Check and split the site's rows. Raises: DataError that names site and column, never a value."""
        return open_frame(self.site, self.table, self.recipe, self.split)


@dataclass(frozen=True, slots=True)
class OpenTorch:
    """Opens one site of a torch data set, or of a function that makes one."""

    site: str
    items: Any
    outcome: str
    split: Split

    def __call__(self) -> SiteData:
        """Stack the items and split them. Raises: DataError where they are no pairs of equal shapes."""
        items = self.items if hasattr(self.items, "__getitem__") else self.items()
        try:
            pairs = [items[index] for index in range(len(items))]
            x = torch.stack([torch.as_tensor(one) for one, _ in pairs]).to(torch.float32)
            y = torch.stack([torch.as_tensor(label).reshape(()) for _, label in pairs])
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise DataError(f"site {self.site}: the items of its data set are not pairs (input, label) of "
                            f"one shape ({type(error).__name__}). Fix: return (tensor, number) from "
                            "__getitem__") from None
        y = y.to(torch.int64 if self.outcome == "classes" else torch.float32)
        split = self.split
        part = split_rows(len(y), split.valid_fraction, split.test_fraction, split.seed, self.site)
        return SiteData({"x": x, "y": y}, _as_splits(part))


def open_frame(site: str, frame: "pd.DataFrame", recipe: Recipe, split: Split) -> SiteData:
    """Return a site's data from a raw frame: checked against the contract, codes read, split drawn. Raises:
    DataError.
    """
    contract = recipe.contract
    refuse(found for found in contract.check(frame, site) if found.check != "rows")  # `allow_empty` decides
    read = read_columns(contract, frame)
    values = {str(name): read[name].to_numpy() for name in read.columns}
    given, group = contract.role("split"), contract.role("group")
    if given is not None:
        return site_data(site, values, recipe, given)
    outcome = values[contract.outcome] if contract.task != "number" else None
    groups = values[group].astype(str) if group in values else None
    values[_SPLIT] = split_rows(len(read), split.valid_fraction, split.test_fraction, split.seed, site,
                                groups, outcome)
    return site_data(site, values, recipe, _SPLIT)


def read_table(path: str | Path, rows: int | None = None,
               columns: Sequence[str] | None = None) -> "pd.DataFrame":
    """Return a CSV or Parquet file as a frame. Raises: DataError without a word of the file's contents."""
    import pandas as pd
    path = Path(path)
    try:
        if path.name.endswith(".parquet"):
            frame = pd.read_parquet(path, columns=None if columns is None else list(columns))
            return frame if rows is None else frame.head(rows)
        return pd.read_csv(path, sep="\t" if path.name.endswith(".tsv") else ",", nrows=rows, usecols=columns,
                           low_memory=False)
    except (OSError, ValueError, EOFError, UnicodeError) as error:  # pandas' and pyarrow's are ValueErrors
        raise DataError(f"{path} cannot be read ({type(error).__name__}). Fix: check that it is a whole CSV "
                        "or Parquet file that you may read") from None


def files_of(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(f"there is no file or folder {path}. Fix: give the folder with one CSV or Parquet "
                        "file a site, or one file with a site column")
    files = sorted(one for one in path.iterdir() if one.name.endswith(ENDINGS) and one.is_file()) \
        if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no file that ends in {', '.join(ENDINGS)}. Fix: give another folder")
    return files


def _sites_by_file(files: Sequence[Path]) -> dict[str, tuple[list[Path], int | None]]:
    names = [next(file.name[:-len(ending)] for ending in ENDINGS if file.name.endswith(ending))
             if file.name.endswith(ENDINGS) else file.stem for file in files]
    check_unique(names, str(files[0].parent))
    return {name: ([file], None) for name, file in zip(names, files, strict=True)}


def _sites_by_column(files: Sequence[Path], by: str) -> dict[str, tuple[list[Path], int | None]]:
    """Return the files that hold rows of each site, and how many; only the site column is read."""
    found: dict[str, tuple[list[Path], int | None]] = {}
    for file in files:
        header = [str(name) for name in read_table(file, rows=0).columns]
        if by not in header:
            raise DataError(f"{file.name}: no site column {by}{near(by, header)}. Fix: site_column=NAME, or "
                            "leave it out where each file is a site")
        column = read_table(file, columns=[by])[by]
        if column.isna().any():
            raise DataError(f"{file.name}: the site column {by} is blank in some rows. Fix: fill it")
        for site, rows in column.astype(str).value_counts().sort_index().items():
            places, count = found.get(str(site), ([], 0))
            found[str(site)] = ([*places, file], (count or 0) + int(rows))
    check_unique(list(found), f"column {by}")
    return dict(sorted(found.items()))


def _guess_contract(name: str, frame: "pd.DataFrame", target: str | None,
                    site_column: str | None) -> Contract:
    """Return a contract without units and ranges: the target, and all other columns of numbers as inputs."""
    import pandas as pd
    names = [str(column) for column in frame.columns]
    if target is None:
        raise DataError(f"data set {name}: neither a contract nor a target is given. Fix: target=COLUMN, or "
                        "a contract YAML that names columns, units and the outcome")
    if target not in names:
        raise DataError(f"data set {name}: no column {target}{near(target, names)}. Fix: target=COLUMN")
    if len(set(names)) < len(names):
        twice = ", ".join(sorted({column for column in names if names.count(column) > 1}))
        raise DataError(f"data set {name}: two columns are named {twice}. Fix: rename one")
    inputs = [column for column in names if column not in (target, site_column)
              and pd.api.types.is_numeric_dtype(frame[column])]
    unused = [f"{column} ({frame[column].dtype})" for column in names
              if column not in (target, site_column, *inputs)]
    if unused:
        log.warning("data set %s: columns that hold no numbers are not used: %s; a contract says how texts are "
                    "coded", name, ", ".join(unused))
    if not inputs:
        raise DataError(f"data set {name}: no column of numbers besides {target}. Fix: give a contract that "
                        "says how texts are coded")
    return Contract(name=name, columns=(*map(Column, inputs), Column(target, role="outcome")), outcome=target)


def recipe_of(contract: Contract, features: Sequence[str] | None, seed: int) -> Recipe:
    chosen = tuple(contract.features if features is None else features)
    for name in chosen:
        if contract[name].role != "feature":
            raise DataError(f"{name} is the {contract[name].role} of contract {contract.name} and never an "
                            "input. Fix: leave it out of features")
    return Recipe(contract=contract, features=chosen, split=_SPLIT, split_seed=seed,
                  reference=contract.role("reference"))


def _dataset(name: str, recipe: Recipe, sites: Mapping[str, Callable[[], SiteData]],
             sizes: Mapping[str, int | None], told: str) -> Dataset:
    data = Dataset(sites, name=name, features=recipe.features, outcome=recipe.contract.task,
                   num_classes=recipe.contract.num_classes,
                   sizes={site: rows for site, rows in sizes.items() if rows is not None})
    return replace(data, version=version_of(told))


def version_of(told: str) -> str:
    """Return the version of data that are what `told` says."""
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _hash_frame(frame: "pd.DataFrame") -> str:
    import pandas as pd
    rows = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    return hashlib.sha256(rows.tobytes() + repr(list(frame.columns)).encode()).hexdigest()


def _as_splits(part: np.ndarray) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.flatnonzero(part == code)) for code, name in enumerate(SPLITS)}
