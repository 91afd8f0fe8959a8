"""What a site's table breaks, said without its contents: column, check and a band of the count, never a value
or row.

Start reading at `check_frame`. An outlier is no error: only a share of the rows outside the plausible range
that a wrong unit would explain is. `read_columns` is the reading that a table must pass.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fedray.data.contract import Column, near
from fedray.errors import DataError

if TYPE_CHECKING:
    from fedray.data.contract import Contract

UNIT_SHARE = 0.5  # more of the measured rows than this outside, and a unit that explains it: an error
ALL_SHARE = 0.9  # more than this is an error without an explanation, in MIN_ALL rows
MIN_ALL = 10
RANGE_SHARE = 0.2  # more than this is a warning: limits that clip the outermost percent stay far below
MIN_OUTSIDE = 3  # fewer rows prove nothing at a hospital of ten stays
MIN_EXPLAINED = 0.8  # share of the rows that a guessed unit must bring into the range
_TEXT_ROLES = ("group", "site", "id")
Array = np.ndarray

CONVERSIONS = (  # unit of the contract, unit found, contract = scale * found + offset, words in the name
    ("mg/dL", "umol/L", 1 / 88.42, 0.0, ("crea",)),  # molar masses: creatinine 113.12 g/mol
    ("mg/dL", "umol/L", 1 / 17.1, 0.0, ("bili",)),  # bilirubin 584.7
    ("mg/dL", "mmol/L", 18.016, 0.0, ("glu",)),  # glucose 180.16
    ("mg/dL", "mmol/L", 2.801, 0.0, ("bun", "urea")),  # nitrogen of urea 28.01
    ("mg/dL", "mmol/L", 4.008, 0.0, ("ca", "calcium")),
    ("mg/dL", "mmol/L", 2.431, 0.0, ("mg", "magnesium")),
    ("mg/dL", "mmol/L", 3.097, 0.0, ("phos",)),
    ("umol/L", "mg/dL", 88.42, 0.0, ("crea",)),
    ("umol/L", "mg/dL", 17.1, 0.0, ("bili",)),
    ("mmol/L", "mg/dL", 1 / 18.016, 0.0, ("glu",)),
    ("mmol/L", "mg/dL", 1 / 9.008, 0.0, ("lac",)),
    ("g/dL", "g/L", 0.1, 0.0, ()), ("g/L", "g/dL", 10.0, 0.0, ()),
    ("g/dL", "mmol/L", 1.611, 0.0, ("hgb", "hemo")),
    ("degC", "degF", 5 / 9, -160 / 9, ()), ("degF", "degC", 1.8, 32.0, ()), ("degC", "K", 1.0, -273.15, ()),
    ("mmHg", "kPa", 7.50062, 0.0, ()), ("kPa", "mmHg", 0.133322, 0.0, ()),
    ("kg", "lb", 0.45359, 0.0, ()), ("kg", "g", 0.001, 0.0, ()), ("cm", "in", 2.54, 0.0, ()),
    ("cm", "m", 100.0, 0.0, ()),
    ("%", "a fraction of 1", 100.0, 0.0, ()), ("1", "%", 0.01, 0.0, ()),
    ("10^9/L", "cells/uL", 0.001, 0.0, ()), ("years", "months", 1 / 12, 0.0, ()),
    ("years", "days", 1 / 365.25, 0.0, ()),
    ("h", "min", 1 / 60, 0.0, ()), ("min", "h", 60.0, 0.0, ()), ("mL/24 h", "L/24 h", 1000.0, 0.0, ()),
)
_ANY = (("times 10", 0.1), ("times 100", 0.01), ("times 1000", 0.001), ("divided by 10", 10.0),
        ("divided by 1000", 1000.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One broken rule of one column at one site; safe to leave the site. `level` is "error" or "warning"."""

    site: str
    column: str
    check: str
    count: str
    text: str
    fix: str
    level: str = "error"

    def __str__(self) -> str:
        place = f"site {self.site}: " if self.site else ""
        rows = f" ({self.count} rows)" if self.count else ""
        return f"{place}{self.text}{rows}. Fix: {self.fix}"


def band(count: int) -> str:
    """Return the power of ten that a count lies in, as text: 0, 1-9, 10-99, ... Never an exact count."""
    if count == 0:
        return "0"
    low = 10 ** (len(str(count)) - 1)
    return f"{low}-{10 * low - 1}"


def check_frame(contract: "Contract", frame: pd.DataFrame, site: str = "") -> list[Finding]:
    """Return what the table breaks, errors first."""
    found: list[Finding] = []
    if not len(frame):
        found.append(_finding(site, "", "rows", 0, "the table has no rows", "fill it, or leave the site out"))
    known = [str(name) for name in frame.columns]
    for column in contract.columns:
        if column.role in ("ignore", "site"):
            continue
        if column.name not in known:
            if column.required:
                found.append(_finding(site, column.name, "missing column", None,
                                      f"no column {column.name}{near(column.name, known)}",
                                      f"add or rename it, as contract {contract.name} asks"))
        elif column.role in _TEXT_ROLES:
            found += _check_names(site, column, frame[column.name])
        else:
            found += _check_values(site, column, frame[column.name], contract.task)
    return sorted(found, key=lambda finding: finding.level != "error")


def refuse(findings: Iterable[Finding], where: str = "") -> None:
    """Raise one DataError for the errors among findings, the first few in words; warnings pass."""
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        more = f"; then mend {len(errors) - 1} more, see `fedray data validate`" if len(errors) > 1 else ""
        raise DataError(f"{where + ': ' if where else ''}{errors[0]}{more}")


def read_columns(contract: "Contract", frame: pd.DataFrame) -> pd.DataFrame:
    """Return the contract's columns as float64 with NaN for missing: see `Contract.apply_missing`."""
    out: dict[str, pd.Series | Array] = {}
    for column in contract.columns:
        if column.role in ("ignore", "site"):
            continue
        if column.name not in frame.columns:
            if column.required:
                raise DataError(f"no column {column.name}{near(column.name, map(str, frame.columns))}. "
                                f"Fix: add or rename it, as contract {contract.name} asks")
            if column.role not in (*_TEXT_ROLES, "split"):
                out[column.name] = np.full(len(frame), np.nan)
        elif column.role in _TEXT_ROLES:
            out[column.name] = frame[column.name]
        else:
            out[column.name] = read_values(column, frame[column.name])[0]
    return pd.DataFrame(out, index=frame.index)


def read_values(column: Column, series: pd.Series) -> tuple[Array, Array]:
    """Return a column as float64 with NaN where missing, and which cells could not be read, (rows,) bool."""
    blank = series.isna().to_numpy(copy=True)
    if pd.api.types.is_datetime64_any_dtype(series) or pd.api.types.is_timedelta64_dtype(series):
        return np.full(len(series), np.nan), ~blank
    if pd.api.types.is_numeric_dtype(series):
        text = None
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        text = series.astype("str").str.strip()
        values = pd.to_numeric(text, errors="coerce").to_numpy(np.float64)
        blank |= (text == "").to_numpy()
    numbers = values
    if column.codes is not None:
        values, coded = _decode(column, text, values)
        unread = ~coded
    else:
        unread = ~np.isfinite(values)
    for code in column.missing:
        blank |= _equals(code, text, numbers)
    return np.where(blank | unread, np.nan, values), unread & ~blank


def _decode(column: Column, text: pd.Series | None, values: Array) -> tuple[Array, Array]:
    """Return the number of each cell's code, and which cells hold a code or a code's number."""
    out, coded = np.full(len(values), np.nan), np.zeros(len(values), bool)
    for code, number in column.codes or ():
        as_number = _as_number(code)
        hit = values == (number if as_number is None else as_number)
        if text is not None:
            hit |= (text == code).to_numpy()
        out[hit & ~coded] = number
        coded |= hit
    return out, coded


def _equals(code: float | str, text: pd.Series | None, numbers: Array) -> Array:
    number = _as_number(code)
    hit = np.zeros(len(numbers), bool) if number is None else numbers == number
    return hit if text is None else hit | (text == str(code)).to_numpy()


def _as_number(code: float | str) -> float | None:
    try:
        return float(code)
    except ValueError:
        return None


def _finding(site: str, column: str, check: str, count: int | None, text: str, fix: str,
             level: str = "error") -> Finding:
    return Finding(site=site, column=column, check=check, count="" if count is None else band(count),
                   text=text, fix=fix, level=level)


def _check_names(site: str, column: Column, series: pd.Series) -> list[Finding]:
    found = []
    blank = int(series.isna().sum())
    if blank and column.role != "site":
        found.append(_finding(site, column.name, "blank", blank, f"column {column.name} ({column.role}) is "
                                                                 "blank",
                              "fill it: rows of one patient are kept together by it"))
    twice = int(series.dropna().duplicated().sum())
    if column.role == "id" and twice:
        found.append(_finding(site, column.name, "duplicate ids", twice, f"column {column.name} holds ids "
                                                                         "twice",
                              "keep one row an id"))
    return found


def _check_values(site: str, column: Column, series: pd.Series, task: str) -> list[Finding]:
    values, unread = read_values(column, series)
    name, measured = column.name, values[np.isfinite(values)]
    if unread.any():
        what = "codes that the contract does not list" if column.codes else "what is not a finite number"
        fix = (f"use {', '.join(text for text, _ in column.codes)}, or extend codes" if column.codes else
               "write numbers, and list other words for missing in the contract under missing")
        kind = "code" if column.codes else "type"
        return [_finding(site, name, kind, int(unread.sum()), f"column {name} holds {what}", fix)]
    if column.role == "outcome":
        return _check_outcome(site, column, values, task)
    found = []
    absent = len(values) - len(measured)
    if column.role == "split" and absent:
        found.append(_finding(site, name, "blank", absent, f"the split column {name} is blank", "fill it"))
    wrong = int((~np.isin(measured, (0, 1))).sum()) if column.kind == "flag" else 0
    if wrong:
        found.append(_finding(site, name, "flag", wrong, f"column {name} must be 0 or "
                                                         "1", "recode it as 0 and 1"))
    if absent > column.max_missing * len(values):
        found.append(_finding(site, name, "missing values", absent,
                              f"column {name} is missing in more than {column.max_missing:.0%} of the rows",
                              "look whether the column is filled, or raise max_missing in the contract"))
    return found + _check_range(site, column, measured)


def _check_outcome(site: str, column: Column, values: Array, task: str) -> list[Finding]:
    name, blank = column.name, int(np.isnan(values).sum())
    if blank:
        return [_finding(site, name, "missing outcome", blank, f"the outcome {name} is missing",
                         "leave out the rows without an outcome")]
    if task == "number":
        return []
    legal = np.isin(values, (0, 1)) if task == "binary" else (values >= 0) & (values == np.round(values))
    if not legal.all():
        expected = "0 or 1" if task == "binary" else "whole numbers from 0"
        return [_finding(site, name, "outcome", int((~legal).sum()), f"the outcome {name} must be {expected}",
                         "recode it, or give its codes in the contract")]
    if len(values) and len(np.unique(values)) == 1:
        return [_finding(site, name, "one class", None, f"the outcome {name} has one class only",
                         "none needed: the site can train, but has no AUROC of its own", "warning")]
    return []


def _check_range(site: str, column: Column, measured: Array) -> list[Finding]:
    low = -np.inf if column.low is None else column.low
    high = np.inf if column.high is None else column.high
    outside = measured[(measured < low) | (measured > high)]
    if len(outside) < MIN_OUTSIDE or len(outside) <= RANGE_SHARE * len(measured):
        return []
    unit = column.unit or "the contract's unit"
    share = len(outside) / len(measured)
    guess = likely_unit(column, outside, any_power=share > UNIT_SHARE)
    looks = f"; it looks like {guess}" if guess else ""
    fix = f"convert it to {unit}" if guess else f"look at its unit ({unit} is expected), or widen its range"
    is_error = (guess and share > UNIT_SHARE) or (share > ALL_SHARE and len(outside) >= MIN_ALL)
    level = "error" if is_error else "warning"
    return [_finding(site, column.name, "range", len(outside),
                     f"column {column.name} lies outside its range in {unit}{looks}", fix, level)]


def likely_unit(column: Column, outside: Array, any_power: bool = True) -> str:
    """Return the unit that brings most of the values into the range, "" if none does; named ones first."""
    if column.low is None or column.high is None:
        return ""
    middle = (column.low + column.high) / 2
    best: tuple[tuple[bool, float], str] | None = None
    for unit, other, scale, offset, words in CONVERSIONS:
        named = _is_named(column.name, words)
        if unit == column.unit and (named or not words) and _explains(column, scale * outside + offset):
            rank = (not named, abs(float(np.median(scale * outside + offset)) - middle))
            best = min(best, (rank, other)) if best else (rank, other)
    if best or not any_power:
        return best[1] if best else ""
    return next((f"{unit} {words}" for words, scale in _ANY if _explains(column, scale * outside)
                 for unit in [column.unit or "it"]), "")


def _is_named(name: str, words: Sequence[str]) -> bool:
    """Tell whether one of the words of a column's name starts with one of these."""
    return any(part.startswith(word) for part in name.lower().replace("-", "_").split("_") for word in words)


def _explains(column: Column, converted: Array) -> bool:
    return float(((converted >= column.low) & (converted <= column.high)).mean()) >= MIN_EXPLAINED
