"""Contracts: what they accept, and what they say of a table that breaks them."""

import pickle

import numpy as np
import pandas as pd
import pytest

from fedray.data.contract import Column, Contract
from fedray.data.findings import refuse
from fedray.errors import DataError

ICU = {"name": "icu", "version": 2, "outcome": "died", "columns": {
    "age": {"unit": "years", "low": 16, "high": 90},
    "creatinine": {"unit": "mg/dL", "low": 0.2, "high": 12, "log1p": True, "missing": [-1],
                   "max_missing": 0.5},
    "vent": {"kind": "flag", "required": False},
    "unit_type": {"kind": "code", "codes": ["MICU", "SICU"]},
    "died": {"codes": {"Alive": 0, "Expired": 1}},
    "stay": {"role": "id"}}}


@pytest.fixture
def contract():
    return Contract.from_dict(ICU)


@pytest.fixture
def table():
    rows = 20
    return pd.DataFrame({"stay": range(rows), "age": np.linspace(20.0, 80.0, rows),
                         "creatinine": np.linspace(0.5, 3.0, rows), "unit_type": ["MICU", "SICU"] * 10,
                         "died": ["Alive", "Expired"] * 10})


def only(found):
    assert len(found) == 1, found
    return found[0]


def test_good_table_has_no_findings(contract, table):
    assert contract.check(table, "h1") == []


def test_contract_survives_dict_yaml_and_pickle_with_the_same_digest(contract, tmp_path):
    contract.save(tmp_path / "c.yaml")
    copies = [Contract.from_dict(contract.to_dict()), Contract.load(tmp_path / "c.yaml"),
              pickle.loads(pickle.dumps(contract))]
    assert all(copy == contract and copy.digest == contract.digest for copy in copies)
    assert contract.features == ("age", "creatinine", "vent", "unit_type")


def test_digest_knows_the_order_of_features(contract):
    swapped = Contract(name="icu", version="2", outcome="died",
                       columns=(contract.columns[1], contract.columns[0], *contract.columns[2:]))
    assert swapped.digest != contract.digest


def test_codes_and_missing_codes_are_read(contract, table):
    table.loc[0, "creatinine"] = -1
    read = contract.apply_missing(table[table.columns[::-1]].assign(extra=1))
    assert list(read.columns) == ["age", "creatinine", "vent", "unit_type", "died", "stay"]
    assert np.isnan(read["creatinine"][0]) and read["creatinine"][1:].notna().all()
    assert read["died"].tolist() == [0, 1] * 10 and read["unit_type"].tolist() == [0, 1] * 10
    assert read["vent"].isna().all()


def test_missing_column_is_named_with_its_nearest(contract, table):
    finding = only(contract.check(table.rename(columns={"creatinine": "Creatinin"}), "h1"))
    assert (finding.column, finding.check, finding.level) == ("creatinine", "missing column", "error")
    assert "did you mean Creatinin?" in str(finding)


def test_wrong_unit_is_named(contract, table):
    table["creatinine"] *= 88.4
    finding = only(contract.check(table, "h1"))
    assert finding.check == "range" and "looks like umol/L" in finding.text
    assert finding.fix == "convert it to mg/dL"


def test_fahrenheit_is_told_from_celsius():
    contract = Contract(name="t", outcome="y", columns=(
        Column("temp", unit="degC", low=32, high=42), Column("y", role="outcome")))
    frame = pd.DataFrame({"temp": np.linspace(96, 103, 10), "y": [0, 1] * 5})
    assert "looks like degF" in only(contract.check(frame)).text


def test_few_outliers_are_no_finding(contract, table):
    table.loc[:1, "creatinine"] = 300.0
    assert contract.check(table, "h1") == []


def test_texts_in_a_column_of_numbers_are_counted_in_bands(contract, table):
    table["age"] = table["age"].astype(object)
    table.loc[3, "age"] = "J. Smith"
    finding = only(contract.check(table, "h1"))
    assert (finding.check, finding.count) == ("type", "1-9")


def test_findings_hold_no_value_and_no_row(contract, table):
    table["age"] = table["age"].astype(object)
    table.loc[13, "age"] = "canary-77"
    table.loc[13, "died"] = "canary-78"
    table.loc[13, "creatinine"] = 98765.0
    told = " ".join(map(str, contract.check(table, "h1")))
    assert "canary" not in told and "98765" not in told and "13" not in told


def test_missing_labels_are_an_error(contract, table):
    table.loc[5, "died"] = None
    assert only(contract.check(table, "h1")).check == "missing outcome"


def test_one_class_is_a_warning(contract, table):
    table["died"] = "Alive"
    finding = only(contract.check(table, "h1"))
    assert (finding.check, finding.level) == ("one class", "warning")
    refuse([finding])


def test_unlisted_code_empty_table_duplicate_ids_and_too_many_missing_are_errors(contract, table):
    table.loc[0, "unit_type"] = "CCU"
    table.loc[1, "stay"] = 0
    table.loc[5:, "creatinine"] = -1
    assert {finding.check for finding in contract.check(table)} == {"code", "duplicate ids", "missing values"}
    assert "rows" in {finding.check for finding in contract.check(table[:0])}


def test_flag_must_be_zero_or_one(contract, table):
    assert only(contract.check(table.assign(vent=2), "h1")).check == "flag"


@pytest.mark.parametrize(("change", "word"), [
    ({"colums": {}}, "did you mean columns"), ({"task": "binray"}, "did you mean binary"),
    ({"columns": {"age": {"lo": 3}}}, "did you mean low"),
    ({"columns": {"age": {"low": 5, "high": 2}}}, "exchange"),
    ({"columns": ["age"]}, "columns: {age:"), ({"outcome": None}, "outcome is not given"),
    ({"columns": {"age": {"log1p": True}}}, "log1p: false")])
def test_a_broken_contract_is_refused_with_the_fix(change, word):
    with pytest.raises(DataError, match="Fix: ") as error:
        Contract.from_dict({**ICU, **change})
    assert word in str(error.value)


def test_broken_yaml_is_refused_with_the_line(tmp_path):
    (tmp_path / "c.yaml").write_text("name: x\ncolumns: [")
    with pytest.raises(DataError, match=r"c.yaml is not YAML in line \d"):
        Contract.load(tmp_path / "c.yaml")
