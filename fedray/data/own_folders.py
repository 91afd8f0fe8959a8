"""Tables that only the sites' own machines hold: the driver knows their contract and their names, no row.

Where a site's files lie is said on the cluster: by the site map's path, or by the environment variable
FEDRAY_SITE_DATA of its node. They are read, and checked against the contract, where they lie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedray.data.contract import Contract
from fedray.data.folder import Recipe, check_unique
from fedray.data.site import Dataset, SiteData
from fedray.data.tables import OpenTable, Split, files_of, recipe_of, version_of
from fedray.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def at_sites(contract: str | Path | Contract, sites: Sequence[str] | None = None, *,
             features: Sequence[str] | None = None, valid_fraction: float = 0.1, test_fraction: float = 0.2,
             split_seed: int = 0) -> Dataset:
    """Return a data set of sites that read their own folder of CSV or Parquet files, or their own file.

    A contract with a site column picks a site's rows by it; else all rows of its files are the site's. Nothing
    of the sites is opened here. Raises: DataError.
    """
    agreed = contract if isinstance(contract, Contract) else Contract.load(contract)
    if sites is None:
        raise DataError("at_sites: the sites are not named, and there is no site map to take them from. Fix: "
                        "sites=[...], or runtime=ray_cluster topology=from_cluster runtime.site_map=FILE")
    names = [str(site) for site in sites]
    check_unique(names, "at_sites")
    split = Split(valid_fraction=valid_fraction, test_fraction=test_fraction, seed=split_seed)
    recipe = recipe_of(agreed, features, split_seed)
    told = agreed.digest + repr((split, recipe.features, sorted(names)))
    return Dataset({name: OpenOwn(name, recipe, split) for name in names}, name=agreed.name,
                   features=recipe.features, outcome=agreed.task, num_classes=agreed.num_classes,
                   version=version_of(told))


@dataclass(frozen=True, slots=True)
class OpenOwn:
    """Opens one site from the files on its own machine."""

    site: str
    recipe: Recipe
    split: Split
    path: str = ""

    @property
    def contract(self) -> Contract:
        """The contract that the table must keep to."""
        return self.recipe.contract

    def at(self, path: str | Path) -> "OpenOwn":
        """Return the opener that reads a folder, or a file."""
        return OpenOwn(self.site, self.recipe, self.split, str(path))

    def frame(self) -> "pd.DataFrame":
        """Return the site's rows as they are in its files."""
        return self._table().frame()

    def __call__(self) -> SiteData:
        """Read, check and split the site's rows. Raises: DataError with site and column, never a value."""
        return self._table()()

    def _table(self) -> OpenTable:
        if not self.path:
            raise DataError(f"site {self.site}: nobody says where its data lie. Fix: sites.{self.site}.data in "
                            "the site map, or FEDRAY_SITE_DATA=FOLDER where its node's `ray start` runs")
        return OpenTable(self.site, tuple(map(str, files_of(Path(self.path)))), self.contract.role("site"),
                         self.recipe, self.split)
