"""Write the synthetic ICU as eICU-CRD tables, hospital by hospital, in flat memory.

The federation is that of `synthetic_icu` with the same seed and knobs (plan, habits, model of death), but
its rows are unit stays: a hospital stay may have several, a patient several hospital stays. Start reading
at `write`; `synth_rows.py` makes the rows of the patient and APACHE tables, `synth_hours.py` the hourly
grid, lab and vitals.
"""

import gzip
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from fedray.data import synth_hours, synth_rows
from fedray.data.synthetic import find_intercept
from fedray.data.synthetic_plan import Array, Hospital, Shift, draw_habits, open_stream, plan_hospitals
from fedray.data.synthetic_stays import apply_unit_fault, draw_absence, draw_outcome, draw_stays
from fedray.errors import DataError

TABLES = ("hospital", "patient", "apacheApsVar", "apachePredVar", "apachePatientResult")
PERIODIC = ("vitalPeriodic", "lab")
GRID = ("los_dyn", "los_sta")
_log = logging.getLogger(__name__)


def write(out: str | Path, *, scale: float = 0.1, seed: int = 7, num_hospitals: int = 208,
          periodic: bool = False, hourly: bool = True, compress: bool = True,
          **knobs: float) -> dict[str, int]:
    """Write eICU-schema tables of a synthetic federation into the folder `out` and return rows by table.

    TABLES as .csv.gz (`compress=False`: .csv), and with `hourly` the grid los_dyn.parquet, los_sta.parquet;
    `periodic` adds vitalPeriodic (twelve rows an hour) and lab. `scale=1` is 200,859 unit stays. `knobs` are
    those of `Shift`. Equal arguments give equal bytes; memory does not grow with `scale`.
    Raises DataError if a table is there already, or for knobs that cannot be. A write that fails leaves no
    table.
    """
    unknown = sorted(set(knobs) - set(Shift.__dataclass_fields__))
    if unknown:
        known = list(Shift.__dataclass_fields__)
        raise DataError(f"synthetic tables: unknown knobs {unknown}; known are {known}")
    shift = Shift(**knobs)  # type: ignore[arg-type]
    hospitals = plan_hospitals(num_hospitals, scale, seed, shift)
    folder, ending = Path(out), ".csv.gz" if compress else ".csv"
    names = [f"{name}{ending}" for name in (*TABLES, *(PERIODIC if periodic else ()))]
    names += [f"{name}.parquet" for name in (GRID if hourly else ())]
    present = [name for name in names if (folder / name).exists()]
    if present:
        raise DataError(f"synthetic tables: {present} exist already in {folder.name}/; give an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".partial-") as partial, ExitStack() as stack:
        sinks = {name.split(".")[0]: stack.enter_context(_Sink(Path(partial) / name)) for name in names}
        _write_all(hospitals, shift, seed, find_intercept(hospitals, seed, shift), sinks)
        stack.close()
        for name in names:
            (Path(partial) / name).rename(folder / name)
    return {name: sink.rows for name, sink in sinks.items()}


class _Sink:
    """A table that grows: CSV, gzipped CSV or Parquet by the ending of its path; opened by its first part."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self._stack = ExitStack()
        self._writer: csv.CSVWriter | pq.ParquetWriter | None = None
        self._schema: pa.Schema | None = None

    def __enter__(self) -> "_Sink":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, table: pa.Table) -> None:
        """Append rows; every part has the first part's columns and types."""
        if self._writer is None:
            self._schema = table.schema
            self._writer = self._stack.enter_context(self._open(table.schema))
        self._writer.write_table(table.cast(self._schema))
        self.rows += table.num_rows

    def _open(self, schema: pa.Schema) -> csv.CSVWriter | pq.ParquetWriter:
        if self.path.suffix == ".parquet":
            return pq.ParquetWriter(
                self.path,
                schema,
                compression="zstd",
                use_dictionary=["stay_id"],
                write_statistics=["stay_id"],
            )
        file = self._stack.enter_context(self.path.open("wb"))
        stream: BinaryIO = file
        if self.path.suffix == ".gz":  # no name and no time inside, so that equal tables are equal files
            packed = gzip.GzipFile("", "wb", compresslevel=3, fileobj=file, mtime=0)
            stream = cast(BinaryIO, self._stack.enter_context(packed))
        stream.write((",".join(schema.names) + "\n").encode())
        options = csv.WriteOptions(include_header=False, batch_size=8192)
        return csv.CSVWriter(stream, schema, write_options=options)


def _write_all(
    hospitals: list[Hospital], shift: Shift, seed: int, intercept: float, sinks: Mapping[str, _Sink]
) -> None:
    """Generate hospital after hospital and append its rows to every table."""
    sinks["hospital"].add(
        pa.table(
            {
                "hospitalid": [hospital.number for hospital in hospitals],
                "numbedscategory": pa.array([hospital.beds or None for hospital in hospitals], pa.string()),
                "teachingstatus": ["t" if hospital.teaching else "f" for hospital in hospitals],
                "region": pa.array([hospital.region or None for hospital in hospitals], pa.string()),
            }
        )
    )
    written = 0
    for hospital in hospitals:
        columns = _write_stays(hospital, shift, seed, intercept, written, sinks)
        if "los_dyn" in sinks or "lab" in sinks:
            _write_hours(hospital, columns, seed, sinks)
        written += hospital.rows
        _log.debug("%s written, %d stays in all", hospital.name, written)


def _write_stays(
    hospital: Hospital, shift: Shift, seed: int, intercept: float, first_row: int, sinks: Mapping[str, _Sink]
) -> dict[str, Array]:
    """Append a hospital's rows of the patient and APACHE tables and return its columns."""
    habits = draw_habits(hospital, seed, shift)
    rng = open_stream(seed, hospital.name, "tables")
    columns = draw_stays(hospital, habits, hospital.rows, rng, visits=True)
    absent = draw_absence(columns, habits, hospital, rng)
    died = draw_outcome(columns, hospital, intercept, rng)
    synth_rows.admit(columns, hospital, habits, died, first_row, rng)
    if hospital.fault == "units":
        apply_unit_fault(columns)
    sinks["patient"].add(synth_rows.patient_table(columns, hospital, rng))
    sinks["apacheApsVar"].add(synth_rows.aps_table(columns, absent))
    sinks["apachePredVar"].add(synth_rows.pred_table(columns, absent, rng))
    sinks["apachePatientResult"].add(synth_rows.result_table(columns, intercept, rng))
    return columns


def _write_hours(
    hospital: Hospital, columns: dict[str, Array], seed: int, sinks: Mapping[str, _Sink]
) -> None:
    """Append a hospital's hours, chunk by chunk; lab and vitalPeriodic have a stream of their own."""
    rng, raw = (open_stream(seed, hospital.name, label) for label in ("hours", "periodic"))
    for chunk in synth_hours.chunks(columns):
        grid = synth_hours.draw_grid(chunk, hospital, rng)
        if "los_dyn" in sinks:
            sinks["los_dyn"].add(synth_hours.grid_table(chunk, *grid))
            sinks["los_sta"].add(synth_hours.static_table(chunk))
        if "lab" in sinks:
            sinks["lab"].add(synth_hours.lab_table(chunk, *grid, 1 + sinks["lab"].rows, raw))
            sinks["vitalPeriodic"].add(
                synth_hours.vital_table(chunk, *grid, 1 + sinks["vitalPeriodic"].rows, raw)
            )
