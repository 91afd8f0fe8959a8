"""Cyclic weight transfer beside a loop that hands the model on, in numpy; the orders of the visits."""

import numpy as np
import pytest

import fedray as fr
from tests.unit.algorithms.cases import LR, NUM_FEATURES, STEPS, tables, trained, uneven, vector


def handed_on_by_hand(order):
    """Chang et al.: the model is trained at one institution, then sent to the next."""
    w = np.zeros(NUM_FEATURES + 1)
    for i in order:
        x, y = tables()[i]
        for _ in range(STEPS[i]):
            w = w - LR * x.T @ (x @ w - y) / len(y)
    return w


def one_by_one(sampling):
    return fr.synchronous(cohort=1, sampling=sampling)


def test_a_fixed_order_is_that_of_the_ids():
    result, _ = trained(fr.algorithms.cyclic(uneven()), rounds=7, schedule=one_by_one("cyclic"))
    assert np.abs(vector(result.params) - handed_on_by_hand("abcdeab")).max() < 1e-12


def visits(seed, rounds, cohort=1):
    schedule = fr.synchronous(cohort=cohort, sampling="shuffled")
    return [schedule.cohort_of(round, seed, tuple("abcde"), {}) for round in range(rounds)]


def test_a_random_order_is_drawn_anew_for_every_pass_through_all_sites():
    order = "".join(site for visit in visits(0, 20) for site in visit)
    passes = [order[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(one) == list("abcde") for one in passes) and len(set(passes)) > 1
    assert visits(0, 20) == visits(0, 20) != visits(1, 20)
    result, _ = trained(fr.algorithms.cyclic(uneven()), rounds=8, schedule=one_by_one("shuffled"))
    assert np.abs(vector(result.params) - handed_on_by_hand(order[:8])).max() < 1e-12
    assert np.abs(handed_on_by_hand(order[:8]) - handed_on_by_hand("abcdeabc")).max() > 1e-2


def test_shuffled_cohorts_take_every_site_once_a_pass():
    assert sorted(site for visit in visits(3, 5, cohort=2) for site in visit)[:2] == ["a", "a"]
    seen = [site for visit in visits(3, 50, cohort=2) for site in visit]
    assert all(18 <= seen.count(site) <= 20 for site in "abcde")


def test_two_sites_at_once_are_refused_with_what_to_say_instead():
    with pytest.raises(fr.errors.ScheduleError, match="cohort=1"):
        trained(fr.algorithms.cyclic(uneven()), rounds=1)
