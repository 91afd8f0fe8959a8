"""The page of algorithms and protections is what its script writes: none is missing, no reason is old."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MUST_TRAIN = ("fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "scaffold", "fednova", "feddyn",
              "mime", "fedbn", "fedper", "ditto")  # fmt: skip


def test_what_must_train_with_site_dp_and_with_secure_sums_does():
    cells = {}
    for line in (ROOT / "docs/pass-matrix.md").read_text("utf-8").splitlines():
        if line.startswith("| `"):
            option, site_dp, secure, *_ = (cell.strip() for cell in line.strip("|").split("|"))
            cells[option.strip("`")] = (site_dp, secure)
    assert {option: cells[option] for option in MUST_TRAIN} == dict.fromkeys(MUST_TRAIN, ("trains", "trains"))


@pytest.mark.slow  # four rounds of every algorithm
@pytest.mark.timeout(1800)
def test_the_page_of_algorithms_and_protections_is_what_its_script_writes(monkeypatch):
    monkeypatch.delenv("FEDRAY_DATA", raising=False)
    spec = importlib.util.spec_from_file_location("pass_matrix", ROOT / "experiments/tools/pass_matrix.py")
    pass_matrix = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pass_matrix)
    assert pass_matrix.page() == (ROOT / "docs/pass-matrix.md").read_text("utf-8"), (
        "run: python experiments/tools/pass_matrix.py"
    )
