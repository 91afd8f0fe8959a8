"""The page of the algorithms is what its script writes, so that no option is missing from it."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow  # a round of every algorithm
def test_the_page_of_the_algorithms_is_what_its_script_writes(monkeypatch):
    monkeypatch.delenv("FEDRAY_DATA", raising=False)
    spec = importlib.util.spec_from_file_location("catalogue", ROOT / "experiments/tools/catalogue.py")
    catalogue = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(catalogue)
    assert catalogue.page() == (ROOT / "docs/algorithms.md").read_text("utf-8"), (
        "run: python experiments/tools/catalogue.py"
    )
