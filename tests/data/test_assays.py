"""Generated assays: sizes, splits, what a seed fixes, what stays out of a data set that travels."""

import pickle

import pytest
import torch

import fedray as fr
from fedray.errors import DataError


def test_partners_have_compounds_and_tasks_of_their_own():
    data = fr.data.assays(3, seed=1, scale=0.1)
    opened = {name: data[name]() for name in data}
    widths = {site["y"].shape[1] for site in opened.values()}
    assert len(widths) == 3 and all(15 <= width <= 45 for width in widths)
    for site in opened.values():
        rows = site.num_rows
        assert 100 <= rows < 250 and site["x"].shape == (rows, 256)
        assert set(site["y"].unique().tolist()) == {-1.0, 0.0, 1.0}
        assert 0.05 < (site["y"] >= 0).double().mean() < 0.15
        assert sorted(torch.cat(list(site.splits.values())).tolist()) == list(range(rows))
        assert len(site.splits["train"]) == int(0.6 * rows)


def test_a_seed_fixes_every_label_and_the_data_set_holds_none():
    one, two, other = (fr.data.assays(2, seed=seed, scale=0.05) for seed in (4, 4, 5))
    assert torch.equal(one["partner1"]()["y"], two["partner1"]()["y"]) and one.version == two.version
    assert not torch.equal(one["partner0"]()["x"][:50], other["partner0"]()["x"][:50])
    assert len(pickle.dumps(one)) < 10_000


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="scale=2"):
        fr.data.assays(2, scale=2)
