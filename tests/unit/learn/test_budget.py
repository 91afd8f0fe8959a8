"""Step budgets: a site does what it has time for, alone or among others, and says so."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import learn
from fedray.data.site import SiteData
from fedray.rng import Key
from fedray.testing import check_rows
from tests.unit.algorithms.cases import STEPS, squares, trained, vector
from tests.unit.algorithms.test_fedprox import fedprox_by_hand

MODEL = learn.logistic(3)


def table(rows, seed=0):
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=draws)
    return SiteData({"x": x, "y": (x[:, 0] > 0).float()})


def test_the_work_done_so_far_is_used():
    local = learn.sgd(MODEL, lr=0.1, epochs=2, batch_size=4)
    data, key, start = table(10), Key(0, 0, "slow"), MODEL.init(0)
    cut = learn.budgeted(local, {"slow": 4})(start, data, key)
    assert torch.equal(cut.delta.buffer, local(start, data, key, steps=4).delta.buffer)
    assert (cut.num_steps, local(start, data, key).num_steps) == (4, 6)


@pytest.mark.parametrize(("budget", "steps"), [
    ({}, 6), ({"s": 100}, 6), ({"s": 0}, 0), (lambda site, number: None, 6),
    (lambda site, number: 1 + number, 3),
])  # fmt: skip
def test_a_site_takes_its_budget_or_its_work_whichever_is_less(budget, steps):
    local = learn.budgeted(learn.sgd(MODEL, lr=0.1, epochs=2, batch_size=4), budget)
    update = local(MODEL.init(0), table(10), Key(0, 2, "s"))
    assert update.num_steps == local.steps_at(table(10), Key(0, 2, "s")) == steps
    assert bool(update.delta.buffer.any()) == (steps > 0)


def test_a_group_trains_each_site_for_its_own_number_of_steps():
    budget = {f"s{i}": i % 5 for i in range(0, 26, 2)}
    local = learn.budgeted(learn.sgd(MODEL, lr=0.1, epochs=2, batch_size=4), budget)
    given = [(table(6 + i, i), Key(0, 0, f"s{i}")) for i in range(26)]
    assert check_rows(local, given, shared=(MODEL.init(0),), tolerance=1e-6) < 1e-6


def test_fedprox_keeps_partial_work():
    local = learn.budgeted(learn.sgd(squares, lr=0.1, steps=9), STEPS)
    result, _ = trained(fr.algorithms.fedprox(local, 0.5))
    assert np.abs(vector(result.params) - fedprox_by_hand(0.5)).max() < 1e-12


def test_a_budget_says_the_rate_momentum_and_gradient_of_what_it_bounds():
    inner = learn.sgd(MODEL, lr=0.1, momentum=0.9)
    local = learn.budgeted(inner, {})
    assert (local.lr, local.momentum) == (0.1, 0.9)
    assert local.gradient(MODEL.init(0), table(5)) == inner.gradient(MODEL.init(0), table(5))
    assert learn.budgeted(learn.adamw(MODEL), {}).momentum is None
    assert learn.budgeted(learn.sgd(squares, lr=0.1), {}).rows is None


def test_a_negative_budget_and_an_update_without_a_number_of_steps_are_refused():
    with pytest.raises(ValueError, match="0 or more"):
        learn.budgeted(learn.sgd(MODEL, lr=0.1), {"s": -1})
    with pytest.raises(ValueError, match="budget of -2"):
        learn.budgeted(learn.sgd(MODEL, lr=0.1), lambda site, number: -2).steps_at(table(5), Key(0, 0, "s"))
    with pytest.raises(ValueError, match="steps_at"):
        learn.budgeted(lambda params, data, rng: None, {})
