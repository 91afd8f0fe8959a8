"""Deal one table to simulated sites, for research: even, by label skew, by size, by shards, or as it came.

Each function takes the rows of all sites together, as arrays or one `SiteData`, and returns a `Dataset` whose
openers hold row numbers and share the table, so nothing is copied per site on one host and a pickle holds the
table once. Equal arguments give equal sites on every machine. These are for simulation: the driver has the
rows.

    data = dirichlet(x, y, num_sites=20, alpha=0.3, seed=1)
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray.data.site import SPLITS, Dataset, SiteData
from fedray.data.split import check_fractions, split_rows, stream
from fedray.errors import DataError

Array = np.ndarray
Deal = Callable[[Array, np.random.Generator], list[Array]]
_TRIES = 1000  # draws of a Dirichlet deal until each site has `min_rows`: Li et al. 2022 redraw without end


def iid(x: Any, y: Any = None, *, num_sites: int, seed: int = 0, **splits: Any) -> Dataset:
    """Return sites of equal size (to one row) that are random samples of the same rows.

    `splits`, here and below: `valid_fraction` (0.1), `test_fraction` (0.2), `name`.
    """
    def deal(y: Array, rng: np.random.Generator) -> list[Array]:
        return np.array_split(rng.permutation(len(y)), num_sites)
    return _deal("iid", x, y, num_sites, seed, deal, splits)


def dirichlet(x: Any, y: Any = None, *, num_sites: int, alpha: float = 0.5, seed: int = 0, min_rows: int = 1,
              **splits: Any) -> Dataset:
    """Return sites that differ in their labels: the rows of each class are dealt in Dirichlet(alpha) shares.

    Small `alpha` means much skew. Draws again until each site has `min_rows`, so that none is empty. Raises:
    DataError if that does not come about. Source: Hsu, Qi, Brown, Measuring the effects of non-identical data
    distribution, 2019; the redraw is that of Li et al., Federated learning on non-IID data silos, ICDE 2022.
    """
    _positive("dirichlet", alpha=alpha)

    def deal(y: Array, rng: np.random.Generator) -> list[Array]:
        rows_by_class = [rng.permutation(np.flatnonzero(y == value)) for value in np.unique(y)]
        for _ in range(_TRIES):
            parts: list[list[Array]] = [[] for _ in range(num_sites)]
            for rows in rows_by_class:
                ends = (np.cumsum(rng.dirichlet(np.full(num_sites, alpha))) * len(rows)).astype(int)[:-1]
                for part, piece in zip(parts, np.split(rows, ends), strict=True):
                    part.append(piece)
            if min(sum(map(len, part)) for part in parts) >= min_rows:
                return [np.concatenate(part) for part in parts]
        raise DataError(f"partition dirichlet: no deal of {len(y)} rows with alpha={alpha} gave each of "
                        f"{num_sites} sites {min_rows} rows. Fix: a larger alpha, fewer sites, or min_rows=0")
    return _deal("dirichlet", x, y, num_sites, seed, deal, splits, (alpha, min_rows))


def quantity(x: Any, y: Any = None, *, num_sites: int, alpha: float = 0.5, seed: int = 0,
             **splits: Any) -> Dataset:
    """Return random samples whose sizes are in Dirichlet(alpha) shares, one row at least each.

    Source: Li et al., Federated learning on non-IID data silos, ICDE 2022, quantity skew.
    """
    _positive("quantity", alpha=alpha)

    def deal(y: Array, rng: np.random.Generator) -> list[Array]:
        share = np.cumsum(rng.dirichlet(np.full(num_sites, alpha)))[:-1]
        ends = (share * (len(y) - num_sites)).astype(int) + np.arange(1, num_sites)  # one row each first
        return np.split(rng.permutation(len(y)), ends)
    return _deal("quantity", x, y, num_sites, seed, deal, splits, (alpha,))


def shards(x: Any, y: Any = None, *, num_sites: int, per_site: int = 2, seed: int = 0,
           **splits: Any) -> Dataset:
    """Return sites of `per_site` shards each, cut from the rows sorted by label: few labels a site.

    Source: McMahan et al., Communication-efficient learning of deep networks, AISTATS 2017, section 3.
    """
    _positive("shards", per_site=per_site)

    def deal(y: Array, rng: np.random.Generator) -> list[Array]:
        order = np.lexsort((rng.random(len(y)), y))
        pieces = np.array_split(order, num_sites * per_site)
        places = rng.permutation(len(pieces)).reshape(num_sites, per_site)
        return [np.concatenate([pieces[place] for place in row]) for row in places]
    return _deal("shards", x, y, num_sites, seed, deal, splits, (per_site,))


def feature_shift(x: Any, y: Any = None, *, num_sites: int, sd: float = 0.5, scale_sd: float = 0.0,
                  seed: int = 0, **splits: Any) -> Dataset:
    """Return IID samples whose inputs each site measures differently: x * exp(N(0, scale_sd)) + N(0, sd).

    One draw per site and input, in units of the input's deviation over all rows; labels stay. NaN stays NaN.
    """
    if sd < 0 or scale_sd < 0:
        raise DataError(f"partition feature_shift: sd={sd} and scale_sd={scale_sd} must be 0 or more. Fix: "
                        "sd=0.5")
    even = iid(x, y, num_sites=num_sites, seed=seed, **{"name": "feature_shift", **splits})
    table = next(iter(even.sites.values())).table  # type: ignore[attr-defined]
    spread = np.nanstd(table["x"].numpy().reshape(table.num_rows, -1), 0).reshape(table["x"].shape[1:])
    moved = {}
    for site, opener in even.sites.items():
        rng = stream(seed, site, "feature shift")
        scale = np.exp(scale_sd * rng.standard_normal(spread.shape)).astype(np.float32)
        moved[site] = OpenPart(opener.site, opener.table, opener.rows, opener.part,  # type: ignore[attr-defined]
                               (scale, (sd * spread * rng.standard_normal(spread.shape)).astype(np.float32)))
    return Dataset(moved, even.name, even.features, even.outcome, even.num_classes, even.sizes,
                   version=_version(even.version, sd, scale_sd))


def natural(x: Any, y: Any = None, *, by: Sequence[Any] | Array | Tensor, seed: int = 0,
            **splits: Any) -> Dataset:
    """Return one site for each value of `by` (one value a row: the hospital, the ward, the writer), as it
    came.
    """
    names, site_of = np.unique(np.asarray(by).astype(str), return_inverse=True)

    def deal(y: Array, rng: np.random.Generator) -> list[Array]:
        if len(site_of) != len(y):
            raise DataError(f"partition natural: by has {len(site_of)} values for {len(y)} rows. Fix: one a "
                            "row")
        return [np.flatnonzero(site_of == place) for place in range(len(names))]
    return _deal("natural", x, y, len(names), seed, deal, splits, site_names=[str(name) for name in names])


@dataclass(frozen=True, slots=True, eq=False)
class OpenPart:
    """Opens some rows of a shared table; `part` is the split of each, `shift` the scale and offset of `x`."""

    site: str
    table: SiteData
    rows: Array
    part: Array
    shift: tuple[Array, Array] | None = None

    def __call__(self) -> SiteData:
        """Copy the site's rows out of the table."""
        rows = torch.from_numpy(self.rows)
        columns = {name: column[rows] for name, column in self.table.columns.items()}
        if self.shift is not None:
            scale, offset = map(torch.from_numpy, self.shift)
            columns["x"] = columns["x"] * scale + offset
        return SiteData(columns, {name: torch.from_numpy(np.flatnonzero(self.part == code))
                                  for code, name in enumerate(SPLITS)})


def _deal(kind: str, x: Any, y: Any, num_sites: int, seed: int, deal: Deal, splits: dict[str, Any],
          knobs: tuple[Any, ...] = (), site_names: Sequence[str] | None = None) -> Dataset:
    """Return the data set of a deal: rows to sites, then each site's own split, stratified by label."""
    name, valid_fraction, test_fraction = _read_splits(kind, splits)
    table = _as_table(x, y)
    _positive(kind, num_sites=num_sites)
    if num_sites > table.num_rows:
        raise DataError(f"partition {kind}: {num_sites} sites for {table.num_rows} rows. Fix: num_sites="
                        f"{table.num_rows} or fewer")
    labels = table["y"].numpy()
    parts = deal(labels, stream(seed, "", f"partition {kind}"))
    width = len(str(num_sites - 1))
    site_names = site_names or [f"site{place:0{width}d}" for place in range(num_sites)]
    outcome, classes = _kind_of(labels)
    sites = {}
    for site, dealt in zip(site_names, parts, strict=True):
        rows = np.sort(dealt)
        strata = None if outcome == "number" else labels[rows]
        part = split_rows(len(rows), valid_fraction, test_fraction, seed, site, label=strata)
        sites[site] = OpenPart(site, table, rows, part)
    features = tuple(f"x{place}" for place in range(table["x"].shape[1])) if table["x"].ndim == 2 else ()
    told = _version(_hash_table(table), kind, seed, valid_fraction, test_fraction, knobs, site_names)
    sizes = {site: len(opener.rows) for site, opener in sites.items()}
    return Dataset(sites, name, features, outcome, classes, sizes, version=told)


def _read_splits(kind: str, given: dict[str, Any]) -> tuple[str, float, float]:
    unknown = set(given) - {"name", "valid_fraction", "test_fraction"}
    if unknown:
        raise TypeError(f"partition {kind} takes no {', '.join(sorted(unknown))}; it takes name, "
                        "valid_fraction and test_fraction")
    valid_fraction, test_fraction = given.get("valid_fraction", 0.1), given.get("test_fraction", 0.2)
    check_fractions(valid_fraction, test_fraction)
    return given.get("name", kind), valid_fraction, test_fraction


def _as_table(x: Any, y: Any) -> SiteData:
    """Return arrays or tensors as a table, and a SiteData without its splits; 0/1 labels become float32."""
    if isinstance(x, SiteData):
        return SiteData(x.columns)
    if y is None:
        raise DataError("partition: labels are missing. Fix: give arrays x and y, or one SiteData")
    label = torch.as_tensor(np.asarray(y))
    is_classes = not label.is_floating_point() and label.dtype != torch.bool and bool((label > 1).any())
    label = label.to(torch.int64 if is_classes else torch.float32)
    return SiteData({"x": torch.as_tensor(np.asarray(x)).to(torch.float32), "y": label})


def _kind_of(labels: Array) -> tuple[str, int]:
    """Return outcome and number of classes: whole types are classes, 0/1 a binary outcome, else numbers."""
    if np.issubdtype(labels.dtype, np.integer):
        return "classes", int(labels.max()) + 1
    return ("binary" if np.isin(labels, (0, 1)).all() else "number"), 2


def _positive(kind: str, **knobs: float) -> None:
    for name, value in knobs.items():
        if not value > 0:
            raise DataError(f"partition {kind}: {name}={value} must be above 0. Fix: {name}=1")


def _hash_table(table: SiteData) -> str:
    return hashlib.sha256(b"".join(column.contiguous().numpy().tobytes()
                                   for _, column in sorted(table.columns.items()))).hexdigest()


def _version(*told: Any) -> str:
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]
