"""Preparation: federated sums give what pandas gives over all training rows together."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from fedray.data.contract import Column, Contract
from fedray.data.prepare import Clip, Preparation, fit_preparation, pooled_mean
from fedray.data.site import SiteData
from fedray.errors import DataError

CONTRACT = Contract(name="t", outcome="y", columns=(
    Column("age", low=16, high=90), Column("crea", low=0.2, high=12, log1p=True),
    Column("ph", low=6.9, high=7.7), Column("pco2", low=15, high=95), Column("rare"), Column("flat"),
    Column("y", role="outcome")))
NAMES = list(CONTRACT.features)


def sites():
    rng = np.random.default_rng(0)
    out = []
    for rows in (40, 7, 90):
        x = np.stack([rng.normal(60, 30, rows), rng.lognormal(0.5, 1.5, rows),
                      rng.normal(7.4, 0.2, rows), rng.normal(40, 20, rows), rng.normal(0, 1, rows),
                      np.full(rows, 3.0)], 1)
        x[rng.random(rows) < 0.3, 1] = np.nan
        gases = rng.random(rows) < 0.6
        x[gases, 2] = x[gases, 3] = np.nan  # measured together: one pattern
        out.append(x.astype(np.float32))
    out[2][0, 4] = np.nan  # 1 of the training rows: below the threshold
    rows = [torch.arange(len(x)) for x in out]
    return [SiteData({"x": torch.from_numpy(x), "y": torch.zeros(len(x))},
                     {"train": row[:-3], "test": row[-3:]}) for x, row in zip(out, rows, strict=True)]


def total(parts):
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def fit(data):
    clip = Clip.of(NAMES, CONTRACT)
    sums = total([clip.moments(site) for site in data])
    squares = total([clip.centred(site, pooled_mean(sums)) for site in data])
    return fit_preparation(clip, sums, squares)


def by_pandas(data, rows):
    """Return the prepared features of `rows`, fitted with pandas on all training rows."""
    def clipped(frame):
        out = frame.copy()
        out["age"], out["crea"] = frame["age"].clip(16, 90), np.log1p(frame["crea"].clip(0.2, 12))
        out["ph"], out["pco2"] = frame["ph"].clip(6.9, 7.7), frame["pco2"].clip(15, 95)
        return out
    train = pd.DataFrame(np.concatenate([site.train["x"].double().numpy() for site in data]), columns=NAMES)
    mean, sd = clipped(train).mean(), clipped(train).std().replace(0, 1)
    absent = train[["crea", "ph"]].isna().astype(float)
    scaled = ((clipped(rows) - mean) / sd).fillna(0)
    flags = (rows[["crea", "ph"]].isna().astype(float) - absent.mean()) / absent.std()
    return pd.concat([scaled, flags.add_prefix("missing_")], axis=1)


def test_prepared_features_equal_a_pandas_reference_on_pooled_rows():
    data = sites()
    preparation = fit(data)
    for site in data:
        frame = pd.DataFrame(site["x"].double().numpy(), columns=NAMES)
        expected = by_pandas(data, frame)
        assert list(preparation.features) == list(expected.columns)
        np.testing.assert_allclose(preparation(site)["x"].numpy(), expected.to_numpy(), atol=1e-5)


def test_test_rows_do_not_change_the_fit():
    data = sites()
    changed = sites()
    for site in changed:
        site["x"][site.splits["test"]] = 1e3
    assert fit(changed) == fit(data)


def test_columns_missing_in_the_same_rows_share_one_indicator():
    assert fit(sites()).indicators == ("crea", "ph")


def test_a_column_that_no_site_measured_becomes_zero_without_an_indicator():
    data = [SiteData({"x": torch.tensor([[np.nan, 1.0], [np.nan, 2.0]]), "y": torch.zeros(2)})]
    clip = Clip.of(["a", "b"])
    sums = total([clip.moments(site) for site in data])
    preparation = fit_preparation(clip, sums, clip.centred(data[0], pooled_mean(sums)))
    assert preparation.indicators == () and preparation(data[0])["x"][:, 0].tolist() == [0, 0]


def test_large_means_lose_no_digits():
    x = torch.tensor([[1e7], [1e7 + 1], [1e7 + 2]])
    clip = Clip.of(["a"])
    data = SiteData({"x": x, "y": torch.zeros(3)})
    sums = clip.moments(data)
    assert fit_preparation(clip, sums, clip.centred(data, pooled_mean(sums))).sd == (1.0,)


def test_json_and_pickle_give_an_equal_preparation():
    preparation = fit(sites())
    site = sites()[0]
    for copy in (Preparation.from_json(preparation.to_json()), pickle.loads(pickle.dumps(preparation))):
        assert copy == preparation and torch.equal(copy(site)["x"], preparation(site)["x"])
    with pytest.raises(DataError, match="cannot be read. Fix:"):
        Preparation.from_json('{"format": 1}')


def test_other_features_are_refused():
    with pytest.raises(DataError, match="the preparation knows 6 features"):
        fit(sites()).apply(torch.zeros(3, 5))


def test_no_training_row_is_refused():
    empty = SiteData({"x": torch.zeros(0, 6), "y": torch.zeros(0)})
    with pytest.raises(DataError, match="no site has a training row"):
        fit([empty])
