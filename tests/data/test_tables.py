"""Plain tables as data sets: one file a site, a site column, frames, torch data sets."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from fedray.data.tables import csv, from_datasets, from_frames
from fedray.errors import DataError

CONTRACT = """
name: clinic
outcome: died
columns:
  age: {unit: years, low: 16, high: 100}
  creatinine: {unit: mg/dL, low: 0.2, high: 12, missing: [-1]}
  died: {codes: {"no": 0, "yes": 1}}
  patient: {role: group}
"""


def table(rows=40, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"age": rng.uniform(20, 90, rows), "creatinine": rng.uniform(0.5, 3, rows),
                         "died": np.where(np.arange(rows) % 3 == 0, "yes", "no"),
                         "patient": np.arange(rows) // 2})


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tables"
    path.mkdir()
    table(seed=0).to_csv(path / "north.csv", index=False)
    other = table(seed=1)
    other[other.columns[::-1]].assign(ward="A").to_parquet(path / "south.parquet")
    (tmp_path / "contract.yaml").write_text(CONTRACT)
    return path


def test_files_with_other_column_order_and_extra_columns_are_read_by_name(folder):
    data = csv(folder, folder.parent / "contract.yaml")
    assert sorted(data) == ["north", "south"] and data.features == ("age", "creatinine")
    for seed, site in enumerate(sorted(data)):
        expected = table(seed=seed)[["age", "creatinine"]].to_numpy("float32")
        np.testing.assert_allclose(data[site]()["x"].numpy(), expected, rtol=1e-6)


def test_a_site_column_gives_the_same_sites_as_files(folder, tmp_path):
    frames = {"north": table(seed=0), "south": table(seed=1)}
    pd.concat([frame.assign(hospital=site) for site, frame in frames.items()]).sample(
        frac=1, random_state=0).to_csv(tmp_path / "all.csv", index=False)
    data = csv(tmp_path / "all.csv", folder.parent / "contract.yaml", site_column="hospital")
    assert data.sizes == {"north": 40, "south": 40}
    one = data["south"]()
    other = csv(folder, folder.parent / "contract.yaml")["south"]()
    assert torch.allclose(one["x"].sum(0), other["x"].sum(0))


def test_patients_never_straddle_splits_and_the_split_is_stable(folder):
    data = csv(folder, folder.parent / "contract.yaml", valid_fraction=0.2, test_fraction=0.3, split_seed=4)
    site, again = data["north"](), pickle.loads(pickle.dumps(data["north"]))()
    patients = [{int(row) // 2 for row in site.splits[name]} for name in ("train", "valid", "test")]
    assert sum(map(len, patients)) == 20 and all(patients)
    assert all(torch.equal(site.splits[name], again.splits[name]) for name in site.splits)
    other = csv(folder, folder.parent / "contract.yaml", test_fraction=0.3, split_seed=5)["north"]()
    assert not torch.equal(site.splits["test"], other.splits["test"])


def test_a_split_column_replaces_the_random_split(folder):
    contract = folder.parent / "contract.yaml"
    contract.write_text(CONTRACT + "  part: {role: split}\n")
    table().assign(part=["train", "train", "valid", "test"] * 10).to_csv(folder / "north.csv", index=False)
    (folder / "south.parquet").unlink()
    site = csv(folder, contract)["north"]()
    assert [len(site.splits[name]) for name in ("train", "valid", "test")] == [20, 10, 10]
    assert site.splits["valid"].tolist() == list(range(2, 40, 4))


def test_wrong_unit_is_refused_where_the_site_is_opened_without_a_value(folder):
    table().assign(creatinine=123.456).to_csv(folder / "north.csv", index=False)
    data = csv(folder, folder.parent / "contract.yaml")
    with pytest.raises(DataError, match="site north: column creatinine .*umol/L .*Fix: ") as error:
        data["north"]()
    assert "123" not in str(error.value)


def test_missing_labels_are_refused(folder):
    table().assign(died=None).to_csv(folder / "north.csv", index=False)
    with pytest.raises(DataError, match="site north: the outcome died is missing"):
        csv(folder, folder.parent / "contract.yaml")["north"]()


def test_duplicate_site_ids_are_refused(folder):
    table().to_csv(folder / "south.csv", index=False)
    with pytest.raises(DataError, match="duplicate site id south. Fix:"):
        csv(folder, folder.parent / "contract.yaml")


def test_unreadable_file_is_refused_without_its_contents(folder):
    (folder / "south.parquet").write_bytes(b"canary")
    with pytest.raises(DataError, match=r"south.parquet cannot be read \(ArrowInvalid\). Fix:"):
        csv(folder, folder.parent / "contract.yaml")["south"]()


def test_missing_site_column_names_the_nearest(folder):
    with pytest.raises(DataError, match=r"no site column patiens \(did you mean patient\?\)"):
        csv(folder, folder.parent / "contract.yaml", site_column="patiens")


def test_frames_need_only_a_target():
    frames = {"a": table().assign(died=lambda one: (one["died"] == "yes").astype(int)),
              "b": table(10, 2).assign(died=0)[["died", "patient", "creatinine", "age"]]}
    data = from_frames(frames, target="died")
    assert data.features == ("age", "creatinine", "patient") and data["b"]()["x"].shape == (10, 3)
    assert len(data["a"]().test["x"]) == 8
    with pytest.raises(DataError, match=r"no column dead \(did you mean died\?\)"):
        from_frames(frames, target="dead")


def test_another_value_gives_another_version():
    frame = table().assign(died=lambda one: (one["died"] == "yes").astype(int))
    changed = frame.copy()
    changed.loc[0, "age"] += 1
    versions = [from_frames({"a": one}, "died").version for one in (frame, frame.copy(), changed)]
    assert versions[0] == versions[1] != versions[2]


def test_torch_datasets_are_stacked_on_the_host():
    items = torch.utils.data.TensorDataset(torch.arange(30.0).reshape(10, 3), torch.arange(10) % 3)
    data = from_datasets({"a": items, "b": lambda: items}, num_classes=3, test_fraction=0.5, valid_fraction=0)
    assert data.sizes == {"a": 10} and data.num_classes == 3
    assert torch.equal(data["a"]()["x"], data["b"]()["x"]) and data["b"]()["y"].dtype == torch.int64
    assert len(data["a"]().test["y"]) == 5
