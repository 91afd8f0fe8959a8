"""UCI Heart Disease at four hospitals, by the recipe of FLamby's Fed-Heart-Disease, so that its figures can
be met.

Columns slope, ca and thal go, rows with "?" go, disease is num > 0, chest pain and resting ECG become one
column a value without the first: 13 inputs. The split is 66/34 within each hospital, stratified where both
classes have more than two rows, the one that scikit-learn's `train_test_split(random_state=43)` draws
(`published_split`). Start reading at `build` and `heart_disease`.

Source: Ogier du Terrail et al., FLamby, NeurIPS 2022 (datasets and benchmarks); data: Janosi et al., UCI
1988.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fedray.data.contract import Column, Contract
from fedray.data.folder import (
    OpenSite,
    hash_files,
    read_contract,
    read_dataset,
    staged,
    up_to_date,
    write_dataset_json,
    write_site,
)
from fedray.data.site import Dataset, SiteData
from fedray.errors import DataError

SITES = ("cleveland", "hungarian", "switzerland", "va")
RAW = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca",
       "thal", "num")
_DROPPED = ("slope", "ca", "thal")
_SEED, _TEST, _TRAIN = 43, 0.34, 0.66
OUTCOME = "disease"
SCALES = ("site", "pooled", "none")
Array = np.ndarray


def _flag(name: str) -> Column:
    return Column(name, kind="flag")


CONTRACT = Contract(
    name="heart_disease", version="1", outcome=OUTCOME, sources=("UCI Heart Disease, processed",),
    columns=(Column("age", unit="years", low=18, high=100), _flag("sex"),
             Column("trestbps", unit="mmHg", low=0, high=260), Column("chol", unit="mg/dL", low=0, high=700),
             _flag("fbs"), Column("thalach", unit="1/min", low=50, high=220), _flag("exang"),
             Column("oldpeak", unit="mm", low=-3, high=8), _flag("cp_2"), _flag("cp_3"), _flag("cp_4"),
             _flag("restecg_1"), _flag("restecg_2"), Column(OUTCOME, role="outcome", kind="flag")),
    notes="cp_1 (typical angina) and restecg_0 (normal) are the reference values. chol (all of "
          "Switzerland) and trestbps are 0 where not recorded; the published recipe leaves them so.")


def build(src: str | Path, out: str | Path) -> Path:
    """Write one Parquet file a hospital, and dataset.json, into `out`; return `out`.

    `src` holds processed.<hospital>.data of UCI for Cleveland, Hungary, Switzerland and VA Long Beach. The
    rows are in the order of the files, in natural units; the split column is the published one.
    Raises: DataError, before anything is written, for a file that is missing or not of this form.
    """
    paths = _find(Path(src))
    frames = {site: _rows(path) for site, path in paths.items()}
    with staged(out) as folder:
        sites = [write_site(folder, site, frame, CONTRACT) for site, frame in frames.items()]
        write_dataset_json(folder, name="heart_disease", contract=CONTRACT, sites=sites,
                           source=hash_files(paths.values()), build={"split": f"train_test_split {_SEED}"})
    return Path(out)


def heart_disease(path: str | Path, *, scale: str = "site") -> Dataset:
    """Return the data set of a built folder; its one split is the published one.

    `scale` "site": z-scores by the mean and deviation (n - 1) of the site's own training rows, as the
    published federated runs have it; "pooled": by those of all training rows together, as in its pooled
    training and "Pooled Test" (a simulation: the four files are read here); "none": natural units. A
    constant column becomes 0.
    Raises: DataError.
    """
    if scale not in SCALES:
        raise DataError(f"heart disease: scale={scale!r} is none of {', '.join(SCALES)}. Fix: scale=site")
    if read_contract(path).name != CONTRACT.name:
        raise DataError(f"{path} holds another data set than heart disease. Fix: give the folder that "
                        "`fedray data build heart-disease` wrote")
    data = read_dataset(path)
    if scale == "none":
        return data
    center = None
    if scale == "pooled":
        train = torch.cat([data[site]().train["x"] for site in data])
        center = _moments(train)
    return replace(data, sites={site: OpenScaled(opener, center) for site, opener in data.sites.items()},
                   version=f"{data.version}-{scale}")


def heart_disease_first_use(src: str | Path | None = None, data_dir: str | Path = "data", *,
                            scale: str = "site") -> Dataset:
    """Return the data set, built below `data_dir` on first use and when its files changed.

    `src` is the folder of UCI's files, by default $FEDRAY_DATA/heart-disease.
    Raises: DataError if there is neither a folder of files nor a data set.
    """
    folder = Path(data_dir) / "heart_disease"
    known = os.environ.get("FEDRAY_DATA")
    files = Path(src) if src is not None else Path(known) / "heart-disease" if known else None
    if files is not None and (src is not None or files.is_dir()):
        if not up_to_date(folder, hash_files(_find(files).values())):
            build(files, folder)
    elif not (folder / "dataset.json").is_file():
        raise DataError(f"heart disease: no files and no data set in {folder}. Fix: `fedray data get "
                        "heart-disease`, then give its folder as data.src=DIR, or set FEDRAY_DATA to the "
                        "folder above heart-disease")
    return heart_disease(folder, scale=scale)


@dataclass(frozen=True, slots=True)
class OpenScaled:
    """Opens a site and scales `x` by the given mean and deviation, or by its own training rows'."""

    opener: OpenSite
    center: tuple[tuple[float, ...], tuple[float, ...]] | None

    @property
    def contract(self) -> Contract:
        """The contract that the site's table keeps to."""
        return self.opener.contract

    def at(self, path: str | Path) -> "OpenScaled":
        """Return the opener that reads the site's file elsewhere."""
        return replace(self, opener=self.opener.at(path))

    def __call__(self) -> SiteData:
        """Read and scale. Raises: DataError."""
        table = self.opener()
        mean, deviation = (torch.tensor(part, dtype=torch.float64)
                           for part in (self.center or _moments(table.train["x"])))
        scaled = (table["x"].double() - mean) / torch.where(deviation > 0, deviation, torch.inf)
        return table.with_columns(x=scaled.float())


def published_split(label: Array) -> Array:
    """Return which rows are test rows: the draw of scikit-learn's train_test_split with random_state=43.

    34 % for the test, 66 % for training; stratified by the 0/1 label where both classes have more than two
    rows. Written out so that scikit-learn is not needed; a test compares the two.
    """
    rng = np.random.RandomState(_SEED)
    rows = len(label)
    num_test, num_train = int(np.ceil(_TEST * rows)), int(np.floor(_TRAIN * rows))
    is_test = np.zeros(rows, bool)
    counts = np.bincount(label, minlength=2)
    if (counts <= 2).any():
        is_test[rng.permutation(rows)[:num_test]] = True
        return is_test
    of_train = _shares(counts, num_train, rng)
    of_test = _shares(counts - of_train, num_test, rng)
    for value in (0, 1):
        members = np.flatnonzero(label == value)[rng.permutation(counts[value])]
        is_test[members[of_train[value]:of_train[value] + of_test[value]]] = True
    return is_test


def _shares(counts: Array, draws: int, rng: np.random.RandomState) -> Array:
    """Return how many of each class make up `draws` rows: in proportion, largest remainders first."""
    exact = counts / counts.sum() * draws
    share = np.floor(exact)
    remainder = exact - share
    for value in np.sort(np.unique(remainder))[::-1]:
        over = int(draws - share.sum())
        if over == 0:
            break
        tied = np.flatnonzero(remainder == value)
        share[rng.choice(tied, size=min(len(tied), over), replace=False)] += 1
    return share.astype(int)


def _moments(x_NF: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation (n - 1) of each column."""
    x = x_NF.double()
    return tuple(x.mean(0).tolist()), tuple(x.std(0).tolist())


def _find(src: Path) -> Mapping[str, Path]:
    """Return the path of each hospital's file. Raises: DataError."""
    if not src.is_dir():
        raise DataError(f"heart disease: {src} is not a folder. Fix: give the folder of the processed.*.data "
                        "files as --src (`fedray data get heart-disease`)")
    paths = {site: src / f"processed.{site}.data" for site in SITES}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise DataError(f"heart disease: {', '.join(missing)} missing in {src}. Fix: `fedray data get "
                        "heart-disease`")
    return paths


def _rows(path: Path) -> pd.DataFrame:
    """Return a hospital's complete rows with the contract's columns and the split. Raises: DataError."""
    try:
        raw = pd.read_csv(path, header=None, na_values="?", dtype="float64")
    except (OSError, ValueError, pd.errors.ParserError) as error:  # their messages may quote a cell
        raise DataError(f"heart disease: {path.name} in {path.parent} cannot be read "
                        f"({type(error).__name__}). Fix: restore UCI's file: 14 numbers a line, ? where "
                        "missing, no header") from None
    if raw.shape[1] != len(RAW):
        raise DataError(f"heart disease: {path.name} in {path.parent} has {raw.shape[1]} columns, not "
                        f"{len(RAW)}. Fix: restore UCI's file: 14 numbers a line, ? where missing, no header")
    rows = raw.set_axis(list(RAW), axis=1).drop(columns=list(_DROPPED)).dropna().reset_index(drop=True)
    for name, values in (("cp", (2, 3, 4)), ("restecg", (1, 2))):
        for value in values:
            rows[f"{name}_{value}"] = (rows[name] == value).astype(float)
    rows[OUTCOME] = (rows["num"] > 0).astype(float)
    rows["split_0"] = 2 * published_split(rows[OUTCOME].to_numpy(int)).astype("int8")
    return rows[[*CONTRACT.names, "split_0"]]
