"""Shards: what is read is what was written, as slices of one mapping; a broken folder is refused."""

import json
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.data.shard_files import INDEX, ShardDataset, read_shards
from fedray.data.shard_writer import made_up_sites, write_shards
from fedray.data.site import SPLITS, Dataset, SiteData
from fedray.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", made_up_sites(30, rows=10, features=3, valid=2, test=1, seed=5))


@pytest.fixture
def data(folder: Path) -> ShardDataset:
    return read_shards(folder)


def uneven() -> dict[str, SiteData]:
    """Two sites, names out of order, splits that interleave, and a row of no split."""
    x = torch.arange(12, dtype=torch.float32).reshape(6, 2)
    splits = {"train": torch.tensor([4, 0]), "test": torch.tensor([1]), "valid": torch.tensor([3, 5])}
    return {
        "b": SiteData({"x": x, "y": torch.arange(6)}, splits),
        "a": SiteData({"x": -x[:2], "y": torch.tensor([7, 8])}),
    }


def mapped_lines(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(folder))


def test_each_site_reads_back_as_it_was_written(data: ShardDataset) -> None:
    written = dict(made_up_sites(30, rows=10, features=3, valid=2, test=1, seed=5))
    assert list(data) == sorted(written)
    for name, site in written.items():
        for split in SPLITS:
            for column in ("x", "y"):
                assert torch.equal(data[name]().view(split)[column], site.view(split)[column])


def test_rows_are_put_into_the_order_of_the_splits(tmp_path: Path) -> None:
    data = read_shards(write_shards(tmp_path, uneven().items()))
    assert list(data) == ["a", "b"]
    site = data["b"]()
    assert site["y"].tolist() == [4, 0, 3, 5, 1, 2]  # train, valid, test, none
    assert {split: site.view(split)["y"].tolist() for split in SPLITS} == {
        "train": [4, 0], "valid": [3, 5], "test": [1]}
    assert {split: rows.tolist() for split, rows in site.splits.items()} == {
        "train": [0, 1], "valid": [2, 3], "test": [4]}
    assert site["y"].dtype == torch.int64 and data["a"]().num_rows == 2
    assert dict(data.sizes) == {"a": 2, "b": 6}
    assert data.sites.train_rows() == {"a": 2, "b": 2}


def test_a_split_is_a_slice_and_no_copy(data: ShardDataset) -> None:
    site = data["s0000004"]()
    row_bytes = site["x"].stride(0) * 4
    assert site.train["x"].data_ptr() == site["x"].data_ptr()
    assert site.test["x"].data_ptr() == site["x"].data_ptr() + 9 * row_bytes
    assert data["s0000004"]()["x"].data_ptr() == site["x"].data_ptr()
    assert site.train.train["x"].data_ptr() == site["x"].data_ptr()
    assert site.train.splits["train"].tolist() == list(range(7)) and site.train.test.num_rows == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are listed on Linux only")
def test_one_mapping_serves_all_sites_of_a_process(folder: Path, data: ShardDataset) -> None:
    data["s0000000"]()
    mappings, descriptors = mapped_lines(folder), len(os.listdir("/proc/self/fd"))
    kept = [data[name]().train for name in data]
    assert mappings > 0 and len(kept) == 30
    assert (mapped_lines(folder), len(os.listdir("/proc/self/fd"))) == (mappings, descriptors)


def test_reading_gives_no_warning_and_a_write_never_reaches_the_file(folder: Path) -> None:
    before = (folder / "column_x.npy").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_shards(folder)["s0000001"]()["x"].zero_()
    assert (folder / "column_x.npy").read_bytes() == before


def test_a_pickle_does_not_grow_with_sites_or_rows(tmp_path: Path) -> None:
    large = read_shards(write_shards(tmp_path / "large", made_up_sites(3000, rows=4, features=2)))
    small = read_shards(write_shards(tmp_path / "small", made_up_sites(3, rows=4, features=2)))
    assert len(pickle.dumps(large)) == len(pickle.dumps(small)) < 1000
    half = large.select([f"s{i:07d}" for i in range(0, 3000, 2)])
    assert len(pickle.dumps(half)) < 1500 * 9
    again = pickle.loads(pickle.dumps(half))
    assert list(again) == list(half) and dict(again.sizes) == dict(half.sizes)


def test_a_pickled_site_is_a_reference_to_its_rows(data: ShardDataset) -> None:
    for site in (data["s0000003"](), data["s0000003"]().test):
        told = pickle.dumps(site)
        assert len(told) < 400
        assert torch.equal(pickle.loads(told)["x"], site["x"])


def test_pairs_and_values_are_those_of_the_names(data: ShardDataset) -> None:
    for sites in (data, data.select(["s0000007", "s0000002"])):
        assert list(sites.sites.items()) == [(name, sites[name]) for name in sites]
        assert list(sites.sizes.values()) == [sites.sizes[name] for name in sites] == [10] * len(sites)
    assert data["s0000002"] in data.sites.values()


def test_selected_sites_keep_their_order_and_hide_the_others(data: ShardDataset) -> None:
    chosen = data.select(["s0000007", "s0000002"])
    assert list(chosen) == ["s0000007", "s0000002"] and len(chosen) == 2
    assert torch.equal(chosen["s0000002"]()["x"], data["s0000002"]()["x"])
    assert "s0000003" not in chosen and "s0000003" not in chosen.sizes
    assert list(chosen.select(["s0000002"])) == ["s0000002"]
    with pytest.raises(KeyError):
        chosen["s0000003"]
    with pytest.raises(KeyError):
        chosen.select(["s0000003"])


@pytest.mark.parametrize("name", ["", "s", "s00000011", "zz", "s\0", 7, None])
def test_an_unknown_name_is_in_no_shard(data: ShardDataset, name: object) -> None:
    assert name not in data.sites
    with pytest.raises(KeyError):
        data.sites[name]


def test_facts_and_regions_of_a_data_set_are_kept(tmp_path: Path) -> None:
    opened = uneven()
    openers = {name: (lambda site=site: site) for name, site in opened.items()}
    source = Dataset(openers, name="two", features=("u", "v"), outcome="classes", num_classes=9,
                     regions={"a": "north", "b": "east"})
    data = read_shards(write_shards(tmp_path, source))
    assert (data.name, data.features, data.outcome, data.num_classes) == ("two", ("u", "v"), "classes", 9)
    assert dict(data.regions) == {"a": "north", "b": "east"}
    assert dict(data.select(["b"]).regions) == {"b": "east"}


def test_columns_without_names_get_some(data: ShardDataset) -> None:
    assert data.features == ("x0", "x1", "x2")


def test_the_version_follows_the_content(tmp_path: Path) -> None:
    versions = [
        read_shards(write_shards(tmp_path / str(i), made_up_sites(3, rows=4, seed=seed))).version
        for i, seed in enumerate((1, 1, 2))
    ]
    assert versions[0] == versions[1] != versions[2]


def test_training_on_shards_gives_the_bits_of_the_same_sites_in_memory(data: ShardDataset) -> None:
    held = dict(made_up_sites(30, rows=10, features=3, valid=2, test=1, seed=5))
    model = fr.learn.logistic(3)
    algorithm = fr.algorithms.scaffold(fr.learn.sgd(model, lr=0.1, batch_size=4), num_sites=30)

    def train(sites: object) -> torch.Tensor:
        with fr.simulate(sites, packs=2) as federation:
            found = fr.fit(algorithm, federation, init=model.init(0), rounds=3,
                           schedule=fr.synchronous(cohort=8))
        return found.state.params.buffer

    assert torch.equal(train(data), train(held))


def cut(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])


def change_index(folder: Path, **facts: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, **facts}))


BREAKS = {
    "index is missing": (lambda folder: (folder / INDEX).unlink(), "no complete shards"),
    "index is not JSON": (lambda folder: cut(folder / INDEX, 20), "no complete shards"),
    "another format": (lambda folder: change_index(folder, format=99), "has format 99"),
    "a column is cut": (lambda folder: cut(folder / "column_x.npy", 900), "has 900 bytes, expected"),
    "a column is missing": (lambda folder: (folder / "column_y.npy").unlink(), "FileNotFoundError"),
    "a column is no array": (lambda folder: cut(folder / "column_y.npy", 4), "ValueError"),
    "sites are missing": (lambda folder: change_index(folder, num_sites=29), "expected (29,)"),
    "rows are missing": (lambda folder: change_index(folder, num_rows=299), "expected (299"),
    "ranges leave the column": (
        lambda folder: np.save(folder / "ranges.npy", np.load(folder / "ranges.npy") + 1), "do not cover"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_folder_is_refused_with_a_fix(folder: Path, case: str) -> None:
    change, message = BREAKS[case]
    change(folder)
    with pytest.raises(DataError) as caught:
        read_shards(folder)
    assert message in str(caught.value) and "Fix:" in str(caught.value)


def test_a_folder_written_anew_is_not_mistaken_for_the_one_that_was_read(folder: Path) -> None:
    opener = read_shards(folder)["s0000001"]
    change_index(folder, version="another")
    pickled = pickle.dumps(opener).replace(opener.version.encode(), b"0" * 16)
    with pytest.raises(DataError, match="read it again"):
        pickle.loads(pickled)()


def test_what_cannot_be_a_shard_is_refused(tmp_path: Path, folder: Path) -> None:
    x = torch.zeros(4, 2)
    both = SiteData({"x": x}, {"train": torch.arange(3), "test": torch.arange(2, 4)})
    cases = {
        "a row in two splits": [("a", both)],
        "has columns": [("a", SiteData({"x": x})), ("b", SiteData({"x": torch.zeros(4, 3)}))],
        "each name once": [("a", SiteData({"x": x})), ("a", SiteData({"x": x}))],
        "at least one site": [],
        "cannot be a shard": [("a", SiteData({"x/y": x}))],
        "cannot be a shard. Fix": [("a", SiteData({"x": x.to(torch.complex64)}))],
    }
    for number, (message, sites) in enumerate(cases.items()):
        with pytest.raises(DataError) as caught:
            write_shards(tmp_path / f"case{number}", sites)
        assert message.removesuffix(". Fix") in str(caught.value)
    with pytest.raises(DataError, match="already holds shards"):
        write_shards(folder, [("a", SiteData({"x": x}))])
