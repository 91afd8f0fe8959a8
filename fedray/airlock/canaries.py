"""Canaries: made-up rows that a site plants among its own, to see whether an update tells of them.

    canaries = Canaries(count=8, seed=secret)
    data = canaries.planted(data)                      # in the site's own process, before it trains
    airlock(withhold=[Exposure(canaries)])

Where a canary can be told from its like, a patient can be. A canary trains like any row, so plant few.
Source: Carlini et al., The secret sharer, USENIX Security 2019; deviations: rows in place of texts, the rank
is among `references` draws from the same distribution, and the exposures of all canaries are averaged. Wrong
outcomes are the worst case of Aerni, Zhang, Tramer, Evaluations of machine learning privacy defenses are
misleading, CCS 2024.
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
from fedray.settings import check_numbers, check_whole


@dataclass(frozen=True)
class Canaries:
    """How many rows are planted, and how many of their like only serve for comparison.

    Each takes every column from another row of the site, so that it looks like a row and is none, and has the
    outcome that a linear rule of the site's rows finds least likely: a model has it right only where it has
    learnt the row by heart. Canaries are the rows before the last `references`, which are in no split.
    `seed` is the site's secret: who knows it knows the canaries. For outcomes of classes, 0 and 1 among them.
    """

    count: int = 8
    references: int = 255
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("Canaries", count=self.count, references=self.references)

    def planted(self, dataset: Dataset) -> Dataset:
        """Return the data set with canaries among the training rows of every site."""
        sites = {site: Planted(self, opened, site) for site, opened in dataset.items()}
        sizes = {site: size + self.count for site, size in dataset.sizes.items()}
        return replace(dataset, sites=sites, sizes=sizes, version=f"{dataset.version}+{self.count}canaries")

    def plant(self, data: SiteData, key: Key) -> SiteData:
        """Return a site's data with its canaries and references."""
        generator, rows, more = key.generator(), data.num_rows, self.count + self.references
        made = {name: _shuffled(column, more, generator) for name, column in data.items()}
        made["y"] = _unlikely(data["x"], data["y"], made["x"])
        columns = {name: torch.cat([column, made[name]]) for name, column in data.items()}
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
    found: Tensor = flat.gather(0, places).view(count, *column.shape[1:])
    return found


def _unlikely(x: Tensor, y: Tensor, made: Tensor) -> Tensor:
    """Return, for made-up rows, the outcome that a linear rule of the true ones finds least likely."""
    classes = torch.unique(y)

    def table(rows: Tensor) -> Tensor:
        flat = rows.flatten(1).double().nan_to_num()
        return torch.cat([flat, torch.ones(len(flat), 1, dtype=torch.float64)], dim=1)

    known, is_class = table(x), (y[:, None] == classes).double()
    gram = known.T @ known + torch.eye(known.shape[1], dtype=torch.float64)
    rule = torch.linalg.solve(gram, known.T @ is_class)
    found: Tensor = classes[(table(made) @ rule).argmin(1)]
    return found


@dataclass(frozen=True)
class Exposure:
    """Refuse an update whose model has learnt the canaries themselves, beyond what it knows of their like.

    A canary whose loss is the r-th smallest among m references has exposure log2(m + 1) - log2(r), in bits.
    A model that tells nothing has 1.44 on average, +- 1.44 / sqrt(count).
    """

    canaries: Canaries
    limit: float = 4.0
    name: ClassVar[str] = "canary exposure in bits"

    def __post_init__(self) -> None:
        check_numbers("Exposure", least=0, limit=self.limit)

    def check(self, leaving: Leaving) -> Finding:
        """Rank the canaries, both outcomes of a row alike: only references with its outcome count."""
        if leaving.data.num_rows <= self.canaries.count + self.canaries.references:
            return Finding(self.name, math.nan, self.limit)  # made-up rows, before the run
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
