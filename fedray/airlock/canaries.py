"""Canaries: made-up rows that a site plants among its own, to see whether an update tells that they were there.

    canaries = Canaries(count=8, seed=secret)
    data = canaries.planted(data)                      # in the site's own process, before it trains
    airlock(withhold=[Exposure(canaries)])

Where a canary can be told from its like, a patient can be. A canary trains like any row, so plant few.
Source: Carlini et al., The secret sharer, USENIX Security 2019; deviation: rows in place of texts, the rank is
among `references` draws from the same distribution, and the exposures of all canaries are averaged.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedray.airlock.leaving import Finding, Leaving
from fedray.data.site import Dataset, SiteData
from fedray.rng import Key


@dataclass(frozen=True)
class Canaries:
    """How many rows are planted, and how many of their like only serve for comparison.

    Each takes every column of `x` from another row of the site, so that it looks like a row and is none, and
    its outcome from a coin. Canaries are the rows before the last `references`, which are in no split.
    `seed` is the site's secret: who knows it knows the canaries.
    """

    count: int = 8
    references: int = 255
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.references < 1:
            raise ValueError(f"Canaries: count={self.count}, references={self.references} must be 1 or more")

    def planted(self, dataset: Dataset) -> Dataset:
        """Return the data set with canaries among the training rows of every site."""
        sites = {site: Planted(self, opened, site) for site, opened in dataset.items()}
        sizes = {site: size + self.count for site, size in dataset.sizes.items()}
        return replace(dataset, sites=sites, sizes=sizes, version=f"{dataset.version}+{self.count}canaries")

    def plant(self, data: SiteData, key: Key) -> SiteData:
        """Return a site's data with its canaries and references."""
        generator, rows, more = key.generator(), data.num_rows, self.count + self.references
        columns = {}
        for name, column in data.items():
            if name == "y":
                made = torch.randint(0, 2, (more, *column.shape[1:]), generator=generator).to(column.dtype)
            else:
                made = _shuffled(column, more, generator)
            columns[name] = torch.cat([column, made])
        planted = torch.arange(rows, rows + self.count)
        return SiteData(columns, {**data.splits, "train": torch.cat([data.splits["train"], planted])})

    def read(self, data: SiteData) -> tuple[SiteData, SiteData]:
        """Return the canaries and the references of a site."""
        start, end = data.num_rows - self.count - self.references, data.num_rows - self.references
        parts = (slice(start, end), slice(end, data.num_rows))
        canaries, references = (SiteData({n: c[part] for n, c in data.items()}) for part in parts)
        return canaries, references


@dataclass(frozen=True)
class Planted:
    """Open a site and plant."""

    canaries: Canaries
    opened: Callable[[], SiteData]
    site: str

    def __call__(self) -> SiteData:
        """Return the site's data with canaries."""
        return self.canaries.plant(self.opened(), Key(self.canaries.seed, 0, self.site, "canaries"))


def _shuffled(column: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw rows whose every number is that of some row, each from another."""
    flat = column.flatten(1) if column.dim() > 1 else column[:, None]
    places = torch.randint(0, len(flat), (count, flat.shape[1]), generator=generator)
    return flat.gather(0, places).view(count, *column.shape[1:])


@dataclass(frozen=True)
class Exposure:
    """Refuse an update whose model has learnt the canaries themselves, beyond what it knows of their like.

    A canary whose loss is the r-th smallest among m references has exposure log2(m + 1) - log2(r), in bits.
    A model that tells nothing has 1.44 on average, +- 1.44 / sqrt(count).
    """

    canaries: Canaries
    limit: float = 4.0
    name: ClassVar[str] = "canary exposure in bits"

    def check(self, leaving: Leaving) -> Finding:
        """Rank the canaries, both outcomes of a row alike: only references with its outcome count."""
        planted, others = self.canaries.read(leaving.data)
        return Finding(self.name, exposure(leaving, planted, others), self.limit)


def exposure(leaving: Leaving, planted: Any, others: Any) -> float:
    """Return the mean exposure of planted rows among others of the same outcome, in bits."""
    losses, known = leaving.losses(planted, others)
    bits = []
    for loss, outcome in zip(losses, planted["y"], strict=True):
        alike = known[others["y"] == outcome]
        rank = 1 + int((alike < loss).sum())
        bits.append(math.log2(len(alike) + 1) - math.log2(rank))
    return math.fsum(bits) / len(bits)
