"""Bring columns to one scale over all sites, by two federated sums; no row moves. What `fedray run` does, in one call."""

from dataclasses import dataclass
from typing import Any

import fedray as fr
from fedray.data.prepare import Clip, Preparation, contract_of, fit_preparation, pooled_mean
from fedray.data.site import Dataset


@dataclass(frozen=True)
class FitPreparation:
    """Fit the preparation from the two sums, at the server."""

    clip: Clip

    def __call__(self, total: Any, squares: Any) -> Preparation:
        """Return the preparation."""
        return fit_preparation(self.clip, total, squares)


def standardising(data: Dataset) -> fr.Algorithm:
    """Return the program that fits a preparation: counts, sums, then centred second moments of training rows."""
    clip = Clip.of(data.features, contract_of(data))
    return fr.algorithms.moments(clip.moments, pooled_mean, clip.centred, FitPreparation(clip))


def standardise(federation: Any, data: Dataset, passes: Any = ()) -> Preparation:
    """Fit clip limits, z-scores, mean imputation and missing indicators, and let every site apply them from now on.

    Returns the preparation; its `features` are the columns of `x` afterwards. Run it before `fit`.
    """
    preparation: Preparation = fr.compute(standardising(data), federation, passes=passes)
    federation.prepare(preparation)
    return preparation
