"""`fedray data ...` from its command line: what it prints, what it refuses, what it leaves behind."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from fedray.cli import main
from fedray.data.commands import KNOBS

CONTRACT = """
name: clinic
outcome: died
columns:
  age: {unit: years, low: 16, high: 100}
  creatinine: {unit: mg/dL, low: 0.2, high: 12}
  died: {kind: flag}
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tables"
    path.mkdir()
    for site, rows in (("north", 40), ("south", 20)):
        creatinine = [np.nan, *np.linspace(0.5, 3, rows - 1)]
        pd.DataFrame({"age": np.linspace(20, 90, rows), "creatinine": creatinine,
                      "died": np.arange(rows) % 2}).to_csv(path / f"{site}.csv", index=False)
    (tmp_path / "contract.yaml").write_text(CONTRACT)
    return path


def run(*words):
    return main(["data", *map(str, words)])


def test_describe_prints_sites_rows_events_and_missing(folder, capsys):
    assert run("describe", folder, "--contract", folder.parent / "contract.yaml") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == [["north", "40", "20", "1.2%"], ["south", "20", "10", "2.5%"],
                         ["all", "sites", "60", "30", "1.7%"]]


def test_validate_passes_good_tables(folder, capsys):
    assert run("validate", folder, "--contract", folder.parent / "contract.yaml") == 0
    assert "no errors" in capsys.readouterr().out


def test_validate_names_site_column_unit_and_fix_and_exits_with_2(folder, capsys):
    frame = pd.read_csv(folder / "south.csv")
    frame.assign(creatinine=frame["creatinine"] * 88.4).to_csv(folder / "south.csv", index=False)
    assert run("validate", folder, "--contract", folder.parent / "contract.yaml") == 2
    message = capsys.readouterr().err
    assert "site south: column creatinine" in message and "looks like umol/L" in message
    assert "fix: convert it to mg/dL" in message and len(message.splitlines()) <= 25


def test_validate_refuses_one_class_over_all_sites(folder, capsys):
    for path in folder.iterdir():
        pd.read_csv(path).assign(died=0).to_csv(path, index=False)
    assert run("validate", folder, "--contract", folder.parent / "contract.yaml", "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert told["errors"] == 1 and told["findings"][0]["check"] == "one class"


@pytest.mark.parametrize("words", [
    ("describe", "nowhere"), ("validate", "tables"),
    ("build", "eicu", "--src", "nowhere", "--out", "built"),
    ("build", "heart-disease", "--src", "tables", "--out", "built"),
    ("synth", "--out", "made", "--scale", "-1"),
    ("get", "eicu-dem"), ("describe", "tables", "--contract", "lost.yaml"),
    ("build", "eicu", "--src", "tables", "--out", "built", "--seeds", "0")])
def test_bad_input_exits_with_2_says_the_fix_and_writes_nothing(folder, words, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    before = sorted(folder.parent.rglob("*"))
    assert run(*words) == 2
    message = capsys.readouterr().err
    assert message.startswith("fedray: the data cannot be used") and len(message.splitlines()) <= 25
    assert sorted(folder.parent.rglob("*")) == before


def test_knobs_are_those_of_the_generator():
    from fedray.data.synthetic_plan import Shift
    assert {field.name: type(field.default) for field in dataclasses.fields(Shift)} == KNOBS


def test_help_loads_neither_torch_nor_pandas():
    code = ("import sys; from fedray.cli import main\ntry: main(['data', 'build', 'eicu', '--help'])\n"
            "except SystemExit: pass\n"
            "assert not {'torch', 'pandas', 'pyarrow', 'ray', 'numpy'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
