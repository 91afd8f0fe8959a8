"""Data with few labels, and public rows from a file."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.errors import DataError

ICU = fr.data.synthetic_icu(num_sites=20, scale=0.5)


def test_a_share_of_the_training_rows_keeps_its_labels_and_other_splits_keep_all():
    few, labelled, rows = fr.data.few_labels(ICU, 0.2, seed=3), 0, 0
    for site in few:
        before, after = ICU[site](), few[site]()
        kept = after.train["y"] >= 0
        assert torch.equal(after.train["y"][kept], before.train["y"][kept])
        assert torch.equal(after.test["y"], before.test["y"]) and torch.equal(after["x"], before["x"])
        labelled, rows = labelled + int(kept.sum()), rows + len(kept)
    assert 0.15 < labelled / rows < 0.25


def test_training_on_labels_alone_sees_the_same_rows():
    few, alone = (fr.data.few_labels(ICU, 0.2, 3, keeps_rows=keeps) for keeps in (True, False))
    for site in ICU:
        rows = few[site]().train
        assert torch.equal(alone[site]().train["x"], rows["x"][rows["y"] >= 0])


def test_another_seed_keeps_other_labels_and_the_version_says_so():
    first, other = fr.data.few_labels(ICU, 0.2, 0), fr.data.few_labels(ICU, 0.2, 1)
    assert any(not torch.equal(first[site]()["y"], other[site]()["y"]) for site in ICU)
    assert len({ICU.version, first.version, other.version}) == 3


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(DataError, match="few_labels"):
        fr.data.few_labels(ICU, share)


def test_public_rows_are_read_from_a_file_and_what_is_none_is_refused(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(6.0).reshape(2, 3))
    assert fr.data.public_rows(tmp_path / "rows.npy")["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npy").write_text("no table")
    for name in ("one.npy", "text.npy", "missing.npy"):
        with pytest.raises(DataError, match="public rows"):
            fr.data.public_rows(tmp_path / name)
