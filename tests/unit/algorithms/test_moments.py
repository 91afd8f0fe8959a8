"""Federated standardisation equals the pooled table, also where a mean is large beside the spread."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.core.explain import egress_rows
from fedray.data.prepare import Clip, fit_preparation, pooled_mean
from fedray.data.site import SiteData

OFFSET = 1e6  # E[x^2] - E[x]^2 in float64 would lose 12 of 16 digits here


def rows():
    draws = np.random.default_rng(5)
    return {
        site: OFFSET * (site == "far") + draws.normal(size=(n, 2))
        for site, n in (("near", 7), ("far", 40), ("one", 1))
    }


def data():
    return {site: SiteData({"x": torch.from_numpy(x)}) for site, x in rows().items()}


def first(data):
    x = data.train["x"]
    return {"n": torch.tensor(float(len(x))).double(), "sum": x.sum(0)}


def means(total):
    return total["sum"] / total["n"]


def second(data, mean):
    return {"squares": (data.train["x"] - mean).square().sum(0)}


def finish(total, squares):
    return {"mean": means(total), "variance": squares["squares"] / total["n"]}


@pytest.mark.parametrize("packs", [1, 3])
def test_count_mean_and_variance_are_those_of_the_pooled_table(packs):
    with fr.simulate(data(), packs=packs) as federation:
        found = fr.compute(fr.algorithms.moments(first, means, second, finish), federation)
    pooled = np.vstack(list(rows().values()))
    assert np.allclose(found["mean"].numpy(), pooled.mean(0), rtol=1e-14, atol=0)
    assert np.allclose(found["variance"].numpy(), pooled.var(0), rtol=1e-12, atol=0)


def test_a_small_spread_far_from_zero_keeps_its_digits():
    shifted = {site: SiteData({"x": torch.from_numpy(x % OFFSET + OFFSET)}) for site, x in rows().items()}
    with fr.simulate(shifted, packs=2) as federation:
        found = fr.compute(fr.algorithms.moments(first, means, second, finish), federation)
    pooled = np.vstack([table["x"].numpy() for table in shifted.values()])
    assert np.allclose(found["variance"].numpy(), pooled.var(0), rtol=1e-12, atol=0)


@dataclass(frozen=True)
class Fit:
    clip: Any

    def __call__(self, total, squares):
        return fit_preparation(self.clip, total, squares)


def test_a_preparation_is_fitted_on_measured_training_rows_alone():
    table = {site: x.copy() for site, x in rows().items()}
    table["near"][2:5, 1] = np.nan
    sites = {
        site: SiteData({"x": torch.from_numpy(x)}, {"train": torch.arange(max(1, len(x) - 3))})
        for site, x in table.items()
    }
    clip = Clip.of(("one", "two"))
    with fr.simulate(sites, packs=2) as federation:
        program = fr.algorithms.moments(clip.moments, pooled_mean, clip.centred, Fit(clip))
        found = fr.compute(program, federation)
    train = np.vstack([x[: max(1, len(x) - 3)] for x in table.values()])
    assert np.allclose(found.mean, np.nanmean(train, 0), rtol=1e-12)
    assert np.allclose(found.sd, np.nanstd(train, 0, ddof=1), rtol=1e-12)
    assert found.indicators == ("two",)


def test_both_stages_leave_as_sums():
    program = fr.algorithms.moments(first, means, second, finish)
    found = [(row["stage"], row["name"], row["kind"]) for row in egress_rows(fr.compile(program))]
    assert found == [("1→2", "moments", "sum"), ("3→4", "squares", "sum")]
