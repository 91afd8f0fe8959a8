"""Partitioners: every row at one site, skewed as asked, equal by seed."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from fedray.data import partition
from fedray.data.digit_images import digits
from fedray.data.site import SiteData
from fedray.errors import DataError

X = np.arange(600, dtype=np.float32).reshape(300, 2)
Y = np.arange(300) % 3
DEALS = [(partition.iid, {}), (partition.dirichlet, {"alpha": 0.3}), (partition.quantity, {"alpha": 0.3}),
         (partition.shards, {"per_site": 2}), (partition.feature_shift, {"sd": 0.0})]


def rows_of(data):
    return {site: sorted((opener()["x"][:, 0] / 2).int().tolist()) for site, opener in data.items()}


@pytest.mark.parametrize(("deal", "knobs"), DEALS)
def test_every_row_is_at_one_site_and_the_seed_decides(deal, knobs):
    first, again, other = (deal(X, Y, num_sites=7, seed=seed, **knobs) for seed in (1, 1, 2))
    assert sorted(itertools.chain.from_iterable(rows_of(first).values())) == list(range(300))
    assert rows_of(first) == rows_of(again) != rows_of(other)
    assert first.version == again.version != other.version
    assert list(first.sizes.values()) == [len(rows) for rows in rows_of(first).values()]


def test_rows_are_dealt_with_their_labels():
    site = partition.dirichlet(X, Y, num_sites=5, seed=3)["site2"]()
    assert torch.equal(site["y"], (site["x"][:, 0] / 2).long() % 3)
    assert sum(len(site.splits[name]) for name in site.splits) == len(site["y"])


def test_small_alpha_skews_labels_and_large_does_not():
    spread = [np.std([float((opener()["y"] == 0).float().mean()) for opener in
                      partition.dirichlet(X, Y, num_sites=6, alpha=alpha, seed=0).sites.values()])
              for alpha in (0.1, 1000.0)]
    assert spread[0] > 0.2 and spread[1] < 0.05


def test_shards_give_few_labels_a_site():
    data = partition.shards(X, Y, num_sites=15, per_site=2, seed=0)
    assert max(len(opener()["y"].unique()) for opener in data.sites.values()) <= 2


def test_quantity_skews_sizes_and_leaves_no_site_empty():
    sizes = list(partition.quantity(X, Y, num_sites=20, alpha=0.2, seed=0).sizes.values())
    assert min(sizes) >= 1 and max(sizes) > 45 and sum(sizes) == 300


def test_feature_shift_moves_each_site_by_one_offset():
    plain, moved = (partition.feature_shift(X, Y, num_sites=3, sd=sd, seed=5)["site1"]()["x"]
                    for sd in (0.0, 1.0))
    offset = moved - plain
    assert torch.allclose(offset, offset[:1].expand_as(offset), atol=1e-3) and offset.abs().max() > 1


def test_natural_keeps_sites_as_they_came():
    data = partition.natural(X, Y, by=["b", "a", "c"] * 100)
    assert list(data) == ["a", "b", "c"] and rows_of(data)["b"] == list(range(0, 300, 3))


def test_many_sites_pickle_the_table_once():
    data = partition.iid(np.zeros((10_000, 25), np.float32), np.zeros(10_000), num_sites=100)
    assert len(pickle.dumps(data)) < 1.5 * 10_000 * 26 * 4 and data.outcome == "binary"
    assert pickle.loads(pickle.dumps(data))["site07"]()["x"].shape == (100, 25)


def test_a_site_data_keeps_its_columns():
    table = SiteData({"x": torch.zeros(20, 3), "y": torch.zeros(20), "reference": torch.arange(20.0)})
    assert partition.iid(table, num_sites=4)["site0"]()["reference"].shape == (5,)


def test_a_deal_that_cannot_be_is_refused():
    with pytest.raises(DataError, match="400 sites for 300 rows. Fix: num_sites=300"):
        partition.iid(X, Y, num_sites=400)
    with pytest.raises(DataError, match="Fix: a larger alpha"):
        partition.dirichlet(X, Y, num_sites=10, alpha=0.001, min_rows=20)
    with pytest.raises(DataError, match=r"valid_fraction=0.5 and test_fraction=0.5"):
        partition.iid(X, Y, num_sites=2, valid_fraction=0.5, test_fraction=0.5)


def test_digits_are_images_at_sites():
    pytest.importorskip("sklearn")
    data = digits(num_sites=5, alpha=0.5, seed=0)
    site = data["site0"]()
    assert site["x"].shape[1:] == (1, 8, 8) and float(site["x"].max()) == 1.0
    assert data.num_classes == 10 and data.outcome == "classes" and sum(data.sizes.values()) == 1797


def test_digits_without_scikit_learn_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"Fix: pip install 'fedray\[report\]'"):
        digits()
