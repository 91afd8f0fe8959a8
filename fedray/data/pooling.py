"""All rows in one place: the pooled baseline of a study. It exists in simulation only.

A data set whose sites are hospitals of a real federation cannot be pooled: its openers run on the hospitals' own
machines and refuse to run here. `pooled` marks its one site, so that no run mistakes it for a hospital.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from fedray.data.site import SPLITS, Dataset, Open, SiteData
from fedray.errors import DataError

SITE = "pooled"


@dataclass(frozen=True)
class OpenAll:
    """Open every site and join the rows; each row keeps its split."""

    sites: Mapping[str, Open]

    def __call__(self) -> SiteData:
        """Return one table. Raises DataError where sites have different columns."""
        parts = [opener() for opener in self.sites.values()]
        names = list(parts[0])
        if any(set(part) != set(names) for part in parts):
            raise DataError("the sites have different columns and cannot be pooled. Fix: choose common features")
        splits: dict[str, list[torch.Tensor]] = {split: [] for split in SPLITS}
        before = 0
        for part in parts:
            for split in SPLITS:
                splits[split].append(part.splits[split] + before)
            before += part.num_rows
        columns = {name: torch.cat([part[name] for part in parts]) for name in names}
        return SiteData(columns, {split: torch.cat(rows) for split, rows in splits.items()})


def pooled(data: Dataset) -> Dataset:
    """Return the data set as one site that holds every row: what a model could learn without federation.

    Raises DataError for sites that are not simulated here.
    """
    if any(not getattr(opener, "is_simulated", True) for opener in data.sites.values()):
        raise DataError("pooled training moves every row to one place and is refused on a real federation. "
                        "Fix: run the baseline on simulated sites")
    return replace(data, sites={SITE: OpenAll(dict(data.sites))}, sizes={SITE: sum(data.sizes.values())} if data.sizes
                   else {}, regions={}, name=f"{data.name}, pooled")
