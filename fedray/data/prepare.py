"""Preparation of inputs, fitted over all sites without moving a row: clip, log, z-score, fill, indicators.

Start reading at `Preparation`. It is fitted by two federated sums over training rows, which
`algorithms.moments` runs: `moments` gives counts, sums and co-missing counts of a site, `centred` the squares
around the pooled means, and `fit_preparation` turns the totals into the preparation that every site then
applies and the model bundle carries.

    clip = Clip.of(data.features, contract_of(data))
    finish = lambda total, squares: fit_preparation(clip, total, squares)
    program = fr.algorithms.moments(clip.moments, pooled_mean, clip.centred, finish)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedray.data.site import Dataset, SiteData
from fedray.errors import DataError

if TYPE_CHECKING:
    from fedray.data.contract import Contract

INDICATOR_PREFIX = "missing_"
MIN_SD = 1e-6  # below this a column is a constant: it is centred and not scaled, so that it stays 0


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Fixed, public limits of each input, then log(1 + x) where flagged. Nothing here is learnt from data."""

    features: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    log1p: tuple[bool, ...]

    @classmethod
    def of(cls, features: Sequence[str], contract: "Contract | None" = None) -> "Clip":
        """Return the limits that a contract gives to these inputs; none where it gives none."""
        columns = [None if contract is None else contract[name] for name in features]
        infinity = float("inf")
        return cls(features=tuple(features),
                   low=tuple(-infinity if one is None or one.low is None else one.low for one in columns),
                   high=tuple(infinity if one is None or one.high is None else one.high for one in columns),
                   log1p=tuple(one is not None and one.log1p for one in columns))

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return (torch.tensor(self.low, dtype=torch.float64), torch.tensor(self.high, dtype=torch.float64),
                torch.tensor(self.log1p, dtype=torch.bool))

    def __call__(self, x_NF: Tensor) -> Tensor:
        """Return clipped and logged inputs, float64 (N rows, F features); NaN stays NaN."""
        if x_NF.shape[1:] != (len(self.features),):
            raise DataError(f"x has shape {tuple(x_NF.shape)}, the preparation knows {len(self.features)} "
                            "features. Fix: open the data set with the features that the preparation was "
                            "fitted on")
        low, high, log1p = self._tensors
        clipped = torch.minimum(torch.maximum(x_NF.to(torch.float64), low), high)  # both pass NaN on
        return torch.where(log1p, torch.log1p(clipped), clipped)

    def moments(self, data: SiteData) -> dict[str, Tensor]:
        """Return a site's sums over training rows, float64.

        `n` (F,) measured rows, `sum` (F,) of the clipped values, `missing` (F, F) rows in which both of two
        columns are missing, `rows` () all rows. Features whose missing counts agree with their co-missing
        count are always missing together, which is how equal patterns are found without looking at a row.
        """
        x_NF = self(data.train["x"])
        absent_NF = torch.isnan(x_NF)
        missing = absent_NF.to(torch.float64)
        return {"n": (~absent_NF).sum(0).to(torch.float64), "sum": torch.nan_to_num(x_NF, nan=0.0).sum(0),
                "missing": missing.T @ missing, "rows": torch.tensor(float(len(x_NF)), dtype=torch.float64)}

    def centred(self, data: SiteData, mean_F: Tensor) -> dict[str, Tensor]:
        """Return a site's sum of squares around the pooled means, `squares` (F,), float64."""
        deviation_NF = torch.nan_to_num(self(data.train["x"]) - mean_F.to(torch.float64), nan=0.0)
        return {"squares": deviation_NF.square().sum(0)}


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to a site's inputs before they reach a model; the same numbers at every site.

    Clip, log, minus `mean`, over `sd`, 0 where missing (imputation of the pooled mean). Then one column per
    `indicators` feature: 1 where it is missing and else 0, minus `indicator_mean`, over `indicator_sd`, so
    that these too have mean 0 and deviation 1 over the training rows of all sites. Deviations divide by n -
    1.
    """

    clip: Clip
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    indicators: tuple[str, ...] = ()
    indicator_mean: tuple[float, ...] = ()
    indicator_sd: tuple[float, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the prepared columns, in order."""
        return (*self.clip.features, *(f"{INDICATOR_PREFIX}{name}" for name in self.indicators))

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        place = {name: index for index, name in enumerate(self.clip.features)}
        wide = [torch.tensor(numbers, dtype=torch.float64)
                for numbers in (self.mean, self.sd, self.indicator_mean, self.indicator_sd)]
        return wide[0], wide[1], wide[2], wide[3], torch.tensor([place[name] for name in self.indicators],
                                                                dtype=torch.int64)

    def apply(self, x_NF: Tensor) -> Tensor:
        """Return the prepared inputs, float32 (N, features and indicators), without a missing value."""
        mean, sd, indicator_mean, indicator_sd, places = self._tensors
        scaled = torch.nan_to_num((self.clip(x_NF) - mean) / sd, nan=0.0)
        absent = torch.isnan(x_NF[:, places]).to(torch.float64)
        return torch.cat([scaled, (absent - indicator_mean) / indicator_sd], 1).to(torch.float32)

    def __call__(self, data: SiteData) -> SiteData:
        """Return a site's data with `x` prepared; everything else stays."""
        return data.with_columns(x=self.apply(data["x"]))

    def to_json(self) -> str:
        """Return JSON that `from_json` reads back to an equal preparation; no limit is null."""
        clip = {"features": self.clip.features, "low": _finite(self.clip.low),
                "high": _finite(self.clip.high), "log1p": self.clip.log1p}
        return json.dumps({"format": 1, "clip": clip, "mean": self.mean, "sd": self.sd,
                           "indicators": self.indicators, "indicator_mean": self.indicator_mean,
                           "indicator_sd": self.indicator_sd})

    @classmethod
    def from_json(cls, text: str) -> "Preparation":
        """Read a preparation back. Raises: DataError if the text is not one."""
        try:
            told = json.loads(text)
            clip = told.pop("clip")
            if told.pop("format") != 1:
                raise KeyError("format")
            infinity = float("inf")
            limits = Clip(features=tuple(clip["features"]), log1p=tuple(clip["log1p"]),
                          low=tuple(-infinity if one is None else one for one in clip["low"]),
                          high=tuple(infinity if one is None else one for one in clip["high"]))
            return cls(clip=limits, **{key: tuple(numbers) for key, numbers in told.items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError("the preparation of a model bundle cannot be read. Fix: write the bundle again "
                            "with this version of fedray") from None


def pooled_mean(total: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of each column over all sites, float64; 0 for a column that no site measured."""
    return total["sum"] / total["n"].clamp_min(1)


def fit_preparation(clip: Clip, sums: Mapping[str, Tensor], squares: Mapping[str, Tensor],
                    indicator_threshold: float = 0.02) -> Preparation:
    """Return the preparation from the totals of `Clip.moments` and `Clip.centred` over all sites.

    Columns missing in more than `indicator_threshold` of the rows get an indicator, one per distinct pattern
    of missing rows (the first column of a pattern gives the name); a column without any value gets none.
    Raises: DataError where there are no rows.
    """
    sums = {name: value.to(torch.float64).reshape(-1) if name != "missing" else value.to(torch.float64)
            for name, value in sums.items()}
    rows = float(sums["rows"].sum())
    if rows == 0:
        raise DataError("preparation: no site has a training row. Fix: look at the splits with "
                        "`fedray data describe`")
    mean = pooled_mean(sums)
    sd = _deviation(squares["squares"].to(torch.float64).reshape(-1), sums["n"])
    width = len(clip.features)
    missing_FF = sums["missing"].reshape(width, width)
    chosen = _distinct_patterns(missing_FF, rows, indicator_threshold)
    share = missing_FF.diagonal()[chosen] / rows
    indicator_sd = _deviation(rows * share * (1 - share), torch.full_like(share, rows))
    return Preparation(clip=clip, mean=tuple(mean.tolist()), sd=tuple(sd.tolist()),
                       indicators=tuple(clip.features[index] for index in chosen),
                       indicator_mean=tuple(share.tolist()), indicator_sd=tuple(indicator_sd.tolist()))


def contract_of(data: Dataset) -> "Contract | None":
    """Return the contract that the openers of a data set carry, None if they carry none; opens no site."""
    return getattr(next(iter(data.sites.values()), None), "contract", None)


def _distinct_patterns(missing_FF: Tensor, rows: float, threshold: float) -> list[int]:
    """Return the columns missing often enough, the first of each set that is missing in the same rows."""
    missing_FF = missing_FF.round()  # counts
    count = missing_FF.diagonal()
    chosen: list[int] = []
    for index in range(len(count)):
        often = bool(count[index] > threshold * rows) and bool(count[index] < rows)
        twin = any(bool(count[index] == count[other] == missing_FF[index, other]) for other in chosen)
        if often and not twin:
            chosen.append(index)
    return chosen


def _deviation(squares: Tensor, n: Tensor) -> Tensor:
    """Return the standard deviation over n - 1, and 1 for a constant."""
    sd = (squares / (n - 1).clamp_min(1)).sqrt()
    return torch.where(sd > MIN_SD, sd, torch.ones_like(sd))


def _finite(limits: tuple[float, ...]) -> list[Any]:
    return [None if abs(one) == float("inf") else one for one in limits]
