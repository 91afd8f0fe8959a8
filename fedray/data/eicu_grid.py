"""The features of the first 24 hours, from an hourly grid or from the raw tables, in memory that does not
grow with rows.

Start reading at `first_day_features`. Either source is read in parts and folded into the mean of each hour
of each stay (`HourlyMeans`: 24 sums and counts a stay and variable; for the 140,000 stays of the whole eICU
0.2 GB for the vitals and then 0.8 GB for the labs, whatever the number of rows). Minimum, maximum, mean and
last are taken over the hourly means, so grid and raw tables give the same features. The number of hours is
no feature: it tells the length of stay.

Raw tables: lab and vitalPeriodic; where they are there also vitalAperiodic (cuff blood pressures) and
intakeOutput (urine). Rows of other stays, before unit admission or after hour 23 never count, nor does a
vital sign outside what a monitor can measure.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedray.data import eicu_columns as names
from fedray.data.eicu_tables import check_table, find_table, stream_table
from fedray.errors import DataError

HOURS = 24
CHUNK_ROWS = 25_000  # 2 MiB of CSV; the reader holds some thirty such parts, larger ones are no faster
_BLOCK = 4096  # stays whose hours are unfolded at once: 27 variables take 21 MB
_log = logging.getLogger(__name__)
Array = np.ndarray

LABNAMES = {"albumin": "alb", "bicarbonate": "bicar", "HCO3": "bicar", "total bilirubin": "bili",
            "BUN": "bun", "calcium": "ca", "chloride": "cl", "creatinine": "crea", "glucose": "glu",
            "bedside glucose": "glu", "Hgb": "hgb", "PT - INR": "inr_pt", "potassium": "k",
            "lactate": "lact", "magnesium": "mg",
            "sodium": "na", "pH": "ph", "phosphate": "phos", "platelets x 1000": "plt", "paO2": "po2",
            "paCO2": "pco2", "WBC x 1000": "wbc", "Base Excess": "be", "AST (SGOT)": "ast",
            "alkaline phos.": "alp", "-bands": "bnd", "troponin - T": "tnt", "FiO2": "fio2", "PTT": "ptt"}
PERIODIC = {"heartrate": "hr", "systemicmean": "map", "systemicsystolic": "sbp", "systemicdiastolic": "dbp",
            "respiration": "resp", "sao2": "o2sat", "temperature": "temp"}
APERIODIC = {"noninvasivemean": "map", "noninvasivesystolic": "sbp", "noninvasivediastolic": "dbp"}
MEASURABLE = {  # outside is an artefact of the monitor: the limits of the ricu package
    "hr": (0, 300), "map": (0, 250), "sbp": (0, 300), "dbp": (0, 200), "resp": (0, 120), "o2sat": (50, 100),
    "temp": (32, 42)}
_GROUPS = ((tuple(names.VITALS), names.VITAL_STATS), (tuple(names.LABS), names.LAB_STATS),
           (("urine",), ("sum",)))


class HourlyMeans:
    """Sum and count of each variable in each of the first 24 hours of each stay, filled part by part."""

    def __init__(self, stays: Array, variables: Sequence[str]) -> None:
        self.variables = tuple(variables)
        self.stays = stays  # ascending
        shape = len(stays) * HOURS * len(self.variables)
        self._sum = np.zeros(shape, np.float64)
        self._count = np.zeros(shape, np.uint16)
        self.seen = np.zeros(len(stays), bool)

    def locate(self, stay: Array, minute: Array) -> tuple[Array, Array]:
        """Return which rows are of a known stay's first 24 hours, and the cell (stay, hour) of those."""
        if not len(self.stays):
            return np.zeros(len(stay), bool), np.zeros(0, np.int64)
        place = np.minimum(np.searchsorted(self.stays, stay), len(self.stays) - 1)
        inside = (self.stays[place] == stay) & (minute >= 0) & (minute < 60 * HOURS)
        self.seen[place[inside]] = True
        return inside, place[inside] * HOURS + minute[inside] // 60

    def add(self, variable: Array | int, cell: Array, value: Array) -> None:
        """Add finite values to their cells."""
        index = cell * len(self.variables) + variable
        finite = np.isfinite(value)
        np.add.at(self._sum, index[finite], value[finite])
        np.add.at(self._count, index[finite], np.uint16(1))

    def reduce(self, stats: Sequence[str]) -> dict[str, Array]:
        """Return float64 columns `d24_<variable>_<stat>`, one row a stay, NaN where nothing was measured."""
        width = len(self.variables)
        out = {f"d24_{name}_{stat}": np.full(len(self.stays), np.nan)
               for name in self.variables for stat in stats}
        for start in range(0, len(self.stays), _BLOCK):
            stop = min(start + _BLOCK, len(self.stays))
            cells = slice(start * HOURS * width, stop * HOURS * width)
            count_SHV = self._count[cells].reshape(-1, HOURS, width)  # S stays, H hours, V variables
            sum_SHV = self._sum[cells].reshape(-1, HOURS, width)
            for stat in stats:
                value_SV = _reduce(stat, sum_SHV, count_SHV)
                for place, name in enumerate(self.variables):
                    out[f"d24_{name}_{stat}"][start:stop] = value_SV[:, place]
        return out


def _reduce(stat: str, sum_SHV: Array, count_SHV: Array) -> Array:
    """Return one statistic over the measured hours, (S, V), NaN where there is none."""
    measured = count_SHV > 0
    value = np.divide(sum_SHV, count_SHV, out=np.full(sum_SHV.shape, np.nan), where=measured)
    if stat == "sum":
        result = sum_SHV.sum(1)
    elif stat == "mean":
        result = np.where(measured, value, 0).sum(1) / np.maximum(measured.sum(1), 1)
    elif stat == "min":
        result = np.where(measured, value, np.inf).min(1)
    elif stat == "max":
        result = np.where(measured, value, -np.inf).max(1)
    else:  # last
        last = sum_SHV.shape[1] - 1 - measured[:, ::-1].argmax(1)
        result = np.take_along_axis(value, last[:, None], 1)[:, 0]
    return np.where(measured.any(1), result, np.nan)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the first 24 hours come from: a file (`grid`) or the folder of the raw tables (`tables`)."""

    grid: Path | None = None
    tables: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """The files that are read."""
        if self.tables is None:
            return [self.grid] if self.grid else []
        return [path for path in (find_table(self.tables, table) for table in _RAW) if path]


def find_source(src: Path, hourly: Path | None) -> Source:
    """Return where the hours come from, after a look at the headers.

    That is `hourly` (a grid file, a folder with los_dyn.parquet or one with lab and vitalPeriodic), else
    the raw tables in `src`, else a grid in `src` or in the folder `src`-hourly.
    Raises: DataError if there is none, a column is missing or a file cannot be read.
    """
    folders = [hourly] if hourly else [src, src.with_name(f"{src.name}-hourly")]
    for place in folders:
        if place.is_file():
            return Source(grid=_check_grid(place))
        raw = any(find_table(place, table) for table in _REQUIRED)
        if raw and not (hourly and _grid_in(place)):
            for table, columns in _RAW.items():
                if table in _REQUIRED or find_table(place, table):
                    check_table(place, table, tuple(columns))
            return Source(tables=place)
        if _grid_in(place):
            return Source(grid=_check_grid(place / "los_dyn.parquet"))
    raise DataError(f"eICU hours: neither lab and vitalPeriodic tables nor los_dyn.parquet in "
                    f"{' or '.join(str(place) for place in folders)}. Fix: copy them there, give their "
                    "folder as --hourly, or build --cohort main, which needs no hours")


def first_day_features(source: Source, stays: Array,
                       chunk_rows: int = CHUNK_ROWS) -> tuple[pd.DataFrame, Array]:
    """Return the 110 features of hours 0 to 23, and which stays have a row there; both in `stays`' order.

    Raises: DataError if a file is broken.
    """
    order = np.argsort(stays, kind="stable")
    columns: dict[str, Array] = {}
    seen = np.zeros(len(stays), bool)
    for variables, stats in _GROUPS:  # one after the other, so that only one group's hours are in memory
        means = HourlyMeans(np.asarray(stays)[order].astype(np.int64), variables)
        if source.grid is not None:
            _fold_grid(means, source.grid, chunk_rows)
        elif source.tables is not None:
            _fold_tables(means, source.tables, chunk_rows)
        seen |= means.seen
        columns |= means.reduce(stats)
    back = np.argsort(order, kind="stable")
    return pd.DataFrame({name: columns[name][back] for name in names.GRID}), seen[back]


# --- hourly grid --------------------------------------------------------------------------------------
def _grid_in(folder: Path) -> bool:
    return (folder / "los_dyn.parquet").is_file()


def _check_grid(path: Path) -> Path:
    """Return the path of a grid whose columns are all there. Raises: DataError."""
    try:
        present = set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        raise DataError(f"eICU hours: {path.name} in {path.parent} cannot be read as Parquet; it may be cut "
                        "off. Fix: compare its sha256 with the original and copy it again") from None
    wanted = ("stay_id", "time", *names.VITALS, *names.LABS, "urine")
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DataError(f"eICU hours: {path.name} in {path.parent} has no column {', '.join(missing)}. Fix: "
                        "give an hourly grid with YAIB's variable names as --hourly")
    return path


def _fold_grid(means: HourlyMeans, path: Path, chunk_rows: int) -> None:
    """Add a grid: one row a stay and hour, so each hour's mean is the grid's value."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(chunk_rows, columns=["stay_id", "time", *means.variables]):
                seconds = batch["time"].cast(pa.duration("s")).cast(pa.int64())
                inside, cell = means.locate(_numbers(batch["stay_id"]), _numbers(seconds) // 60)
                for place, name in enumerate(means.variables):
                    value = _numbers(batch[name].cast(pa.float64()))[inside]
                    means.add(place, cell, _measurable(name, value))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"eICU hours: {path.name} in {path.parent} cannot be read ({type(error).__name__}): "
                        "`time` must be a duration since unit admission, values numbers. Fix: copy it "
                        "again") from None


# --- raw tables ---------------------------------------------------------------------------------------
_ID = {"patientunitstayid": pa.int64()}
_RAW: Mapping[str, Mapping[str, pa.DataType]] = {
    "vitalPeriodic": {**_ID, "observationoffset": pa.int64(), **dict.fromkeys(PERIODIC, pa.float64())},
    "vitalAperiodic": {**_ID, "observationoffset": pa.int64(), **dict.fromkeys(APERIODIC, pa.float64())},
    "lab": {**_ID, "labresultoffset": pa.int64(), "labname": pa.string(), "labresult": pa.float64()},
    "intakeOutput": {**_ID, "intakeoutputoffset": pa.int64(), "celllabel": pa.string(),
                     "cellpath": pa.string(), "cellvaluenumeric": pa.float64()}}
_REQUIRED = ("vitalPeriodic", "lab")


def _fold_tables(means: HourlyMeans, src: Path, chunk_rows: int) -> None:
    """Add the raw tables that hold the variables of `means`."""
    if "hr" in means.variables:
        _fold_wide(means, src, "vitalPeriodic", PERIODIC, chunk_rows)
        _fold_wide(means, src, "vitalAperiodic", APERIODIC, chunk_rows)
    elif "urine" in means.variables:
        _fold_urine(means, src, chunk_rows)
    else:
        _fold_labs(means, src, chunk_rows)


def _batches(src: Path, table: str, chunk_rows: int) -> Iterator[pa.RecordBatch]:
    path = find_table(src, table)
    if path is None:
        _log.info("eICU hours: no table %s; what only it holds stays missing", table)
        return
    yield from stream_table(path, _RAW[table], chunk_rows)


def _fold_wide(means: HourlyMeans, src: Path, table: str, variables: Mapping[str, str],
               chunk_rows: int) -> None:
    """Add a table with one column a vital sign."""
    for batch in _batches(src, table, chunk_rows):
        inside, cell = means.locate(_numbers(batch["patientunitstayid"]),
                                    _numbers(batch["observationoffset"]))
        for column, name in variables.items():
            value = _measurable(name, _numbers(batch[column])[inside])
            means.add(means.variables.index(name), cell, value)


def _fold_labs(means: HourlyMeans, src: Path, chunk_rows: int) -> None:
    """Add the lab table: one row a result, the variable in `labname`; FiO2 as a fraction becomes %."""
    labels = pa.array(list(LABNAMES))
    place_of = np.array([means.variables.index(name) for name in LABNAMES.values()])
    fio2 = means.variables.index("fio2")
    for part in _batches(src, "lab", chunk_rows):
        batch = part.filter(pc.is_in(part["labname"], value_set=labels))
        inside, cell = means.locate(_numbers(batch["patientunitstayid"]), _numbers(batch["labresultoffset"]))
        which = place_of[_numbers(pc.index_in(batch["labname"], value_set=labels))[inside]]
        value = _numbers(batch["labresult"])[inside]
        means.add(which, cell, np.where((which == fio2) & (value <= 1), value * 100, value))


def _fold_urine(means: HourlyMeans, src: Path, chunk_rows: int) -> None:
    """Add intakeOutput's urine: outputs whose label names urine or a urinary catheter, not the counts."""
    for part in _batches(src, "intakeOutput", chunk_rows):
        label = part["celllabel"]
        urine = pc.match_substring_regex(label, "urin|urethral|foley|indwelling|straight cath",
                                         ignore_case=True)
        other = pc.match_substring_regex(label, "count|occurrence|stool", ignore_case=True)
        output = pc.match_substring(part["cellpath"], "|Output")
        batch = part.filter(pc.and_not(pc.and_(output, urine), other))
        inside, cell = means.locate(_numbers(batch["patientunitstayid"]),
                                    _numbers(batch["intakeoutputoffset"]))
        means.add(0, cell, _numbers(batch["cellvaluenumeric"])[inside])


def _numbers(column: pa.Array) -> Array:
    """Return an Arrow column as NumPy: null becomes NaN in floats, -1 (no stay, no minute) in integers."""
    if column.null_count and pa.types.is_integer(column.type):
        column = pc.fill_null(column, -1)
    return column.to_numpy(zero_copy_only=False)


def _measurable(name: str, value: Array) -> Array:
    """Return values with what no monitor measures as NaN."""
    if name not in MEASURABLE:
        return value
    low, high = MEASURABLE[name]
    return np.where((value >= low) & (value <= high), value, np.nan)
