"""Settings that cannot be meant are refused before any site is asked, with the name of what to mend."""

from functools import partial

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.errors import ConfigError, DataError, QuorumError
from fedray.learn import parts

from .cases import COHORTS, INIT, LR, SIZES, STEPS, gradient, squares, trained, vector

local = fr.learn.sgd(squares, lr=LR, steps=9)
momentum = fr.learn.sgd(squares, lr=LR, momentum=0.9)
tables = {
    site: {"x": torch.ones(rows, 3, dtype=torch.float64), "y": torch.ones(rows, dtype=torch.float64)}
    for site, rows in SIZES.items()
}
A = fr.algorithms
NAN = float("nan")


def own(params, data, rng):
    """A local update that offers nothing else."""


@pytest.mark.parametrize(("wrong", "named"), [
    (partial(A.scaffold, local, 0), "num_sites=0"),
    (partial(A.feddyn, local, -1), "num_sites=-1"),
    (partial(A.scaffold, momentum, 5), "plain SGD"),
    (partial(A.apfl, fr.learn.adamw(squares)), "plain SGD"),
    (partial(A.scaffold, own, 5), "own has no lr"),
    (partial(A.fednova, own), "own has no lr"),
    (partial(A.qfedavg, own), "own has no lr, loss"),
    (partial(A.term, own), "own has no loss"),
    (partial(A.afl, own, ["a"]), "own has no loss"),
    (partial(A.drfa, own, ["a"]), "own has no loss"),
    (partial(A.ifca, own), "own has no loss"),
    (partial(A.ifca, local, spread=-1.0), "spread=-1"),
    (partial(A.ditto, local, -1.0), "prox=-1"),
    (partial(A.pfedme, local, 1.0, -1.0), "lr=-1"),
    (partial(A.per_fedavg, local, -1.0), "inner_lr=-1"),
    (partial(A.fedprox, local, NAN), "mu=nan"),
    (partial(A.fedexp, local, NAN), "eps=nan"),
    (partial(A.cfl, local, NAN), "eps1=nan"),
    (partial(A.fedamp, local, NAN), "alpha=nan"),
    (partial(A.fedbabu, local), r"head=\['bias'\]"),
    (partial(A.lg_fedavg, local), r"shared=\['bias'\]"),
    (partial(A.lg_fedavg, local, "b"), "shared='b'"),
    (partial(A.fine_tuning, local, trained="b"), "trained='b'"),
    (partial(A.moon, local), "give features="),
    (partial(fr.passes.sign, NAN), "lr=nan"),
    (partial(fr.learn.sgd, squares, NAN), "lr=nan"),
    (partial(fr.learn.sgd, squares, LR, steps=1.5), "steps=1.5"),
    (partial(fr.learn.sgd, squares, LR, momentum=1.5), "momentum=1.5"),
    (partial(fr.learn.budgeted, local, 3), "budget=3"),
    (partial(fr.learn.budgeted, local, {"a": 1.5}), "whole number"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(wrong, named):
    with pytest.raises(ValueError, match=named):
        wrong()


@pytest.mark.parametrize("algorithm", [A.scaffold(local, 2), A.feddyn(local, 2)])
def test_fewer_sites_than_are_counted_are_refused(algorithm):
    with pytest.raises(ConfigError, match="num_sites=2, and 3 sites"):
        trained(algorithm, rounds=1)


def test_a_site_without_a_number_may_be_named():
    assert fr.learn.budgeted(local, {"a": None}).budget == {"a": None}


def test_a_plain_mapping_is_as_long_as_its_columns():
    with fr.simulate(tables) as federation:
        assert federation.hello() == SIZES


def test_a_plain_mapping_without_rows_is_refused():
    empty = {**tables, "b": {name: column[:0] for name, column in tables["b"].items()}}
    with fr.simulate(empty) as federation, pytest.raises(DataError, match="no training rows: b"):
        federation.hello()


@pytest.mark.parametrize(("init", "told"), [
    ({"w": np.zeros(3)}, "got ndarray"),
    ({"w": torch.zeros(3), "b": torch.zeros((), dtype=torch.float64)}, "one dtype"),
])  # fmt: skip
def test_first_parameters_that_are_none_are_named(init, told):
    with fr.simulate(tables) as federation, pytest.raises(QuorumError, match=told):
        fr.fit(A.fedavg(local), federation, init=init, rounds=1)


def test_objectives_keep_the_budgets_of_sites():
    found, x, alpha = trained(A.per_fedavg(fr.learn.budgeted(local, STEPS), 0.05, "fo"))[0], np.zeros(4), 0.05
    for cohort in COHORTS:
        models = []
        for site in cohort:
            w = x
            for _ in range(STEPS[site]):
                w = w - LR * gradient(site, w - alpha * gradient(site, w))
            models.append(w)
        x = np.mean(models, axis=0)
    np.testing.assert_allclose(vector(found.params), x, atol=1e-12)


def test_a_budget_passes_on_the_model_and_its_batches():
    model = fr.learn.mlp(3, hidden=(2,))
    inner = fr.learn.sgd(model, lr=LR, batch_size=6)
    found = fr.learn.budgeted(inner, STEPS)
    assert parts.part_of(None, found, parts.last_layer) == parts.part_of(None, inner, parts.last_layer)
    assert found.batch_size == 6


@pytest.mark.parametrize("algorithm", [A.fedper, A.fedrep, A.lg_fedavg])
def test_a_shared_part_comes_down_rounded(algorithm):
    plan = fr.compile(algorithm(local, ["b"]), [fr.passes.quantised_broadcast(7)])
    assert "quantised_broadcast" in plan.name


def test_ditto_may_count_all_sites_the_same():
    found, uniform = (trained(A.ditto(local, 0.1, weighted=w), rounds=1)[0] for w in (True, False))
    plain = trained(A.fedavg(local, weighted=False), rounds=1)[0]
    assert vector(uniform.params).tolist() == vector(plain.params).tolist() != vector(found.params).tolist()
    assert set(INIT) == set(uniform.params)


@pytest.mark.parametrize("make", [A.afl, A.drfa, A.dpsgd, A.push_sum, A.swarm])
@pytest.mark.parametrize(("names", "told"), [
    ([*SIZES, "nobody"], "nobody not in the federation"), (sorted(SIZES)[1:], f"{min(SIZES)} not named")])
def test_an_algorithm_made_for_other_sites_is_refused_before_any_is_asked(make, names, told):
    with fr.simulate(tables) as federation:
        with pytest.raises(ConfigError, match=told):
            fr.fit(make(local, names), federation, init=INIT, rounds=1)
        assert not federation.aggregator.root.bytes_up
