"""Record linkage: bring the rows of several sites into one order of the records that all of them hold.

    data = fr.data.parties({"clinic": a, "lab": b}, ["mrn"], outcome="died", key="link.key")
    with fr.simulate(data) as federation:
        linked = fr.data.link(federation)  # from here on row i is the same record at every site
        logistic = fr.algorithms.vertical_logistic()
        result = fr.fit(logistic, federation, init={"bias": torch.zeros(())}, rounds=50)

Each site sends the keyed hashes of its identifiers (identifiers.py says how they are made), the server keeps
those that every site has, sorted, and sends these back; a site orders its rows by them and drops the others.
What this tells, and to whom:
  the server: how many records each site has, which hashes two sites share and so how far any sites overlap,
      and the common order; hashes of one key and salt are the same in every linkage, so it can compare those
  each site: how many records all share, and which of its own are among them, that is, which of its patients
      are known at all the others; it gets no hash that it has not sent
  whoever has the key and a list of hashes: whose they are, by trying identifiers. So the server never has
      the key, and no site gets another's list.
Sites are trusted to send their own patients only: who adds a guessed number learns if all others know it.
Fewer common records than a public minimum are refused: there is no list of them then, and no number.
Two linkages that differ by a few rows tell who these are: link once, and keep what came of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import fedray as fr
from fedray.data.identifiers import LinkageKey, as_bytes, as_table, hashed
from fedray.data.site import SPLITS, Dataset, SiteData
from fedray.data.split import check_fractions, split_rows
from fedray.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

MIN_SHARED = 50  # common records: a smaller group would single its members out
RECORD = "record"  # the column of hashes; linking takes it away
NAME = "records"  # under which they leave
DISCLOSES = (
    "records are keyed hashes of all identifiers: the server sees each site's number and which are shared;",
    "each site learns which of its own are at all sites; who has the key can tell whose they are.",
)


class LinkedData(SiteData):
    """A site's part of records that all sites hold: as many rows everywhere, which is public."""

    __slots__ = ()

    def blank(self, rows: int | None = None) -> SiteData:
        """Return a made-up site; by default with as many rows as there are, so that its bytes are the real
        ones.
        """
        made = super().blank(self.num_rows if rows is None else rows)
        splits = self.splits if rows is None else made.splits
        return LinkedData(made.columns, splits)


@dataclass(frozen=True)
class Linked:
    """What a linkage came to: counts, never identifiers."""

    shared: int
    rows: Mapping[str, int]
    holder: str

    @property
    def dropped(self) -> dict[str, int]:
        """Rows of each site whose record is not at every site."""
        return {site: rows - self.shared for site, rows in self.rows.items()}


@dataclass(frozen=True, kw_only=True)
class Linkage:
    """How sites are linked: the smallest number of common records, the splits, and scaling.

    Splits are drawn from the seed alone, so that they are the same at every site. `scaled` brings a site's
    columns to mean 0 and deviation 1 over training rows and fills gaps with the mean: each column lies at one
    site as a whole, so these are the figures of all rows in one place.
    """

    min_shared: int = MIN_SHARED
    valid_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    scaled: bool = True

    def __post_init__(self) -> None:
        check_fractions(self.valid_fraction, self.test_fraction)
        if self.min_shared < 1:
            raise DataError(f"min_shared={self.min_shared} must be 1 or more. Fix: min_shared={MIN_SHARED}")

    @property
    def program(self) -> fr.Algorithm:
        """The program that compares hashes; its metrics are a `Compared`."""

        def round(server: Any, site: Any) -> fr.Outputs:
            sent = fr.gather(fr.map(sent_by, site.data), name=NAME)
            return fr.Outputs(server=server, metrics=fr.apply(Compare(self.min_shared), sent))

        return fr.Algorithm(
            lambda state: state, round, name="record linkage", needs_all=True, note="\n".join(DISCLOSES)
        )

    def link(self, federation: Any, passes: Sequence[Any] = ()) -> Linked:
        """Compare hashes, check what came, and let every site order its rows from now on."""
        found = fr.compute(self.program, federation, passes=passes)
        _check(found, self.min_shared)
        federation.prepare(Align(found.shared, self))
        (holder,) = found.holders
        return Linked(len(found.shared), found.rows, holder)


def link(federation: Any, *, passes: Sequence[Any] = (), **settings: Any) -> Linked:
    """Link the sites of a federation, once, before training; see `Linkage` for the settings.

    Raises DataError where too few records are shared, or not just one site holds labels.
    """
    return Linkage(**settings).link(federation, passes)


def sent_by(data: Any) -> dict[str, Any]:
    """Return what a site sends: its hashes, and whether it holds labels. Raises DataError without hashes."""
    if RECORD not in data:
        raise DataError("the sites' data have no hashed identifiers. Fix: make them with fr.data.parties")
    return {"hashes": data[RECORD], "holds": int("y" in data)}


@dataclass(frozen=True)
class Compared:
    """What the server found: common hashes in order (none below the minimum), rows, overlaps of two sites."""

    shared: Tensor
    rows: dict[str, int]
    overlaps: dict[tuple[str, str], int]
    holders: tuple[str, ...]


@dataclass(frozen=True)
class Compare:
    """Find the hashes that all sites sent."""

    min_shared: int

    def __call__(self, sent: Mapping[str, Mapping[str, Any]]) -> Compared:
        """Return them sorted, so that their order tells nothing."""
        held = {site: set(as_bytes(torch.as_tensor(told["hashes"]))) for site, told in sent.items()}
        common = sorted(set.intersection(*held.values()))
        if len(common) < self.min_shared:
            common = []
        overlaps = {pair: len(held[pair[0]] & held[pair[1]]) for pair in combinations(sorted(held), 2)}
        return Compared(
            as_table(common),
            {site: len(hashes) for site, hashes in sorted(held.items())},
            overlaps,
            tuple(site for site in sorted(sent) if sent[site]["holds"]),
        )


def _check(found: Compared, least: int) -> None:
    if len(found.rows) < 2:
        raise DataError("one site has nothing to be linked with. Fix: bring the others")
    if len(found.holders) != 1:
        names = f" ({', '.join(found.holders[:5])})" if found.holders else ""
        raise DataError(f"{len(found.holders)} of {len(found.rows)} sites hold the outcome{names}; just one "
                        "may. Fix: leave the outcome's column out of the tables of the others")
    if len(found.shared):
        return
    if not any(found.overlaps.values()):
        raise DataError("no two sites share a record. Likely causes: another key or another salt at each "
                        "site; identifiers of other kinds, or as numbers here and texts there (leading "
                        "zeros); sites without common patients")
    strangers = [site for site in found.rows
                 if not any(count for pair, count in found.overlaps.items() if site in pair)]
    if strangers:
        raise DataError(f"{', '.join(strangers[:5])} shares no record with any other site, the others do. "
                        "Likely causes: another key or another salt there, or identifiers written another "
                        "way")
    raise DataError(f"fewer than {least} records are at all {len(found.rows)} sites, the least that is used. "
                    "Fix: other sites or a longer time; a smaller min_shared singles patients out")


@dataclass(frozen=True)
class Align:
    """Order a site's rows by the common hashes, split them, and scale its columns."""

    shared: Tensor
    linkage: Linkage

    def __call__(self, data: SiteData) -> SiteData:
        """Return the common records. Raises DataError where the site's rows have changed since."""
        place = {each: row for row, each in enumerate(as_bytes(data[RECORD]))}
        rows = [place[each] for each in as_bytes(self.shared) if each in place]
        if len(rows) < len(self.shared):
            raise DataError(f"{len(self.shared) - len(rows)} common records are not here any more. Fix: link "
                            "again, now that the table has changed")
        asked = self.linkage
        part = split_rows(len(rows), asked.valid_fraction, asked.test_fraction, asked.seed, "linked")
        splits = {name: torch.from_numpy(np.flatnonzero(part == code)) for code, name in enumerate(SPLITS)}
        columns = {name: column[torch.tensor(rows)] for name, column in data.items() if name != RECORD}
        if asked.scaled:
            columns["x"] = _scaled(columns["x"], splits["train"])
        return LinkedData(columns, splits)


def _scaled(x_NF: Tensor, train: Tensor) -> Tensor:
    """Return columns minus their mean over their deviation (n - 1), of training rows; 0 where missing."""
    x = x_NF.double()
    known = x[train]
    count = (~known.isnan()).sum(0)
    mean = known.nansum(0) / count.clamp_min(1)
    squares = torch.nan_to_num(known - mean).square().sum(0)
    sd = (squares / (count - 1).clamp_min(1)).sqrt()
    scaled = (x - mean) / torch.where(sd > 0, sd, math.inf)  # a constant becomes 0
    return torch.nan_to_num(scaled, nan=0.0).to(x_NF.dtype)


@dataclass(frozen=True, slots=True)
class OpenParty:
    """Opens the table of one site that holds columns of common records, and hashes its identifiers there."""

    site: str
    table: "pd.DataFrame | str" = field(repr=False)
    identifiers: tuple[str, ...]
    outcome: str | None
    key: LinkageKey
    salt: str

    def __call__(self) -> SiteData:
        """Return `x` (its other columns of numbers), `record`, and `y` where it has the outcome.

        Raises DataError with columns and counts, never a value.
        """
        import pandas as pd
        frame = self._frame()
        absent = [name for name in self.identifiers if name not in frame.columns]
        if absent:
            raise DataError(f"site {self.site}: no column {', '.join(absent)}. Fix: identifiers=[...] that "
                            "all sites have")
        inputs = [name for name in frame.columns if name not in (*self.identifiers, self.outcome)
                  and pd.api.types.is_numeric_dtype(frame[name])]
        if not inputs:
            raise DataError(f"site {self.site}: no column of numbers besides identifiers and outcome. Fix: "
                            "code texts as numbers first")
        named = [frame[name] for name in self.identifiers]
        told = [column.astype(object).where(column.notna(), None).tolist() for column in named]
        columns = {"x": torch.from_numpy(frame[inputs].to_numpy(np.float32, copy=True, na_value=np.nan)),
                   RECORD: hashed(self.site, told, self.key.read(), self.salt)}
        if self.outcome in frame.columns:
            outcome = frame[self.outcome].to_numpy(np.float32, copy=True, na_value=np.nan)
            columns["y"] = torch.from_numpy(outcome)
            if columns["y"].isnan().any():
                raise DataError(f"site {self.site}: missing values in the outcome {self.outcome}. Fix: leave "
                                "those rows out")
        return SiteData(columns)

    def _frame(self) -> "pd.DataFrame":
        if not isinstance(self.table, str):
            return self.table
        import pandas as pd
        path = Path(self.table)
        try:
            if path.name.endswith(".parquet"):
                return pd.read_parquet(path)
            return pd.read_csv(path, dtype=dict.fromkeys(self.identifiers, "string"))  # zeros in front stay
        except (OSError, ValueError, EOFError, UnicodeError) as error:  # their messages may quote a cell
            raise DataError(f"site {self.site}: {path.name} cannot be read ({type(error).__name__}). Fix: "
                            "check that it is a whole CSV or Parquet file that you may read") from None


def parties(tables: "Mapping[str, pd.DataFrame | str | Path]", identifiers: Sequence[str], *,
            key: bytes | str | Path, outcome: str | None = None, salt: str = "", name: str = "parties",
            task: str = "binary", linkage: Linkage | None = None) -> Dataset:
    """Return sites that hold other columns of the same records: {site: frame, or the path of its file there}.

    `identifiers` are the columns that name a record; `outcome` is the column that one of the sites has. All
    other columns of numbers are inputs. `key` is the path of the shared key on each site's machine, or, for
    simulation, the key; `salt` names the study. `linkage` says how they are linked (`link` does it).
    """
    if not identifiers or isinstance(identifiers, str):
        raise DataError("parties: identifiers must name the columns that name a record. Fix: "
                        "identifiers=['mrn']")
    shared = LinkageKey(key if isinstance(key, bytes) else str(key))
    told = {site: str(table) if isinstance(table, (str, Path)) else table for site, table in tables.items()}
    openers = {str(site): OpenParty(str(site), table, tuple(identifiers), outcome, shared, salt)
               for site, table in told.items()}
    sizes = {str(site): len(table) for site, table in told.items() if not isinstance(table, str)}
    return replace(Dataset(openers, name=name, outcome=task, sizes=sizes), linkage=linkage or Linkage())
