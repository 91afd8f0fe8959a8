"""The baselines: each site alone, and one exchange, beside loops in numpy."""

import numpy as np

import fedray as fr
from fedray.core.explain import egress_rows
from tests.unit.algorithms.cases import LR, NUM_FEATURES, SIZES, STEPS, kept, tables, trained, uneven, vector


def descended(site, steps):
    x, y = tables()[site]
    w = np.zeros(NUM_FEATURES + 1)
    for _ in range(steps):
        w = w - LR * x.T @ (x @ w - y) / len(y)
    return w


def test_each_site_alone_goes_down_its_own_gradient_in_the_rounds_that_ask_it():
    result, found = trained(fr.algorithms.local_only(uneven()), look=kept)
    times_asked = {"a": 3, "b": 3, "c": 3, "d": 3, "e": 3}  # see cases.COHORTS
    expected = {site: descended(site, times_asked[site] * STEPS[site]) for site in SIZES}
    assert max(np.abs(found[site] - expected[site]).max() for site in SIZES) < 1e-12
    assert not vector(result.params).any()


def test_of_a_site_alone_only_the_training_metrics_leave():
    result, _ = trained(fr.algorithms.local_only(uneven()), rounds=1)
    assert {row["name"] for row in egress_rows(result.plan)} == {"metrics", "metrics.weight"}


def test_one_shot_averages_models_that_were_trained_to_the_end_by_rows():
    result, _ = trained(fr.algorithms.one_shot(uneven()), rounds=1, schedule=fr.synchronous())
    expected = sum(SIZES[site] * descended(site, STEPS[site]) for site in SIZES) / sum(SIZES.values())
    assert np.abs(vector(result.params) - expected).max() < 1e-12
    assert result.plan.name == "one_shot"
