"""Generated assays: partners with compounds and label spaces of their own, most labels missing.

Each partner has compounds of its own series (binary fingerprints) and assays of its own; a label is there for
one compound in ten. What makes a compound active is a common latent chemistry, of which an assay reads its own
mixture. No real compound is in it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fedray.data.site import Dataset, SiteData
from fedray.errors import DataError

BITS, LATENT = 256, 8
SERIES, SHARED_SERIES = 6, 12
LABELLED = 0.1
MISSING = -1.0
COMPOUNDS, TASKS = (1000, 2500), (150, 451)  # of a partner at full scale; the upper end is left out


@dataclass(frozen=True)
class OpenPartner:
    """Opens one of the partners; all are made at once, the first time that one is asked for."""

    number: int
    num_sites: int
    seed: int
    scale: float

    def __call__(self) -> SiteData:
        """Return the partner's compounds with their labels."""
        return _made(self.num_sites, self.seed, self.scale)[self.number]


def assays(num_sites: int = 10, seed: int = 0, scale: float = 1.0) -> Dataset:
    """Return partners: `x` (rows, 256) of 0 and 1, `y` (rows, assays of the partner) of 0, 1 and -1, missing.

    60 % are training rows, 20 % validation, 20 % test. `scale` is the share of 1,000 to 2,500 compounds and of
    150 to 450 assays a partner. Raises DataError on numbers that cannot be.
    """
    if num_sites < 1 or not 0 < scale <= 1:
        raise DataError(f"assays: num_sites={num_sites} and scale={scale}: give 1 or more, and a share in (0, 1]")
    sites = {f"partner{i}": OpenPartner(i, num_sites, seed, scale) for i in range(num_sites)}
    features = tuple(f"bit{i}" for i in range(BITS))
    return Dataset(
        sites, name="assays", features=features, outcome="tasks", version=f"1-{num_sites}-{seed}-{scale:g}"
    )


def _chemistry(draws: np.random.Generator) -> Any:
    """Return a function of fingerprints that gives their latent properties, the same for all partners."""
    first = draws.normal(size=(BITS, 96)) * (draws.random((BITS, 96)) < 0.15)
    second = draws.normal(size=(96, LATENT)) / np.sqrt(96)

    def latent(x: np.ndarray) -> np.ndarray:
        z = np.maximum(x @ first - 0.5, 0) @ second
        return (z - z.mean(0)) / (z.std(0) + 1e-9)

    return latent


@lru_cache(maxsize=2)
def _made(num_sites: int, seed: int, scale: float) -> tuple[SiteData, ...]:
    draws = np.random.default_rng(seed)
    latent = _chemistry(draws)
    common = draws.beta(0.4, 3.0, size=(SHARED_SERIES, BITS))
    return tuple(_partner(draws, latent, common, scale) for _ in range(num_sites))


def _partner(draws: np.random.Generator, latent: Any, common: np.ndarray, scale: float) -> SiteData:
    own = draws.beta(0.4, 3.0, size=(SERIES, BITS))
    series = np.concatenate([own, common[draws.choice(SHARED_SERIES, SERIES, replace=False)]])
    rows = max(10, int(scale * draws.integers(*COMPOUNDS)))
    tasks = max(2, int(scale * draws.integers(*TASKS)))
    x = (draws.random((rows, BITS)) < series[draws.integers(len(series), size=rows)]).astype(np.float32)
    wanted = latent(x) @ (draws.normal(size=(LATENT, tasks)) * (draws.random((LATENT, tasks)) < 0.25))
    wanted = 4.0 * (wanted - np.quantile(wanted, 0.7, axis=0)) / (wanted.std(0) + 1e-9)
    y = (draws.random(wanted.shape) < 1 / (1 + np.exp(-wanted))).astype(np.float32)
    y = np.where(draws.random(y.shape) < LABELLED, y, MISSING).astype(np.float32)
    order = torch.from_numpy(draws.permutation(rows))
    parts = torch.tensor_split(order, [int(0.6 * rows), int(0.8 * rows)])
    splits = dict(zip(("train", "valid", "test"), parts, strict=True))
    return SiteData({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, splits)
