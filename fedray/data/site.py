"""What a site holds, and what a data factory returns.

`SiteData` is a site's table: tensors with one first dimension (patients) and row numbers of its splits.
`Dataset` maps site names to functions that open a `SiteData`; they run on the host that holds the site,
never on the driver, so a `Dataset` is cheap to pickle and holds no patient row.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedray.errors import DataError

SPLITS = ("train", "valid", "test")
_TOGETHER = threading.Lock()  # trials that train together hold the same sites


class SiteData(Mapping[str, Tensor]):
    """Columns of one site, each a tensor whose first dimension counts the same rows.

    By convention `x` is float32 (rows, features), NaN where missing, and `y` is float32 (rows,) of 0/1 for a
    binary outcome or int64 (rows,) for classes. `splits` maps train/valid/test to int64 row numbers; without
    splits every row is a training row. Raises DataError where columns differ in length.
    """

    __slots__ = ("_views", "columns", "splits")

    def __init__(self, columns: Mapping[str, Tensor], splits: Mapping[str, Tensor] | None = None) -> None:
        self.columns = dict(columns)
        lengths = {name: int(column.shape[0]) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"columns of one site differ in their number of rows: {lengths}")
        rows = next(iter(lengths.values()), 0)
        none = torch.empty(0, dtype=torch.int64)
        if splits is None:
            splits = {"train": torch.arange(rows)}
        self.splits = {name: splits.get(name, none) for name in SPLITS}
        self._views: dict[str, SiteData] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def num_rows(self) -> int:
        """Number of patients in all splits together."""
        return int(next(iter(self.columns.values())).shape[0]) if self.columns else 0

    def view(self, split: str) -> "SiteData":
        """Return the rows of one split (copied once, then kept); the view's own rows are all training rows."""
        if split not in self._views:
            rows = self.splits[split]
            is_all = len(rows) == self.num_rows and torch.equal(rows, torch.arange(self.num_rows))
            self._views[split] = SiteData(
                self.columns if is_all else {name: column[rows] for name, column in self.columns.items()}
            )
        return self._views[split]

    @staticmethod
    def together(sites: Sequence["SiteData"]) -> None:
        """Let the training rows of several sites lie in one table a column; nothing that is read changes.

        A batch over many sites is then one gather. Sites whose columns differ in kind are left as they are.
        """
        with _TOGETHER:
            SiteData._lay_together(sites)

    @staticmethod
    def _lay_together(sites: Sequence["SiteData"]) -> None:
        views = [site.train for site in sites]
        kinds = [{n: (c.dtype, c.device, c.shape[1:]) for n, c in view.columns.items()} for view in views]
        if len(views) < 2 or any(kind != kinds[0] for kind in kinds):
            return
        for name in kinds[0]:
            columns = [view.columns[name] for view in views]
            if len({column.untyped_storage().data_ptr() for column in columns}) == 1:
                continue  # they lie in one table already
            parts = torch.cat(columns).split([len(column) for column in columns])
            for site, view, part in zip(sites, views, parts, strict=True):
                if site.columns[name] is view.columns[name]:
                    site.columns[name] = part
                view.columns[name] = part

    @property
    def train(self) -> "SiteData":
        """The training rows."""
        return self.view("train")

    @property
    def valid(self) -> "SiteData":
        """The validation rows."""
        return self.view("valid")

    @property
    def test(self) -> "SiteData":
        """The test rows."""
        return self.view("test")

    def blank(self, rows: int = 4) -> "SiteData":
        """Return a made-up site with the same columns and zeros in a few rows, which are in every split."""
        everywhere = torch.arange(rows)
        return SiteData(
            {
                name: torch.zeros((rows, *column.shape[1:]), dtype=column.dtype)
                for name, column in self.columns.items()
            },
            dict.fromkeys(SPLITS, everywhere),
        )

    def to(self, device: torch.device) -> "SiteData":
        """Return the same rows on a device; row numbers stay in memory."""
        return SiteData({name: column.to(device) for name, column in self.columns.items()}, self.splits)

    def with_columns(self, **columns: Tensor) -> "SiteData":
        """Return the same rows and splits with columns added or replaced."""
        return SiteData({**self.columns, **columns}, self.splits)


Open = Callable[[], SiteData]


@dataclass(frozen=True)
class Dataset(Mapping[str, Open]):
    """A named set of sites, each opened by a function without arguments.

    `features` names the columns of `x`; `outcome` is "binary", "classes", "number" or "tasks"
    (a table of 0, 1 and -1, missing, as wide as the site's own tasks); `sizes` gives rows per
    site where that is known without opening (it balances packs and feeds the memory forecast); `regions` maps
    sites to declared regions; `version` is a hash of what the data is, so that runs can be compared. Where
    sites hold other columns of the same records, `linkage` (linkage.py) says how their rows are brought into
    one order.
    """

    sites: Mapping[str, Open]
    name: str = "data"
    features: tuple[str, ...] = ()
    outcome: str = "binary"
    num_classes: int = 2
    sizes: Mapping[str, int] = field(default_factory=dict)
    regions: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    linkage: Any = None

    def __getitem__(self, site: str) -> Open:
        return self.sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def select(self, sites: Mapping[str, Open] | list[str] | tuple[str, ...]) -> "Dataset":
        """Return the data set of these sites alone, in the order given."""
        names = list(sites)
        return replace(
            self,
            sites={name: self.sites[name] for name in names},
            sizes={name: self.sizes[name] for name in names if name in self.sizes},
            regions={name: self.regions[name] for name in names if name in self.regions},
        )
