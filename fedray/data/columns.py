"""Deal the columns of a data set to simulated sites, for research on vertical algorithms.

The rows of all its sites become one table, whose columns are dealt out; each site gets rows in an order of
its own and lacks some of them, so that there is something to link. The identifiers are the rows' numbers. As
in `partition`, the driver has the rows.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedray.data.identifiers import hashed
from fedray.data.linkage import MIN_SHARED, RECORD, Linkage
from fedray.data.pooling import pooled
from fedray.data.site import Dataset, Open, SiteData
from fedray.data.split import stream
from fedray.errors import DataError


@dataclass(frozen=True, slots=True)
class OpenColumns:
    """Opens some columns of all rows: in an order of the site's own, without a share of them."""

    site: str
    of: Open
    places: tuple[int, ...]
    has_label: bool
    missing: float
    seed: int

    def __call__(self) -> SiteData:
        """Return the site's columns with the hashes of the rows' numbers."""
        table = self.of()
        order = stream(self.seed, self.site, "columns").permutation(table.num_rows)
        rows = torch.from_numpy(order[: table.num_rows - int(self.missing * table.num_rows)])
        columns = {"x": table["x"][rows][:, list(self.places)]}
        if self.has_label:
            columns["y"] = table["y"][rows]
        key = hashlib.sha256(f"fedray simulated key {self.seed}".encode()).digest()  # no secret: a simulation
        columns[RECORD] = hashed(self.site, [rows.tolist()], key, "simulation")
        return SiteData(columns)


def by_columns(of: Dataset, num_sites: int = 3, *, columns: Mapping[str, Sequence[str]] | None = None,
               missing: float = 0.0, min_shared: int = MIN_SHARED, valid_fraction: float = 0.1,
               test_fraction: float = 0.2, seed: int = 0, scaled: bool = True) -> Dataset:
    """Return sites that hold other columns of the same rows, the first of them the outcome too.

    Columns are dealt in their order, in equal parts, or as `columns` ({site: names}) says. Each site lacks a
    random share `missing` of the rows. What the sites are linked by comes with the data set.
    Raises: DataError where there are fewer columns than sites, or a name that is none.
    """
    if not 0 <= missing < 1:
        raise DataError(f"by_columns: missing={missing} must be a share, 0 or more and below 1. Fix: "
                        "missing=0.1")
    chosen = dict(columns) if columns is not None else _dealt(of.features, num_sites)
    unknown = sorted({name for names in chosen.values() for name in names} - set(of.features))
    if unknown or not chosen or not all(chosen.values()):
        told = f"{', '.join(unknown[:5])} is no feature of the data" if unknown else "a site has no column"
        raise DataError(f"by_columns: {told}. Fix: give each site features of the data")
    whole = pooled(of)
    (opener,) = whole.sites.values()
    sites: dict[str, Open] = {}
    for site, names in chosen.items():
        places = tuple(of.features.index(name) for name in names)
        sites[site] = OpenColumns(site, opener, places, not sites, missing, seed)
    linkage = Linkage(min_shared=min_shared, valid_fraction=valid_fraction, test_fraction=test_fraction,
                      seed=seed, scaled=scaled)
    told = repr((of.version, list(chosen.items()), missing, linkage))
    features = tuple(name for names in chosen.values() for name in names)
    return Dataset(sites, f"{of.name}, by columns", features, of.outcome, of.num_classes,
                   version=hashlib.sha256(told.encode()).hexdigest()[:16], linkage=linkage)


def _dealt(features: Sequence[str], num_sites: int) -> dict[str, list[str]]:
    if not 1 <= num_sites <= len(features):
        raise DataError(f"by_columns: {len(features)} features cannot be dealt to {num_sites} sites. Fix: "
                        f"num_sites={max(1, min(3, len(features)))}")
    parts = np.array_split(np.asarray(features, dtype=object), num_sites)
    return {f"site{place}": [str(name) for name in part] for place, part in enumerate(parts)}
