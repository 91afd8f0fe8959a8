"""Schemas of the group `data`: which sites there are and what they hold. Start at `config_schema.py`."""

from dataclasses import dataclass
from typing import Any

MISSING: Any = "???"  # how a schema says "must be given" to OmegaConf, without importing it here

@dataclass
class Data:
    """What every data set understands."""

    _target_: str = MISSING
    """Factory of the data set."""
    allow_empty: bool = False
    """Accept sites without training rows; they take part with weight 0."""
    standardise: bool = True
    """Bring columns to one scale, fitted over all sites by federated sums on training rows; fill gaps."""
    labelled: float | None = None
    """Share of the training rows that keep their label; null keeps all. Rows without are left out, unless
    the algorithm reads them."""


@dataclass
class SyntheticIcu(Data):
    """ICU stays of generated hospitals, shaped like the eICU database; nothing is read from disk."""

    _target_: str = "fedray.data.synthetic_icu"
    num_sites: int = 208
    """Number of hospitals."""
    scale: float = 0.1
    """Share of the 200,859 stays of the original; 1 is full size."""
    seed: int = 7
    """Seed of the generator: another seed, other hospitals."""
    test_fraction: float = 0.2
    """Share of the patients held back for the test."""
    valid_fraction: float = 0.1
    """Share of the patients held back for validation."""
    prepared: bool = True
    """Standardise with the generator's public constants; without, natural units with gaps."""
    standardise: bool = False
    """Fit one mean and deviation per column over all sites; for `prepared=false`."""
    size_sd: float = 0.9
    """Spread of the log number of stays within a class of hospital size."""
    intercept_sd: float = 0.4
    """Spread of the hospitals' own risk, in log odds."""
    slope_sd: float = 0.1
    """Spread of the hospitals' own effects around the common ones."""
    value_sd: float = 1.0
    """Factor on the hospitals' shifts of vital signs and laboratory values."""
    missing_sd: float = 1.0
    """Factor on the hospitals' differences in what is measured."""
    unit_mix: float = 1.0
    """Factor on the hospitals' differences in kinds of unit."""
    region_sd: float = 0.0
    """Spread of the regions' own risk, in log odds."""
    unit_faults: int = 0
    """Hospitals that report creatinine in another unit."""
    no_labs: int = 0
    """Hospitals without laboratory values."""
    flipped_labels: int = 0
    """Hospitals whose outcome is coded the wrong way round."""


@dataclass
class EicuMortality(Data):
    """Hospital mortality from the eICU tables, one site per hospital, built on first use into `data_dir`."""

    _target_: str = "fedray.data.eicu_first_use"
    src: str | None = None
    """Folder of the eICU tables; null takes $FEDRAY_DATA/eicu-demo."""
    data_dir: str = "${data_dir}"
    """Where the built hospitals lie."""
    features: str = "full"
    """Feature set: aps16, apsx, ctx or full."""
    cohort: str = "cohort_grid24"
    """Cohort: cohort_main, cohort_grid24 or landmark24."""
    split_seed: int = "${seed}"  # type: ignore[assignment]
    """Seed of the split into training and test patients."""
    valid_fraction: float = 0.0
    """Share of the training patients held back for validation."""


@dataclass
class HeartDisease(Data):
    """UCI heart disease, four hospitals, built on first use into `data_dir`."""

    _target_: str = "fedray.data.heart_disease_first_use"
    src: str | None = None
    """Folder of the four files; null takes $FEDRAY_DATA/heart-disease."""
    data_dir: str = "${data_dir}"
    """Where the built hospitals lie."""
    scale: str = "site"
    """Mean and deviation of the site (the published federated runs), pooled, or none."""
    standardise: bool = False
    """Bring columns to one scale over all sites by federated sums; for `scale=none`."""


@dataclass
class Assays(Data):
    """Generated assays: partners with compounds and tasks of their own, for algorithm=private_heads."""

    _target_: str = "fedray.data.assays"
    num_sites: int = 10
    """Number of partners."""
    scale: float = 1.0
    """Share of the compounds (1,000 to 2,500) and assays (150 to 450) of a partner."""
    seed: int = 0
    """Seed of the generator."""
    standardise: bool = False
    """Not for fingerprints: they are 0 and 1."""


@dataclass
class Csv(Data):
    """A folder with one CSV or Parquet file per site, or files with a site column."""

    _target_: str = "fedray.data.csv"
    path: str = MISSING
    """Folder of the files, or one file."""
    contract: str | None = None
    """YAML file that names columns, units, ranges and the outcome; without one, give target."""
    target: str | None = None
    """Outcome column, where there is no contract: every other column of numbers is an input."""
    site_column: str | None = None
    """Column that names the site; null takes the contract's, else each file is a site."""
    features: list[str] | None = None
    """Inputs; null takes all of the contract."""
    valid_fraction: float = 0.1
    """Share of the rows held back for validation."""
    test_fraction: float = 0.2
    """Share of the rows held back for the test."""
    split_seed: int = "${seed}"  # type: ignore[assignment]
    """Seed of the split."""


@dataclass
class AtSites(Data):
    """CSV or Parquet files that only the sites' own nodes hold: see runtime.site_map."""

    _target_: str = "fedray.data.at_sites"
    contract: str = MISSING
    """YAML file that names columns, units, ranges and the outcome; the sites' tables are checked by it."""
    sites: list[str] | None = None
    """Names of the sites; null takes those of the site map."""
    features: list[str] | None = None
    """Inputs; null takes all of the contract."""
    valid_fraction: float = 0.1
    """Share of the rows held back for validation."""
    test_fraction: float = 0.2
    """Share of the rows held back for the test."""
    split_seed: int = "${seed}"  # type: ignore[assignment]
    """Seed of the split."""


@dataclass
class Shards(Data):
    """Very many sites in memory-mapped files that `fedray.data.write_shards` wrote."""

    _target_: str = "fedray.data.read_shards"
    folder: str = MISSING
    """Folder of the shards; on a cluster it lies on every machine under this name."""
    standardise: bool = False
    """Bring columns to one scale over all sites; each site's rows are then copied into memory."""


@dataclass
class Digits(Data):
    """scikit-learn's 8 x 8 digits, dealt to simulated sites with label skew."""

    _target_: str = "fedray.data.digits"
    num_sites: int = 20
    """Number of simulated sites."""
    alpha: float = 0.5
    """Dirichlet concentration: small means that sites differ much in their labels."""
    seed: int = "${seed}"  # type: ignore[assignment]
    """Seed of the deal."""
    valid_fraction: float = 0.1
    """Share of the images held back for validation."""
    test_fraction: float = 0.2
    """Share of the images held back for the test."""
    standardise: bool = False
    """Not for images: their pixels have one scale."""
