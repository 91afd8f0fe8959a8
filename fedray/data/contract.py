"""What the columns of a table mean, agreed between all sites: the one thing hospitals must agree on before
training.

A contract is a short YAML file or a dict: name, unit, plausible range and missing codes of each column, and
which one is the outcome. Start reading at `Contract`. Columns are always matched by name, never by position;
what a table breaks is said by `Contract.check` (`findings.py`) without a value or a row number, so a finding
may leave the site.

    name: icu_mortality
    version: 2
    outcome: died
    columns:
      age:        {unit: years, low: 16, high: 90}
      creatinine: {unit: mg/dL, low: 0.2, high: 12, log1p: true, missing: [-1]}
      vent:       {kind: flag}
      died:       {codes: {Alive: 0, Expired: 1}}
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedray.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from fedray.data.findings import Finding

ROLES = ("feature", "outcome", "reference", "split", "group", "site", "id", "ignore")
KINDS = ("number", "flag", "code")
TASKS = ("binary", "classes", "number")
SPLIT_CODES = (("train", 0.0), ("valid", 1.0), ("test", 2.0))
_SINGLE_ROLES = ("outcome", "reference", "group", "site", "id")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a site's table.

    `low` and `high` are the plausible range in `unit`, and the public limits to clip at; `log1p` says that
    the column is skewed. `missing` are numbers or texts that mean "not measured", besides blank. `codes` are
    the texts allowed and the number each stands for: a mapping, or a list (numbers stand for themselves,
    texts for their place). `max_missing` is the largest share of missing rows accepted; a column that is not
    `required` may be absent from a site and is then missing throughout. A flag is 0, 1 or missing, without a
    range of its own.
    """

    name: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    role: str = "feature"
    kind: str = "number"
    log1p: bool = False
    missing: tuple[float | str, ...] = ()
    codes: tuple[tuple[str, float], ...] | None = None
    max_missing: float = 1.0
    required: bool = True

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise DataError("contract: a column has no name. Fix: give each column a name of its own")
        for field, allowed in (("role", ROLES), ("kind", KINDS)):
            _one_of(f"contract, column {self.name}: {field}", getattr(self, field), allowed)
        for field in ("low", "high"):
            limit = getattr(self, field)
            if limit is not None and not _is_finite(limit):
                raise DataError(f"contract, column {self.name}: {field} must be a number. Fix: leave "
                                f"{field} out, or give the limit in the column's unit")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise DataError(f"contract, column {self.name}: low={self.low} must be below high={self.high}. "
                            "Fix: exchange them")
        if self.log1p and (self.low is None or self.low <= -1):
            raise DataError(f"contract, column {self.name}: log1p needs low above -1. Fix: give low, or "
                            "log1p: false")
        if not _is_finite(self.max_missing) or not 0 <= self.max_missing <= 1:
            raise DataError(f"contract, column {self.name}: max_missing must be a share from 0 to 1. "
                            "Fix: max_missing: 0.5")
        object.__setattr__(self, "missing", _as_tuple(self.missing))
        object.__setattr__(self, "codes", _as_codes(self.name, self.codes, self.role))

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults, without the name."""
        told: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)
                                if field.name != "name" and getattr(self, field.name) != field.default}
        if "missing" in told:
            told["missing"] = list(self.missing)
        if self.codes is not None:
            told["codes"] = dict(self.codes)
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """The columns that every site of a data set has, and what is to be predicted. Hashable and picklable."""

    name: str
    columns: tuple[Column, ...]
    outcome: str
    version: str = "1"
    task: str = "binary"
    sources: tuple[str, ...] = ()
    notes: str = ""

    def __post_init__(self) -> None:
        _one_of(f"contract {self.name}: task", self.task, TASKS)
        names = [column.name for column in self.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"contract {self.name}: column {', '.join(twice)} is given twice. Fix: remove "
                            "one")
        if self.outcome not in names:
            raise DataError(f"contract {self.name}: the outcome {self.outcome!r} is not among its columns"
                            f"{near(self.outcome, names)}. Fix: add it under columns")
        columns = tuple(replace(column, role="outcome") if column.name == self.outcome else column
                        for column in self.columns)
        for role in _SINGLE_ROLES:
            held = [column.name for column in columns if column.role == role]
            if len(held) > 1:
                raise DataError(f"contract {self.name}: {' and '.join(held)} both have the role {role}. "
                                f"Fix: give one of them role: ignore")
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "sources", tuple(self.sources))
        object.__setattr__(self, "version", str(self.version))

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise DataError(f"contract {self.name} has no column {name!r}{near(name, self.names)}. "
                        "Fix: use a name that it has")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns."""
        return tuple(column.name for column in self.columns)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of `x`."""
        return tuple(column.name for column in self.columns if column.role == "feature")

    @property
    def num_classes(self) -> int:
        """Number of classes: 2 for a binary outcome, the codes of the outcome for classes (0 if unknown)."""
        codes = self[self.outcome].codes
        return 2 if self.task == "binary" else 1 + int(max(number for _, number in codes)) if codes else 0

    def role(self, role: str) -> str | None:
        """Return the name of the first column with this role, None if there is none."""
        return next((column.name for column in self.columns if column.role == role), None)

    @property
    def digest(self) -> str:
        """SHA-256 of the whole contract, equal on every machine."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as `from_dict` and JSON take them; the order of columns is kept."""
        told: dict[str, Any] = {"name": self.name, "version": self.version, "outcome": self.outcome,
                                "task": self.task}
        if self.sources:
            told["sources"] = list(self.sources)
        if self.notes:
            told["notes"] = self.notes
        # a list, so that sorting the keys, which a digest does, keeps the order of the features
        return {**told, "columns": [{"name": column.name, **column.to_dict()} for column in self.columns]}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], where: str = "contract") -> "Contract":
        """Read a contract; `columns` is a list of mappings with a name, or a mapping from name to the rest.

        Raises: DataError that names the key and its nearest known spelling.
        """
        _known(where, given, [field.name for field in fields(cls)], needed=("name", "outcome", "columns"))
        columns = tuple(_column(where, entry) for entry in _entries(where, given["columns"]))
        outcome = str(given["outcome"])
        if outcome not in [column.name for column in columns]:
            columns = (*columns, Column(outcome, role="outcome"))
        rest = {key: value for key, value in given.items() if value is not None}
        return cls(**{**rest, "columns": columns, "outcome": outcome,
                      "sources": _as_tuple(given.get("sources"))})

    @classmethod
    def load(cls, path: str | Path) -> "Contract":
        """Read a contract from a YAML (or JSON) file. Raises: DataError."""
        import yaml
        try:
            given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"contract: there is no file {path}. Fix: give the YAML file that names "
                            "columns, units and the outcome") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"contract {path} cannot be read ({type(error).__name__}). Fix: make it a "
                            "readable text file") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" in line {mark.line + 1}" if mark else ""
            raise DataError(f"contract {path} is not YAML{line}. Fix: see docs/add-dataset.md for an "
                            "example") from None
        if not isinstance(given, Mapping):
            raise DataError(f"contract {path} holds no keys. Fix: give name, outcome and columns")
        return cls.from_dict(given, f"contract {path}")

    def save(self, path: str | Path) -> None:
        """Write a YAML file that `load` reads back to an equal contract."""
        import yaml
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, width=110), encoding="utf-8")

    def check(self, frame: "pd.DataFrame", site: str = "") -> "list[Finding]":
        """Return what a site's table breaks, errors first, without any value or row number of the table."""
        from fedray.data.findings import check_frame
        return check_frame(self, frame, site)

    def apply_missing(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """Return the contract's columns, in its order: codes as their numbers, NaN where missing.

        Number, flag and code columns become float64; group, site and id columns stay as they are; ignored and
        unknown columns go. A column that is not required and not there becomes NaN throughout.
        Raises: DataError for a required column that is not there.
        """
        from fedray.data.findings import read_columns
        return read_columns(self, frame)


def near(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean ...?)` for a name that is close to known ones, else nothing."""
    by_lower = {other.lower(): other for other in known}
    close = [by_lower[found] for found in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)]
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _one_of(what: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise DataError(f"{what} is {value!r}, not one of {', '.join(allowed)}{near(str(value), allowed)}. "
                        "Fix: use one of these")


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _as_codes(name: str, codes: Any, role: str) -> tuple[tuple[str, float], ...] | None:
    """Return (text, number) pairs from a mapping, a list of numbers, a list of texts, or pairs."""
    if codes is None:
        return SPLIT_CODES if role == "split" else None
    if isinstance(codes, Mapping):
        pairs = list(codes.items())
    elif all(isinstance(code, tuple) for code in codes):
        pairs = list(codes)
    elif all(_is_finite(code) for code in codes):
        pairs = [(f"{code:g}", code) for code in codes]
    else:
        pairs = [(code, place) for place, code in enumerate(codes)]
    if not pairs or not all(_is_finite(number) for _, number in pairs):
        raise DataError(f"contract, column {name}: codes must give a number for each text. "
                        "Fix: codes: {Alive: 0, Expired: 1}")
    return tuple((str(text), float(number)) for text, number in pairs)


def _known(where: str, given: Mapping[str, Any], known: Sequence[str], needed: Sequence[str] = ()) -> None:
    for key in given:
        if key not in known:
            raise DataError(f"{where}: unknown key {key!r}{near(str(key), known)}. Fix: use "
                            f"{', '.join(known)}")
    lacking = [key for key in needed if given.get(key) in (None, "")]
    if lacking:
        raise DataError(f"{where}: {', '.join(lacking)} is not given. Fix: add it")


def _entries(where: str, columns: Any) -> list[dict[str, Any]]:
    if isinstance(columns, Mapping):
        columns = [{"name": str(name), **(entry or {})} if isinstance(entry or {}, Mapping) else None
                   for name, entry in columns.items()]
    if not isinstance(columns, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in columns):
        raise DataError(f"{where}: columns must map each name to its settings. "
                        "Fix: columns: {age: {unit: years, low: 16, high: 90}}")
    return [dict(entry) for entry in columns]


def _column(where: str, entry: Mapping[str, Any]) -> Column:
    known = [field.name for field in fields(Column)]
    _known(f"{where}, column {entry.get('name', '?')}", entry, known, needed=("name",))
    given = {key: value for key, value in entry.items() if value is not None}
    return Column(**{**given, "name": str(entry["name"]), "missing": _as_tuple(entry.get("missing"))})
