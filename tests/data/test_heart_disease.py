"""UCI heart disease by FLamby's recipe: sizes, split, scaling, and files that are not what they must be."""


import numpy as np
import pytest
import torch

from fedray.data import heart
from fedray.data.folder import read_contract
from fedray.errors import DataError

SIZES = {"cleveland": (199, 104), "hungarian": (172, 89), "switzerland": (30, 16), "va": (85, 45)}


@pytest.fixture(scope="module")
def built(fedray_data, tmp_path_factory):
    return heart.build(fedray_data / "heart-disease", tmp_path_factory.mktemp("heart") / "out")


def write_files(folder, rows=30):
    """Write four generated files of UCI's form."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    for site in heart.SITES:
        lines = [",".join([f"{rng.integers(30, 80)}", "1", f"{rng.integers(1, 5)}", "120", "240", "0", "1",
                           "150", "0", "1.5", "?", "?", "?", f"{rng.integers(0, 3)}"]) for _ in range(rows)]
        (folder / f"processed.{site}.data").write_text("\n".join(lines) + "\n")
    return folder


def test_sizes_are_the_published_ones(built):
    data = heart.heart_disease(built)
    found = {site: data[site]().splits for site in data}
    assert {site: (len(splits["train"]), len(splits["test"])) for site, splits in found.items()} == SIZES


def test_thirteen_inputs_in_the_published_order(built):
    assert heart.heart_disease(built).features == (
        "age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak", "cp_2", "cp_3", "cp_4",
        "restecg_1", "restecg_2")


@pytest.mark.parametrize("counts", [(164, 139), (163, 98), (1, 45), (29, 101), (2, 30), (20, 20)])
def test_split_is_that_of_scikit_learn(counts):
    selection = pytest.importorskip("sklearn.model_selection", reason="needs pip install 'fedray[report]'")
    label = np.random.default_rng(0).permutation(np.repeat([0, 1], counts))
    stratify = label if min(counts) > 2 else None
    _, test = selection.train_test_split(np.arange(len(label)), test_size=0.34, train_size=0.66,
                                         random_state=43, stratify=stratify)
    assert set(np.flatnonzero(heart.published_split(label))) == set(test)


def test_site_scale_uses_the_sites_own_training_rows(built):
    data, raw = heart.heart_disease(built), heart.heart_disease(built, scale="none")
    x, natural = data["va"]()["x"], raw["va"]()
    train = natural.train["x"].double()
    wanted = (natural["x"].double() - train.mean(0)) / train.std(0)
    torch.testing.assert_close(x, wanted.float(), rtol=1e-5, atol=1e-5)


def test_pooled_scale_uses_all_training_rows(built):
    data, raw = heart.heart_disease(built, scale="pooled"), heart.heart_disease(built, scale="none")
    train = torch.cat([raw[site]().train["x"] for site in raw]).double()
    wanted = (raw["va"]()["x"].double() - train.mean(0)) / train.std(0)
    torch.testing.assert_close(data["va"]()["x"], wanted.float(), rtol=1e-5, atol=1e-5)


def test_constant_column_becomes_zero(built):
    data = heart.heart_disease(built)
    chol = data.features.index("chol")
    assert (data["switzerland"]()["x"][:, chol] == 0).all()


def test_table_keeps_to_its_contract(built):
    import pandas as pd
    contract = read_contract(built)
    findings = [finding for site in SIZES
                for finding in contract.check(pd.read_parquet(built / "sites" / f"{site}.parquet"), site)]
    assert not findings


def test_first_use_builds_and_reuses(tmp_path):
    files = write_files(tmp_path / "src")
    first = heart.heart_disease_first_use(files, tmp_path / "data")
    again = heart.heart_disease_first_use(files, tmp_path / "data")
    assert first.version == again.version and len(first) == 4


def refused(folder):
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(DataError) as caught:
        heart.build(folder, folder.parent / "out")
    assert sorted(folder.parent.rglob("*")) == before
    return str(caught.value)


def test_missing_file_is_refused(tmp_path):
    folder = write_files(tmp_path / "src")
    (folder / "processed.va.data").unlink()
    message = refused(folder)
    assert "processed.va.data" in message and "fedray data get heart-disease" in message


def test_text_is_refused_without_quoting_it(tmp_path):
    folder = write_files(tmp_path / "src")
    (folder / "processed.va.data").write_text("J. Smith" + ",1" * 13 + "\n")
    message = refused(folder)
    assert "processed.va.data" in message and "Smith" not in message and "Fix:" in message


def test_other_number_of_columns_is_refused(tmp_path):
    folder = write_files(tmp_path / "src")
    (folder / "processed.va.data").write_text("1,2,3\n")
    assert "has 3 columns, not 14" in refused(folder)


def test_folder_that_is_not_there_is_refused(tmp_path):
    assert "is not a folder" in refused(tmp_path / "nowhere")


def test_unknown_scale_and_other_data_are_refused(built, tmp_path):
    with pytest.raises(DataError, match="site, pooled, none"):
        heart.heart_disease(built, scale="global")
    with pytest.raises(DataError, match="not a data set"):
        heart.heart_disease(tmp_path)
