"""Tables that only the sites' own machines hold."""

import pandas as pd
import pytest
import torch

import fedray as fr
from fedray.data.contract import Column, Contract
from fedray.data.folder import write_dataset_json, write_site
from fedray.errors import DataError

CONTRACT = Contract(name="vitals", outcome="died",
                    columns=(Column("age"), Column("lactate"), Column("died", role="outcome")))


def table(start):
    rows = range(start, start + 20)
    return pd.DataFrame({"age": [float(row) for row in rows], "lactate": [row / 7 for row in rows],
                         "died": [row % 2 for row in rows]})


def test_a_site_reads_the_folder_that_it_is_sent_to(tmp_path):
    table(0).iloc[:8].to_csv(tmp_path / "one.csv", index=False)
    table(0).iloc[8:].to_parquet(tmp_path / "two.parquet")
    data = fr.data.at_sites(CONTRACT, ["a", "b"])
    assert (list(data), data.features, data.sizes) == (["a", "b"], ("age", "lactate"), {})
    found = data["a"].at(tmp_path)()
    frames = fr.data.from_frames({"a": table(0)}, contract=CONTRACT)["a"]()
    assert torch.equal(found["x"], frames["x"])
    assert all(torch.equal(found.splits[name], frames.splits[name]) for name in found.splits)


def test_a_site_column_tells_sites_apart_in_one_file(tmp_path):
    contract = Contract(name="vitals", outcome="died", columns=(*CONTRACT.columns, Column("h", role="site")))
    both = pd.concat([table(0).assign(h="a"), table(50).assign(h="b")])
    both.to_csv(tmp_path / "all.csv", index=False)
    data = fr.data.at_sites(contract, ["a", "b"])
    found = data["b"].at(tmp_path / "all.csv")()
    assert found["x"][:, 0].min() == 50 and found.num_rows == 20


def test_a_site_whose_data_nobody_names_says_so():
    with pytest.raises(DataError, match=r"site a: nobody says where its data lie. Fix: sites.a.data"):
        fr.data.at_sites(CONTRACT, ["a"])["a"]()


def test_sites_that_nobody_names_are_refused():
    with pytest.raises(DataError, match="the sites are not named"):
        fr.data.at_sites(CONTRACT)


def test_openers_of_files_can_be_sent_elsewhere(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    table(0).to_csv(tmp_path / "here" / "a.csv", index=False)
    table(5).to_csv(tmp_path / "there" / "a.csv", index=False)
    opener = fr.data.csv(tmp_path / "here", CONTRACT)["a"]
    assert opener()["x"][:, 0].min() == 0
    assert opener.at(tmp_path / "there")()["x"][:, 0].min() == 5
    assert opener.at(tmp_path / "there" / "a.csv")()["x"][:, 0].min() == 5


def test_a_site_of_a_built_data_set_can_be_sent_to_its_own_copy(tmp_path):
    folders = [tmp_path / "whole", tmp_path / "own"]
    for folder in folders:
        entry = write_site(folder, "h1", table(0), CONTRACT)
        write_dataset_json(folder, name="vitals", contract=CONTRACT, sites=[entry])
    opener = fr.data.read_dataset(folders[0])["h1"]
    (folders[0] / "sites" / "h1.parquet").unlink()
    for path in (folders[1], folders[1] / "sites", folders[1] / "sites" / "h1.parquet"):
        assert torch.equal(opener.at(path)()["x"][:, 0], torch.arange(20.0))
    write_site(folders[1], "h1", table(7), CONTRACT)
    with pytest.raises(DataError, match=r"h1.parquet differs from what dataset.json says"):
        opener.at(folders[1])()
