"""The folder format: written, read by name where the site lives, refused where broken."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest

from fedray.data.contract import Column, Contract
from fedray.data.folder import (
    hash_files,
    read_contract,
    read_dataset,
    staged,
    up_to_date,
    write_dataset_json,
    write_site,
)
from fedray.errors import DataError

CONTRACT = Contract(name="icu", outcome="died", columns=(
    Column("age", low=16, high=90), Column("lactate", log1p=True, low=0, high=20),
    Column("died", role="outcome"), Column("apache", role="reference"), Column("patient", role="group")))


def table(rows=10, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"age": rng.uniform(20, 80, rows), "lactate": rng.uniform(0, 5, rows),
                          "died": np.arange(rows) % 2, "apache": rng.uniform(0, 1, rows),
                          "patient": [f"p{row // 2}" for row in range(rows)],
                          "split_0": np.where(np.arange(rows) < 6, 0, 2), "split_1": 0})
    frame.loc[1, "lactate"] = np.nan
    return frame


@pytest.fixture
def folder(tmp_path):
    with staged(tmp_path / "built") as part:
        sites = [write_site(part, "h1", table(), CONTRACT, region="South"),
                 write_site(part, "St. Mary/2", table(8, 1), CONTRACT)]
        write_dataset_json(part, name="icu", contract=CONTRACT, sites=sites, source={"a.csv": "00"},
                           build={"seeds": 2})
    return tmp_path / "built"


def test_a_written_site_is_read_back(folder):
    data = read_dataset(folder, split_seed=0)
    site = data["h1"]()
    assert data.features == ("age", "lactate") and data.sizes == {"h1": 10, "St. Mary/2": 8}
    assert data.regions == {"h1": "South"} and read_contract(folder) == CONTRACT
    np.testing.assert_allclose(site["x"].numpy(), table()[["age", "lactate"]].to_numpy("float32"))
    assert site["y"].tolist() == [0, 1] * 5 and site["reference"].shape == (10,)
    assert (len(site.train["x"]), len(site.valid["x"]), len(site.test["x"])) == (6, 0, 4)
    assert len(data["St. Mary/2"]()["x"]) == 8


def test_rows_of_one_patient_have_one_number_at_every_site_and_others_another(folder):
    data = read_dataset(folder)
    here, there = data["h1"]()["patient"].tolist(), data["St. Mary/2"]()["patient"].tolist()
    assert here[0::2] == here[1::2] and len(set(here)) == 5
    assert there == here[:8]  # p0 to p3 are patients of both


def test_openers_are_small_and_pickle(folder):
    data = read_dataset(folder, features=["lactate"])
    opener = pickle.loads(pickle.dumps(data["h1"]))
    assert opener()["x"].shape == (10, 1) and len(pickle.dumps(data)) < 5000


def test_columns_are_matched_by_name(folder):
    file = folder / "sites" / "h1.parquet"
    frame = pd.read_parquet(file)
    frame[frame.columns[::-1]].assign(extra="x").to_parquet(file)
    index = json.loads((folder / "dataset.json").read_text())
    index["sites"][0]["sha256"] = ""
    (folder / "dataset.json").write_text(json.dumps(index))
    np.testing.assert_allclose(read_dataset(folder)["h1"]()["x"].numpy(),
                               table()[["age", "lactate"]].to_numpy("float32"))


def test_validation_rows_are_whole_patients_of_the_training_rows(folder):
    site = read_dataset(folder, valid_fraction=0.4)["h1"]()
    patients = [{int(row) // 2 for row in site.splits[name]} for name in ("train", "valid", "test")]
    assert len(site.splits["valid"]) > 0 and not (patients[0] & patients[1])
    assert sorted(patients[0] | patients[1]) == [0, 1, 2] and patients[2] == {3, 4}


def test_a_split_that_was_not_built_is_refused(folder):
    with pytest.raises(DataError, match="site h1: no column split_7.*Fix:"):
        read_dataset(folder, split_seed=7)["h1"]()


def test_the_reference_is_never_an_input(folder):
    with pytest.raises(DataError, match="apache is the reference"):
        read_dataset(folder, features=["apache"])


def test_a_changed_file_is_refused_and_not_up_to_date(folder):
    assert up_to_date(folder, {"a.csv": "00"}, {"seeds": 2})
    assert not up_to_date(folder, {"a.csv": "01"}) and not up_to_date(folder, {"a.csv": "00"}, {"seeds": 3})
    file = folder / "sites" / "h1.parquet"
    file.write_bytes(file.read_bytes()[:-10])
    assert not up_to_date(folder, {"a.csv": "00"})
    with pytest.raises(DataError, match="site h1: h1.parquet differs"):
        read_dataset(folder)["h1"]()


def test_a_failed_build_leaves_nothing_and_keeps_the_old(folder, tmp_path):
    before = hash_files(folder.rglob("*.parquet"))
    with pytest.raises(DataError, match="missing values in the outcome"), staged(folder) as part:
        write_site(part, "h1", table().assign(died=np.nan), CONTRACT)
    with pytest.raises(DataError, match="no column lactate"), staged(tmp_path / "deep" / "new") as part:
        write_site(part, "h1", table().drop(columns="lactate"), CONTRACT)
    assert hash_files(folder.rglob("*.parquet")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(DataError, match="not a data set of fedray"), staged(tmp_path):
        pass


def test_duplicate_site_ids_are_refused(tmp_path):
    entry = write_site(tmp_path, "h1", table(), CONTRACT)
    with pytest.raises(DataError, match="duplicate site id h1"):
        write_dataset_json(tmp_path, name="icu", contract=CONTRACT, sites=[entry, entry])
    assert not (tmp_path / "dataset.json").exists()


def test_a_folder_without_an_index_is_refused_with_the_fix(tmp_path):
    with pytest.raises(DataError, match=r"no dataset.json. Fix: make one with `fedray data build`"):
        read_dataset(tmp_path)
