"""Find, check and read eICU-CRD tables, csv or csv.gz: whole where they are small, in chunks where they are
not.

Every problem is a DataError that names table, folder and remedy, and never a value. Messages of the readers
below are not passed on: they quote the cell that they could not read.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import csv

from fedray.errors import DataError

ENDINGS = (".csv", ".csv.gz")
_BYTES_A_ROW = 80  # of vitalPeriodic in full; decides the size of a chunk, not what is read
_BROKEN = (OSError, EOFError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError,
           pa.ArrowInvalid, zlib.error)


def find_table(src: Path, name: str) -> Path | None:
    """Return the path of a table in the folder `src`, None if there is none."""
    return next((src / f"{name}{ending}" for ending in ENDINGS if (src / f"{name}{ending}").is_file()), None)


def check_table(src: Path, name: str, columns: Sequence[str]) -> Path:
    """Return the path of a table after looking at its header line alone.

    Raises: DataError if the folder, the table or a column is missing, or the file cannot be read.
    """
    if not src.is_dir():
        raise DataError(f"eICU tables: {src} is not a folder. Fix: give the folder that holds patient.csv.gz "
                        "and the other tables as --src (the open demo: `fedray data get eicu-demo`)")
    path = find_table(src, name)
    if path is None:
        raise DataError(f"eICU tables: {name}.csv or {name}.csv.gz is missing in {src}. Fix: copy it there "
                        "with its eICU name (the open demo: `fedray data get eicu-demo`)")
    try:
        present = list(pd.read_csv(path, nrows=0).columns)
    except _BROKEN as error:
        raise _unreadable(path, error) from None
    missing = [column for column in columns if column not in present]
    if missing:
        raise DataError(f"eICU tables: {path.name} in {src} has no column {', '.join(missing)}. Fix: restore "
                        "the table from the original; eICU-CRD 2.0's names are expected in its header line")
    return path


def read_table(path: Path, *, numbers: Sequence[str] = (), texts: Sequence[str] = ()) -> pd.DataFrame:
    """Return the named columns of a table that fits into memory; blank cells become NaN.

    Raises: DataError if the file is broken or a cell of `numbers` is neither a number nor blank.
    """
    try:
        frame = pd.read_csv(path, usecols=[*numbers, *texts], dtype=dict.fromkeys(texts, "str"),
                            low_memory=False)
    except _BROKEN as error:
        raise _unreadable(path, error) from None
    for name in numbers:
        column = pd.to_numeric(frame[name], errors="coerce")
        if (column.isna() & frame[name].notna()).any():
            raise DataError(f"eICU tables: column {name} of {path.name} must hold numbers or blanks and "
                            "holds text. Fix: restore the table from the original")
        frame[name] = column
    return frame


def stream_table(path: Path, types: Mapping[str, pa.DataType], chunk_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the columns of a table in parts of about `chunk_rows` rows; some thirty parts are in memory.

    Raises: DataError if the file is broken, or a cell does not have its column's type.
    """
    blank = csv.ConvertOptions(include_columns=list(types), column_types=dict(types),
                               strings_can_be_null=True)
    block = csv.ReadOptions(block_size=max(1 << 16, chunk_rows * _BYTES_A_ROW), use_threads=False)
    try:
        with csv.open_csv(path, read_options=block, convert_options=blank) as reader:
            yield from reader
    except _BROKEN as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"eICU tables: {path.name} in {path.parent} cannot be read ({type(error).__name__}): it "
                     "may be cut off, of another format or not readable for you. Fix: compare its sha256 "
                     "with the original and copy it again")
