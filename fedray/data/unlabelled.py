"""Data with few labels, and rows without any: studies of semi-supervised training, and public rows.

A row without a label has `NO_LABEL`, -1, for its label, as in `fedray.learn.supervision`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedray.data.site import Dataset, Open, SiteData
from fedray.errors import DataError
from fedray.learn.supervision import NO_LABEL
from fedray.rng import Key
from fedray.settings import is_number


@dataclass(frozen=True)
class OpenFewLabels:
    """Open a site and hide the labels of most of its training rows, or leave those rows out."""

    open: Open
    site: str
    share: float
    seed: int
    keeps_rows: bool

    def __call__(self) -> SiteData:
        """Return the site."""
        data = self.open()
        rows = data.splits["train"]
        draws = torch.rand(len(rows), generator=Key(self.seed, 0, self.site, "few labels").generator())
        is_kept = draws < self.share
        if not self.keeps_rows:
            return SiteData(data.columns, {**data.splits, "train": rows[is_kept]})
        y = data["y"].clone()
        y[rows[~is_kept]] = NO_LABEL
        return data.with_columns(y=y)


def few_labels(data: Dataset, share: float, seed: int = 0, keeps_rows: bool = True) -> Dataset:
    """Return the data with labels for this share of the training rows, each drawn by itself.

    The other training rows have no label (-1); without `keeps_rows` they are left out, which is what training
    on labels alone sees: the same rows for the same seed. Validation and test rows keep their labels.
    Raises DataError where the share is not in (0, 1].
    """
    if not (is_number(share) and 0 < share <= 1):
        raise DataError(f"few_labels: share={share!r} must be above 0 and at most 1")
    sites: Mapping[str, Open] = {
        site: OpenFewLabels(data[site], site, share, seed, keeps_rows) for site in data
    }
    version = f"{data.version}, {share} labelled, seed {seed}" if data.version else ""
    return replace(data, sites=dict(sites), version=version)


def public_rows(path: str | Path) -> dict[str, Tensor]:
    """Read rows that all parties may see from a .npy file (rows, columns), scaled as the sites' columns are.

    Raises DataError where there is no such file, or it holds no table of numbers.
    """
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"public rows: {path} is not a .npy file. Fix: write it with numpy.save") from error
    if table.ndim < 2 or not len(table) or not np.issubdtype(table.dtype, np.number):
        raise DataError(f"public rows: {path} holds no table (rows, columns) of numbers")
    return {"x": torch.from_numpy(table.astype(np.float32))}
