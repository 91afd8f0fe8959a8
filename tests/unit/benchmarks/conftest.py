"""The scripts of experiments/benchmarks import each other by name, as they do when they are run."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

FOLDER = str(Path(__file__).resolve().parents[3] / "experiments" / "benchmarks")
sys.path.append(FOLDER)  # before the test modules of this folder are imported


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
