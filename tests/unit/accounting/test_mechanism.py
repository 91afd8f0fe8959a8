"""The record that a noisy function carries: what it refuses, and what a site of its own size makes of it."""

import pickle
from typing import Any

import pytest

from fedray.accounting import Mechanism

SETTINGS: dict[str, Any] = {"kind": "gaussian", "noise_multiplier": 1.1, "unit": "site", "noise_by": "server",
                            "trusted": "server"}


def test_mechanism_pickles_to_an_equal_record() -> None:
    made = Mechanism(**SETTINGS)
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize("wrong", [
    {"kind": "laplace"},
    {"unit": "row"},
    {"noise_multiplier": 0.0},
    {"noise_multiplier": float("nan")},
    {"sampling_rate": 0.0},
    {"sampling_rate": 1.5},
    {"sampling_rate": None},
    {"steps": None},
    {"kind": "skellam"},
])
def test_mechanism_that_cannot_be_accounted_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"choose of|give a number|needs"):
        Mechanism(**{**SETTINGS, **wrong})


def test_site_of_its_own_size_has_its_own_rate_and_steps() -> None:
    shared = Mechanism(**{**SETTINGS, "unit": "patient", "kind": "sampled_gaussian", "sampling_rate": None,
                          "steps": None, "batch_size": 64, "epochs": 2})
    found = shared.at_site(512)
    assert shared.is_per_site and not found.is_per_site
    assert (found.sampling_rate, found.steps) == (0.125, 16)


def test_site_smaller_than_a_batch_claims_no_amplification() -> None:
    shared = Mechanism(**{**SETTINGS, "unit": "patient", "sampling_rate": None, "batch_size": 64})
    assert shared.at_site(20).sampling_rate == 1.0
