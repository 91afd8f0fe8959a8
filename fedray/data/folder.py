"""The folder of a built data set: one Parquet file per site and `dataset.json`, which says what they hold.

    dataset.json          {format, name, version, contract, sites: [{id, file, rows, events, sha256, region}],
    source: {file: sha256}, build: {option: value}} sites/<id>.parquet    feature columns in natural units
    with NaN for missing, the outcome, optional reference and group columns, and `split_<seed>` columns: 0
    train, 1 valid, 2 test (int8)

Builders write into `staged(out)`, with `write_site` and `write_dataset_json`; `read_dataset` gives the
`Dataset`. A site's file is read where the site lives: `OpenSite` is a path and a few names, and columns are
found by name.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import torch

from fedray.data.contract import Contract, near
from fedray.data.site import SPLITS, Dataset, SiteData
from fedray.data.split import hold_out
from fedray.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
INDEX = "dataset.json"
SPLIT_PREFIX = "split_"
PATIENT = "patient"  # column of numbers that tell whose a row is, from a group column: see learn.private_sgd
Array = np.ndarray


@contextmanager
def staged(out: str | Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` when the block ends well, and goes without a trace when it
    fails.

    An older data set at `out` is replaced. Raises: DataError if `out` holds anything else, or cannot be
    written.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and ((out / INDEX).is_file() or not any(out.iterdir()))):
        raise DataError(f"{out} exists and is not a data set of fedray. Fix: give another folder as --out")
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}). Fix: give a folder that you may write "
                        "to as --out") from None
    try:
        yield part
        if out.exists():
            shutil.rmtree(out)
        part.replace(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        for parent in made:  # innermost first; another process may have put something there meanwhile
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise


def write_site(folder: str | Path, site: str, frame: "pd.DataFrame", contract: Contract, *,
               region: str = "") -> dict[str, Any]:
    """Write a site's Parquet file (features float32, outcome, reference, group, `split_*` int8); return its
    entry.

    Raises: DataError if the table breaks the contract in the columns it needs, or has missing outcomes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    columns = {}
    for column in contract.columns:
        if column.role in ("ignore", "site"):
            continue
        if column.name not in frame.columns:
            if column.required:
                raise DataError(f"site {site}: no column "
                                f"{column.name}{near(column.name, map(str, frame.columns))}. Fix: add it, "
                                f"as contract {contract.name} asks")
            continue
        values = frame[column.name]
        columns[column.name] = (pa.array(values.astype(str)) if column.role in ("group", "id")
                                else pa.array(values.to_numpy("float32"), from_pandas=False))
    columns |= {str(name): pa.array(frame[name].to_numpy("int8")) for name in frame.columns
                if str(name).startswith(SPLIT_PREFIX) and name not in columns}
    outcome = frame[contract.outcome].to_numpy("float64")
    if np.isnan(outcome).any():
        raise DataError(f"site {site}: missing values in the outcome {contract.outcome}. Fix: leave those "
                        "rows out")
    file = f"sites/{quote(site, safe=' ')}.parquet"
    path = Path(folder) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="zstd")
    events = int((outcome == 1).sum()) if contract.task == "binary" else 0
    return {"id": site, "file": file, "rows": len(frame), "events": events, "sha256": hash_file(path),
            "region": region}


def write_dataset_json(folder: str | Path, *, name: str, contract: Contract,
                       sites: Sequence[Mapping[str, Any]], source: Mapping[str, str] | None = None,
                       build: Mapping[str, Any] | None = None) -> str:
    """Write the index of a data set, whole or not at all, and return the data set's version (a hash of its
    data).

    `sites` are the entries that `write_site` returned; `source` the hashes of what it was built from; `build`
    the options it was built with. Raises: DataError on duplicate site ids or no site.
    """
    check_unique([str(entry["id"]) for entry in sites], f"data set {name}")
    told = contract.digest + "".join(f"|{entry['id']}:{entry['sha256']}" for entry in sites)
    version = hashlib.sha256(told.encode()).hexdigest()[:16]
    index = {"format": FORMAT, "name": name, "version": version, "contract": contract.to_dict(),
             "sites": [dict(entry) for entry in sites], "source": dict(source or {}),
             "build": dict(build or {})}
    part = Path(folder) / f".{INDEX}.part"
    part.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    part.replace(Path(folder) / INDEX)
    return version


def read_index(folder: str | Path) -> dict[str, Any]:
    """Return the parsed `dataset.json` of a folder. Raises: DataError if it is missing, broken or of another
    format.
    """
    path = Path(folder) / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} is not a data set: it has no {INDEX}. Fix: make one with `fedray data "
                        "build`, or give the folder that holds it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}). Fix: build the data set "
                        "again") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{path} is not of format {FORMAT}. Fix: build the data set again with this version "
                        "of fedray")
    lacking = [key for key in ("name", "version", "contract", "sites") if key not in index]
    if lacking:
        raise DataError(f"{path} lacks {', '.join(lacking)}. Fix: build the data set again")
    check_unique([str(entry["id"]) for entry in index["sites"]], str(path))
    return index


def read_contract(folder: str | Path) -> Contract:
    """Return the contract of a built data set. Raises: DataError."""
    return Contract.from_dict(read_index(folder)["contract"], str(Path(folder) / INDEX))


def read_dataset(folder: str | Path, *, split_seed: int = 0, valid_fraction: float = 0.0,
                 features: Sequence[str] | None = None, reference: bool | str = True) -> Dataset:
    """Return the data set of a folder; each site's file is read where the site is opened.

    Splits are those of the column `split_<split_seed>`; a data set without split columns is all training
    rows. `valid_fraction` moves that share of a site's training rows (whole groups) to validation, where the
    split has none. `features` takes a part of the contract's inputs, in that order. `reference` adds the
    contract's reference column, or the named one, as `reference`: it is never an input. Raises: DataError.
    """
    folder = Path(folder).resolve()
    index = read_index(folder)
    contract = Contract.from_dict(index["contract"], str(folder / INDEX))
    chosen = tuple(contract.features if features is None else features)
    for name in chosen:
        if contract[name].role != "feature":
            raise DataError(f"{folder}: {name} is the {contract[name].role} of contract {contract.name} and "
                            "never an input. Fix: leave it out of features")
    if not 0 <= valid_fraction < 1:
        raise DataError(f"valid_fraction={valid_fraction} must be in [0, 1). Fix: valid_fraction=0.1")
    recipe = Recipe(contract=contract, features=chosen, split=f"{SPLIT_PREFIX}{split_seed}",
                    split_seed=split_seed,
                    reference=contract.role("reference") if reference is True else reference or None,
                    valid_fraction=valid_fraction)
    entries = index["sites"]
    return Dataset(
        sites={entry["id"]: OpenSite(str(entry["id"]), str(folder / entry["file"]), entry.get("sha256", ""),
                                     recipe) for entry in entries},
        name=index["name"], features=chosen, outcome=contract.task, num_classes=contract.num_classes,
        sizes={entry["id"]: int(entry["rows"]) for entry in entries},
        regions={entry["id"]: entry["region"] for entry in entries if entry.get("region")},
        version=f"{index['version']}-{split_seed}")


def up_to_date(folder: str | Path, source: Mapping[str, str], build: Mapping[str, Any] | None = None) -> bool:
    """Tell whether a folder was built from files of these hashes (and with these options) and is whole."""
    try:
        index = read_index(folder)
    except DataError:
        return False
    if index["source"] != dict(source):
        return False
    if build is not None and index["build"] != json.loads(json.dumps(dict(build))):
        return False
    paths = [(Path(folder) / entry["file"], entry["sha256"]) for entry in index["sites"]]
    return all(path.is_file() and hash_file(path) == sha256 for path, sha256 in paths)


def read_frames(folder: str | Path) -> "tuple[Contract, dict[str, Callable[[], pd.DataFrame]]]":
    """Return the contract of a built data set and, for each site, a function that reads its whole table."""
    index = read_index(folder)
    readers = {entry["id"]: partial(_read_frame, str(entry["id"]), Path(folder) / entry["file"])
               for entry in index["sites"]}
    return Contract.from_dict(index["contract"], str(Path(folder) / INDEX)), readers


def _read_frame(site: str, path: Path) -> "pd.DataFrame":
    import pandas as pd
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"site {site}: {path} cannot be read ({type(error).__name__}). "
                        "Fix: build the data set again") from None


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes. Raises: DataError if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Fix: check that it is there and "
                        "readable") from None


def hash_files(paths: Iterable[str | Path]) -> dict[str, str]:
    """Return file name -> SHA-256, as `source` of `write_dataset_json` and `up_to_date` take it."""
    return {Path(path).name: hash_file(path) for path in sorted(map(Path, paths))}


def check_unique(sites: Sequence[str], where: str) -> None:
    """Refuse no site at all, and two sites of one name. Raises: DataError."""
    if not sites:
        raise DataError(f"{where}: there is no site. Fix: give at least one")
    twice = sorted({site for site in sites if sites.count(site) > 1})
    if twice:
        raise DataError(f"{where}: duplicate site id {', '.join(twice[:5])}. Fix: give each site an id of "
                        "its own")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the files of all sites of one data set are read; shared by their openers."""

    contract: Contract
    features: tuple[str, ...]
    split: str
    split_seed: int = 0
    reference: str | None = None
    valid_fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class OpenSite:
    """Opens one site of a folder, on the host that calls it."""

    site: str
    path: str
    sha256: str
    recipe: Recipe

    @property
    def contract(self) -> Contract:
        """The contract that the site's table keeps to."""
        return self.recipe.contract

    def at(self, path: str | Path) -> "OpenSite":
        """Return the opener that reads another file, or the file of this name in another folder."""
        path = Path(path)
        if path.is_dir():
            inside = path / "sites" / Path(self.path).name  # of a whole data set
            path = inside if inside.exists() else path / inside.name
        return replace(self, path=str(path))

    def __call__(self) -> SiteData:
        """Read the site's file: `x` float32, NaN where missing, `y`, and `reference` and `patient` (whole
        numbers) where the data set has a reference and a group column.

        Raises: DataError that names the site and what is wrong, never a value.
        """
        import pyarrow.parquet as pq
        recipe, contract = self.recipe, self.recipe.contract
        if self.sha256 and hash_file(self.path) != self.sha256:
            raise DataError(f"site {self.site}: {Path(self.path).name} differs from what {INDEX} says. "
                            "Fix: build the data set again")
        try:
            present = pq.read_schema(self.path).names
            split = recipe.split if recipe.split in present else None
            if split is None and any(name.startswith(SPLIT_PREFIX) for name in present):
                raise DataError(f"site {self.site}: no column {recipe.split}. Fix: build the data set with "
                                "more --seeds, or take a split seed that it has")
            asked = [*recipe.features, contract.outcome, recipe.reference, split, contract.role("group")]
            wanted = [name for name in asked if name in present]
            table = pq.read_table(self.path, columns=wanted)
        except (OSError, ValueError) as error:  # pyarrow's errors, which may quote the file
            raise DataError(f"site {self.site}: {Path(self.path).name} cannot be read "
                            f"({type(error).__name__}). Fix: build the data set again") from None
        values = {name: table.column(name).to_numpy() for name in wanted}
        return site_data(self.site, values, recipe, split)


def site_data(site: str, values: Mapping[str, Array], recipe: Recipe, split: str | None = None) -> SiteData:
    """Return a site's table from its columns by name; extra columns are left alone.

    Raises: DataError for a required column that is missing, a missing outcome, or a column that is not
    numbers.
    """
    contract = recipe.contract
    for name in (*recipe.features, contract.outcome):
        if name not in values and contract[name].required:
            raise DataError(f"site {site}: no column {name}{near(name, values)}. "
                            f"Fix: add it, as contract {contract.name} asks")
    rows = len(values[contract.outcome])
    x = np.full((rows, len(recipe.features)), np.nan, np.float32)
    for place, name in enumerate(recipe.features):
        if name in values:
            x[:, place] = _numbers(site, name, values[name])
    y = _numbers(site, contract.outcome, values[contract.outcome])
    if np.isnan(y).any():
        raise DataError(f"site {site}: missing values in the outcome {contract.outcome}. Fix: leave those "
                        "rows out")
    columns = {"x": torch.from_numpy(x), "y": torch.from_numpy(y.astype(
        np.int64 if contract.task == "classes" else np.float32))}
    if recipe.reference is not None and recipe.reference in values:
        columns["reference"] = torch.from_numpy(
            _numbers(site, recipe.reference, values[recipe.reference]).astype(np.float32))
    part = np.zeros(rows, np.int8) if split is None else np.asarray(values[split]).astype(np.int8)
    group = contract.role("group")
    groups = np.asarray(values[group]).astype(str) if group in values else None
    if groups is not None:
        columns[PATIENT] = _numbered(groups)
    if recipe.valid_fraction and not (part == 1).any():
        part = hold_out(part, recipe.valid_fraction, recipe.split_seed, site, groups)
    return SiteData(columns, {name: torch.from_numpy(np.flatnonzero(part == code))
                              for code, name in enumerate(SPLITS)})


def _numbered(groups: Array) -> torch.Tensor:
    """Return a number for each row that is the same for all rows of a patient, at every site.

    It is derived from the patient's id, so it stays at the site as the id does.
    """
    names, rows = np.unique(groups, return_inverse=True)
    digests = (hashlib.sha256(str(name).encode()).digest()[:8] for name in names)
    numbers = np.frombuffer(b"".join(digests), dtype="<i8")
    return torch.from_numpy(numbers[rows])


def _numbers(site: str, name: str, values: Array) -> Array:
    try:
        return np.asarray(values).astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(f"site {site}: column {name} does not hold numbers. Fix: run `fedray data "
                        "validate`, mend the source and build again") from None
