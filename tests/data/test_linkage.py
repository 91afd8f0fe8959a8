"""Record linkage: how identifiers are written and hashed, the common order, what is refused, what is said."""

import datetime
import hashlib
import hmac

import numpy as np
import pandas as pd
import pytest
import torch

import fedray as fr
from fedray.data.columns import OpenColumns
from fedray.data.identifiers import LinkageKey, as_bytes, hashed, keyed_hash, normalise
from fedray.errors import DataError, PolicyError, QuorumError

KEY = bytes(range(32))
NAMES = [f"MRN-{number:05d}" for number in range(200)]


def frame(names, seed, **more):
    draws = np.random.default_rng(seed)
    return pd.DataFrame({"mrn": names, f"m{seed}": draws.normal(size=len(names)), **more})


def tables(rows_a=slice(0, 150), rows_b=slice(50, 200)):
    """Return two sites with 100 common records, in other orders and spellings, the first with the outcome."""
    a, b = NAMES[rows_a], [name.lower().replace("-", " ") for name in reversed(NAMES[rows_b])]
    died = [int(name[-1]) % 2 for name in a]
    return {"clinic": frame(a, 1, died=died), "lab": frame(b, 2)}


def linked(given, names=("mrn",), key=KEY, min_shared=50, salt="", runtime="in_process", **settings):
    """Link and return (what came of it, {site: its data afterwards})."""
    data = fr.data.parties(given, list(names), key=key, outcome="died", salt=salt)
    with fr.simulate(data, packs=2) as federation:
        found = fr.data.link(federation, min_shared=min_shared, **settings)
        hosts = federation.aggregator.root.transport.hosts.values()
        return found, {site: data for pack in hosts for site, data in pack._data.items()}


def test_rows_are_brought_into_one_order_of_the_common_records():
    given = tables()
    found, data = linked(given, scaled=False)
    assert found.shared == 100 and found.holder == "clinic"
    assert found.rows == {"clinic": 150, "lab": 150} and found.dropped == {"clinic": 50, "lab": 50}
    order = sorted(NAMES[50:150], key=lambda name: keyed_hash([normalise(name)], KEY, ""))
    a, b = given["clinic"].set_index("mrn").loc[order], given["lab"].set_index("mrn")
    b = b.loc[[name.lower().replace("-", " ") for name in order]]
    assert np.array_equal(data["clinic"]["x"][:, 0].numpy(), a["m1"].to_numpy(np.float32))
    assert np.array_equal(data["lab"]["x"][:, 0].numpy(), b["m2"].to_numpy(np.float32))
    assert np.array_equal(data["clinic"]["y"].numpy(), a["died"].to_numpy(np.float32))
    assert "record" not in data["clinic"] and "y" not in data["lab"]


def test_splits_are_the_same_everywhere_and_columns_are_scaled_on_training_rows():
    _, data = linked(tables(), valid_fraction=0.1, test_fraction=0.25, seed=3)
    one, other = data["clinic"].splits, data["lab"].splits
    assert all(torch.equal(one[split], other[split]) for split in one)
    assert [len(one[split]) for split in ("train", "valid", "test")] == [65, 10, 25]
    x = data["lab"].train["x"].double()
    assert abs(float(x.mean())) < 1e-6 and float(x.std()) == pytest.approx(1.0, abs=1e-6)


def test_gaps_are_filled_with_the_mean_and_constants_become_zero():
    given = tables()
    given["lab"].loc[:9, "m2"] = np.nan
    given["lab"]["same"] = 7.0
    _, data = linked(given)
    assert not data["lab"]["x"].isnan().any() and not data["lab"]["x"][:, 1].any()


def test_a_made_up_site_has_as_many_rows_as_are_public():
    _, data = linked(tables())
    assert data["lab"].blank().num_rows == 100 and data["lab"].blank(7).num_rows == 7
    assert not data["lab"].blank()["x"].any()


@pytest.mark.parametrize(("value", "text"), [
    ("AB-12 3", "ab123"), (" ab123\t", "ab123"), ("ＡＢ１２３", "ab123"), ("007", "007"), (7, "7"),
    (7.0, "7"), (np.int64(7), "7"), ("Straße", "strasse"), ("José", "josé"), ("Jose\u0301", "josé"),
    (datetime.date(1950, 3, 9), "19500309"), (pd.Timestamp("1950-03-09"), "19500309"),
    ("1950-03-09", "19500309"), (7.5, "75"), (None, ""), (float("nan"), ""), ("", ""), (" - ", ""), (True, "")])
def test_identifiers_are_written_one_way(value, text):
    assert normalise(value) == text


def test_a_hash_is_the_stated_one():
    told = b"fedray linkage\x1ficu\x1fdoe\x1f19500309"
    assert keyed_hash(["doe", "19500309"], KEY, "icu") == hmac.new(KEY, told, hashlib.sha256).digest()


def test_no_identifier_and_no_key_is_in_what_leaves():
    data = fr.data.parties(tables(), ["mrn"], key=KEY, outcome="died")
    with fr.simulate(data) as federation:
        found = fr.compute(data.linkage.program, federation)
    sent = data["clinic"]()["record"]
    assert sent.shape == (150, 32) and set(as_bytes(found.shared)) <= set(as_bytes(sent))
    assert "key=LinkageKey(bytes)" in repr(data["clinic"]) and "MRN-" not in repr(data["clinic"])
    assert as_bytes(found.shared) == sorted(as_bytes(found.shared))


def test_several_columns_name_a_record_and_two_persons_of_one_name_are_two():
    born = pd.to_datetime(["1950-03-09", "1951-01-01"] * 50)
    names = [f"doe{number // 2}" for number in range(100)]
    one = pd.DataFrame({"name": names, "born": born, "m": np.arange(100.0), "died": [0, 1] * 50})
    other = pd.DataFrame({"name": [name.upper() for name in names], "born": born.strftime("%Y/%m/%d"),
                          "n": np.arange(100.0)}).iloc[::-1]
    _, data = linked({"a": one, "b": other}, ("name", "born"), scaled=False)
    assert torch.equal(data["a"]["x"], data["b"]["x"])
    with pytest.raises(DataError, match="site a: 50 of 100 rows have an identifier that another row has"):
        linked({"a": one, "b": other}, ("name",))


def refusal(given, **settings):
    with pytest.raises(DataError) as caught:
        linked(given, **settings)
    assert not any(name[-5:] in str(caught.value) for name in NAMES)  # never an identifier
    return str(caught.value)


def test_missing_and_double_identifiers_are_refused_with_counts():
    given = tables()
    given["lab"].loc[[0, 5], "mrn"] = [None, " "]
    assert "site lab: 2 of 150 rows have no identifier" in refusal(given)
    given = tables()
    given["lab"].loc[3, "mrn"] = given["lab"].loc[4, "mrn"]
    assert "site lab: 1 of 150 rows have an identifier that another row has" in refusal(given)
    assert "site clinic: no column nhs" in refusal(tables(), names=("nhs",))


def test_another_salt_or_key_is_the_first_cause_that_is_named():
    given = tables()
    one, other = (fr.data.parties(given, ["mrn"], key=KEY, outcome="died", salt=salt) for salt in ("a", "b"))
    with fr.simulate({"clinic": one["clinic"], "lab": other["lab"]}) as federation:
        with pytest.raises(DataError, match="no two sites share a record. Likely causes: another key"):
            fr.data.link(federation)
    third = fr.data.parties({"x": frame(NAMES, 3)}, ["mrn"], key=bytes(32))["x"]
    with fr.simulate({**one.sites, "x": third}) as federation:
        with pytest.raises(DataError, match="x shares no record with any other site"):
            fr.data.link(federation)


def test_few_common_records_are_refused_and_their_number_is_not_told():
    told = refusal(tables(slice(0, 100), slice(90, 200)))
    assert "fewer than 50 records are at all 2 sites" in told and "10" not in told
    data = fr.data.parties(tables(slice(0, 100), slice(90, 200)), ["mrn"], key=KEY, outcome="died")
    with fr.simulate(data) as federation:
        assert len(fr.compute(data.linkage.program, federation).shared) == 0


@pytest.mark.parametrize(("site", "column", "what"), [
    ("lab", "died", r"2 of 2 sites hold the outcome \(clinic, lab\)"), ("clinic", "m1", "0 of 2 sites hold")])
def test_just_one_site_holds_the_outcome(site, column, what):
    given = tables()
    if column == "died":
        given[site]["died"] = 0
    else:
        given[site] = given[site].drop(columns="died")
    with pytest.raises(DataError, match=what):
        linked(given)


def test_a_policy_may_refuse_that_hashes_leave():
    data = fr.data.parties(tables(), ["mrn"], key=KEY, outcome="died")
    with fr.simulate(data) as federation, pytest.raises(PolicyError, match="records"):
        fr.data.link(federation, passes=[fr.passes.require()])


def test_training_before_linking_is_refused_with_the_way_out():
    data = fr.data.parties(tables(), ["mrn"], key=KEY, outcome="died")
    told = r"call fr.data.link\(federation\)"
    with fr.simulate(data) as federation, pytest.raises(QuorumError, match=told):
        fr.fit(fr.algorithms.vertical_logistic(), federation, init={"bias": torch.zeros(())}, rounds=1)


def test_a_key_lies_in_a_file_at_the_site_and_is_long(tmp_path):
    path = tmp_path / "link.key"
    assert "cannot be read" in refusal(tables(), key=path)
    path.write_bytes(b"secret")
    told = refusal(tables(), key=path)
    assert "has 6 bytes" in told and "secret" not in told
    path.write_bytes(KEY)
    assert linked(tables(), key=path)[0].shared == 100
    assert LinkageKey(str(path)).read() == KEY


def test_files_are_read_where_the_site_lies_and_zeros_in_front_stay(tmp_path):
    given = {}
    for site, table in tables().items():
        table["mrn"] = table["mrn"].str[-5:]  # numbers with zeros in front
        given[site] = tmp_path / f"{site}.csv"
        table.to_csv(given[site], index=False)
    assert linked(given)[0].shared == 100
    given["lab"].write_text("mrn\n")
    assert "no column of numbers" in refusal(given)


def test_a_table_that_changed_after_linking_is_refused():
    found, _ = linked(tables())
    data = fr.data.parties(tables(), ["mrn"], key=KEY, outcome="died")
    with fr.simulate(data) as federation:
        compared = fr.compute(data.linkage.program, federation)
    from fedray.data.linkage import Align

    shorter = fr.data.parties({"clinic": tables()["clinic"].iloc[:120]}, ["mrn"], key=KEY, outcome="died")
    with pytest.raises(DataError, match="30 common records are not here any more"):
        Align(compared.shared, data.linkage)(shorter["clinic"]())
    assert found.shared == 100


def test_columns_of_one_data_set_are_dealt_and_link_back_to_its_rows():
    of = fr.data.synthetic_icu(num_sites=12, scale=0.02)
    data = fr.data.by_columns(of, 3, missing=0.1)
    whole = fr.data.pooled(of)["pooled"]()
    with fr.simulate(data) as federation:
        found = data.linkage.link(federation)
        (pack,) = federation.aggregator.root.transport.hosts.values()
        rows = {site: pack._data[site] for site in data}
    assert 0.6 * whole.num_rows < found.shared < 0.9 * whole.num_rows and found.holder == "site0"
    assert set(data.features) == set(of.features)
    assert sum(rows[site]["x"].shape[1] for site in rows) == len(of.features)
    key = hashlib.sha256(b"fedray simulated key 0").digest()
    hashes = as_bytes(hashed("", [range(whole.num_rows)], key, "simulation"))
    place = {each: row for row, each in enumerate(hashes)}
    everywhere = set.intersection(*(set(as_bytes(data[site]()["record"])) for site in data))
    order = [place[each] for each in sorted(everywhere)]
    assert torch.equal(rows["site0"]["y"], whole["y"][torch.tensor(order)])


@pytest.mark.parametrize("settings", [
    {"num_sites": 99}, {"missing": 1.0}, {"columns": {"a": ["colour"]}}, {"columns": {"a": []}}])
def test_deals_that_cannot_be_are_refused(settings):
    with pytest.raises(DataError, match="by_columns: .* Fix: "):
        fr.data.by_columns(fr.data.synthetic_icu(num_sites=2, scale=0.002), **settings)


def test_an_opener_of_columns_holds_no_row():
    data = fr.data.by_columns(fr.data.synthetic_icu(num_sites=2, scale=0.002), 2)
    assert all(isinstance(opener, OpenColumns) for opener in data.sites.values())
