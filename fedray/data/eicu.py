"""Death in hospital from the first day in intensive care, one site a hospital, out of the eICU-CRD tables.

`build` turns tables into a data set folder; `eicu_mortality` reads one; `eicu_first_use` does the first
when needed and then the second. Two tasks: "severity" predicts from day-1 values for everyone, as APACHE
does; "landmark24" predicts at 24 hours for those still in the unit. The columns are in `eicu_columns.py`,
the cohort in `eicu_features.py`.

Traps of this data that are closed here, not left to the user:
- outcome columns are never read, APACHE IVa's prediction is a reference column, hospital and patient are no
  features;
- the features of hours 0 to 23 exist only where being without them does not tell a short stay: in the
  cohort grid24 and at the landmark;
- all stays of a patient are on one side of a split, also across hospitals.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fedray.data import eicu_columns as names
from fedray.data import eicu_features, eicu_grid
from fedray.data.contract import Column, Contract
from fedray.data.eicu_features import STAY
from fedray.data.eicu_split import split_stays
from fedray.data.eicu_tables import check_table, find_table, read_table
from fedray.data.folder import (
    SPLIT_PREFIX,
    hash_files,
    read_contract,
    read_dataset,
    read_index,
    staged,
    up_to_date,
    write_dataset_json,
    write_site,
)
from fedray.data.site import Dataset
from fedray.errors import DataError

TASKS = ("severity", "landmark24")
COHORTS = ("main", "grid24")
PRESETS = {"cohort_main": ("severity", "main"), "cohort_grid24": ("severity", "grid24"),
           "landmark24": ("landmark24", "main")}
SEEDS = tuple(range(20))
_VERSION = "1"  # of what the columns mean; part of the contract, so of every data set's hash
_HOSPITAL = (("hospitalid",), ("region",))
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Files:
    """The checked files of one build."""

    tables: Mapping[str, Path]
    hospital: Path | None
    hours: eicu_grid.Source | None

    def hashes(self) -> dict[str, str]:
        paths = [*self.tables.values(), *([self.hospital] if self.hospital else [])]
        return hash_files([*paths, *(self.hours.paths if self.hours else ())])


def build(src: str | Path, out: str | Path, *, hourly: str | Path | None = None, task: str = "severity",
          cohort: str = "main", seeds: Iterable[int] = SEEDS, test_fraction: float = 0.3,
          chunk_rows: int = eicu_grid.CHUNK_ROWS) -> Path:
    """Write one Parquet file a hospital, and dataset.json, into `out`; return `out`.

    `src` holds the eICU-CRD tables, csv or csv.gz, demo or full. The first 24 hours (wanted by cohort
    "grid24" and by task "landmark24") come from `hourly`, a grid or a folder of raw tables, else from lab
    and vitalPeriodic in `src`, else from the grid in `src`-hourly; `chunk_rows` rows of them are in memory
    at a time. `seeds` are the split columns made. Values are in natural units, NaN where missing: nothing
    is scaled here. A data set that is already at `out` is replaced when the new one is complete.
    Raises: DataError, before anything is written, for a table, column or file that is missing or cannot be
    read.
    """
    files = _look(src, hourly, task, cohort)
    seeds = _check_split(seeds, test_fraction)
    stays, features = _read_stays(files, task, cohort, chunk_rows)
    contract = make_contract(task, cohort)
    splits = {f"{SPLIT_PREFIX}{seed}": 2 * split_stays(
        *(stays[name].to_numpy() for name in (STAY, "hospitalid", "uniquepid", names.OUTCOME)),
        seed, test_fraction).astype("int8") for seed in seeds}
    frame = pd.concat([features, stays[[names.OUTCOME, names.REFERENCE, "uniquepid"]],
                       pd.DataFrame(splits)], axis=1)
    regions = _regions(files.hospital)
    with staged(out) as folder:
        sites = [write_site(folder, f"h{hospital:03d}", frame.iloc[rows], contract,
                            region=regions.get(hospital, ""))
                 for hospital, rows in sorted(stays.groupby("hospitalid").indices.items())]
        write_dataset_json(folder, name=contract.name, contract=contract, sites=sites, source=files.hashes(),
                           build=_options(task, cohort, seeds, test_fraction))
    _log.info("eICU %s, cohort %s: %d stays of %d hospitals written", task, cohort, len(stays), len(sites))
    return Path(out)


def eicu_mortality(path: str | Path, *, features: str = "full", split_seed: int = 0,
                   valid_fraction: float = 0.0) -> Dataset:
    """Return the data set of a built folder: `x` in natural units, `y` died, `reference` APACHE IVa's risk.

    `features` is aps16 (28 columns), apsx (39), ctx (101) or full (211, with the first 24 hours).
    Raises: DataError if the folder is no such data set, or was built without these features or this seed.
    """
    if features not in names.FEATURE_SETS:
        raise DataError(f"eICU: features={features!r} is none of {', '.join(names.FEATURE_SETS)}. Fix: "
                        "features=apsx")
    chosen = names.FEATURE_SETS[features]
    index = read_index(path)
    if not set(chosen) <= set(read_contract(path).features):
        raise DataError(f"eICU: the data set in {path} was built without the first 24 hours that "
                        f"features={features} needs: in the cohort main their absence would give away a "
                        "short stay. Fix: cohort=cohort_grid24 (build with cohort grid24), or features=ctx")
    seeds = index["build"].get("seeds", [])
    if split_seed not in seeds:
        raise DataError(f"eICU: the data set in {path} has the splits {_ranges(seeds)} and not {split_seed}. "
                        "Fix: take one of these as split_seed, or build it again with this seed")
    return read_dataset(path, split_seed=split_seed, features=chosen, valid_fraction=valid_fraction)


def eicu_first_use(src: str | Path | None = None, data_dir: str | Path = "data", *, features: str = "full",
                   cohort: str = "cohort_grid24", split_seed: int = 0,
                   valid_fraction: float = 0.0) -> Dataset:
    """Return the data set of a cohort, built below `data_dir` on first use and when its files changed.

    `src` is the folder of tables, by default $FEDRAY_DATA/eicu-demo; `cohort` cohort_main, cohort_grid24
    or landmark24. Without tables the data set that lies there is taken as it is.
    Raises: DataError if there is neither a folder of tables nor a data set.
    """
    if cohort not in PRESETS:
        raise DataError(f"eICU: cohort={cohort!r} is none of {', '.join(PRESETS)}. Fix: cohort=cohort_grid24")
    task, kind = PRESETS[cohort]
    folder = Path(data_dir) / f"eicu_{cohort}"
    tables = _default_src(src)
    if tables is not None:
        build_if_changed(tables, folder, task=task, cohort=kind, split_seed=split_seed)
    elif not (folder / "dataset.json").is_file():
        raise DataError(f"eICU: no tables and no data set in {folder}. Fix: `fedray data get eicu-demo`, "
                        "then give its folder as data.src=DIR or set FEDRAY_DATA to the folder above "
                        "eicu-demo; or give data_dir=DIR with a data set that is already built")
    return eicu_mortality(folder, features=features, split_seed=split_seed, valid_fraction=valid_fraction)


def build_if_changed(src: str | Path, out: str | Path, *, task: str, cohort: str,
                     split_seed: int = 0) -> bool:
    """Build unless `out` is whole, of these files and options; tell if it was built. Raises: DataError."""
    files = _look(src, None, task, cohort)
    old: list[int] = []
    if (Path(out) / "dataset.json").is_file():
        old = [seed for seed in read_index(out)["build"].get("seeds", []) if isinstance(seed, int)]
    seeds = sorted({*SEEDS, *old, split_seed})
    if up_to_date(out, files.hashes(), _options(task, cohort, seeds, 0.3)):
        return False
    build(src, out, task=task, cohort=cohort, seeds=seeds)
    return True


def make_contract(task: str, cohort: str) -> Contract:
    """Return the contract of a build: features with units, clip limits and log1p, outcome, reference."""
    chosen = names.FEATURE_SETS["full" if _has_hours(task, cohort) else "ctx"]
    columns = [_column(name, names.FEATURES[name]) for name in chosen]
    columns += [Column(names.OUTCOME, role="outcome", kind="flag"),
                Column(names.REFERENCE, unit="probability", low=0, high=1, role="reference"),
                Column("uniquepid", role="group")]
    return Contract(
        name=f"eicu_{task}_{cohort}", version=_VERSION, outcome=names.OUTCOME, columns=tuple(columns),
        sources=("eICU-CRD 2.0",),
        notes="One row a hospital stay (its first unit stay), age 16 or more. died: status at hospital "
              "discharge.")


# --- steps of a build ---------------------------------------------------------------------------------
def _column(name: str, limits: names.Limits) -> Column:
    if limits.unit == "0/1":
        return Column(name, kind="flag")
    return Column(name, unit=limits.unit, low=limits.low, high=limits.high, log1p=limits.skewed)


def _has_hours(task: str, cohort: str) -> bool:
    return cohort == "grid24" or task == "landmark24"


def _look(src: str | Path, hourly: str | Path | None, task: str, cohort: str) -> _Files:
    """Return the files of a build after a look at every header. Raises: DataError."""
    for name, value, allowed in (("task", task, TASKS), ("cohort", cohort, COHORTS)):
        if value not in allowed:
            raise DataError(f"eICU: {name}={value!r} is none of {', '.join(allowed)}. Fix: --{name} "
                            f"{allowed[0]}")
    src = Path(src)
    tables = {name: check_table(src, name, (*numbers, *texts))
              for name, (numbers, texts) in eicu_features.COLUMNS.items()}
    hospital = None
    if find_table(src, "hospital"):
        hospital = check_table(src, "hospital", (*_HOSPITAL[0], *_HOSPITAL[1]))
    hours = eicu_grid.find_source(src, Path(hourly) if hourly else None) if _has_hours(task, cohort) else None
    return _Files(tables, hospital, hours)


def _check_split(seeds: Iterable[int], test_fraction: float) -> list[int]:
    seeds = sorted(set(seeds))
    if not seeds or not all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds):
        raise DataError("eICU: seeds must be whole numbers from 0 to 2^32 - 1, one at least. Fix: "
                        "seeds=range(20)")
    if not 0 <= test_fraction < 1:
        raise DataError(f"eICU: test_fraction={test_fraction} must be in [0, 1). Fix: test_fraction=0.3")
    return seeds


def _read_stays(files: _Files, task: str, cohort: str, chunk_rows: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the stays of the cohort, with reference, and their features, row by row the same stays."""
    tables = {name: read_table(path, numbers=eicu_features.COLUMNS[name][0],
                               texts=eicu_features.COLUMNS[name][1])
              for name, path in files.tables.items()}
    stays = eicu_features.select_stays(tables)
    if task == "landmark24":
        stays = eicu_features.select_landmark(stays)
    if not len(stays):
        raise DataError(f"eICU: no stay of {files.tables['patient'].name} is in the cohort (first unit stay, "
                        "known outcome, age 16 or more, a row in apacheApsVar). Fix: check that the tables "
                        "are of the same extract")
    features = eicu_features.day1_features(stays, tables)
    if files.hours is not None:
        hours, seen = eicu_grid.first_day_features(files.hours, stays[STAY].to_numpy(), chunk_rows)
        features = pd.concat([features, hours], axis=1)
        if cohort == "grid24":
            stays, features = stays[seen].reset_index(drop=True), features[seen].reset_index(drop=True)
    reference = eicu_features.apache_reference(stays, tables["apachePatientResult"])
    return stays.assign(**{names.REFERENCE: reference.to_numpy()}), features


def _regions(path: Path | None) -> dict[int, str]:
    if path is None:
        return {}
    table = read_table(path, numbers=_HOSPITAL[0], texts=_HOSPITAL[1])
    return {int(hospital): region for hospital, region in
            zip(table["hospitalid"], table["region"].fillna(""), strict=True)}


def _options(task: str, cohort: str, seeds: Iterable[int], test_fraction: float) -> dict[str, Any]:
    return {"task": task, "cohort": cohort, "seeds": list(seeds), "test_fraction": test_fraction,
            "contract": make_contract(task, cohort).digest}


def _default_src(src: str | Path | None) -> Path | None:
    if src is not None:
        return Path(src)
    folder = os.environ.get("FEDRAY_DATA")
    demo = Path(folder) / "eicu-demo" if folder else None
    return demo if demo is not None and demo.is_dir() else None


def _ranges(seeds: list[int]) -> str:
    """Return seeds as text, a gapless run by its ends."""
    if len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds)) or "(none)"
