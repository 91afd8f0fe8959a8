"""Settings that cannot be meant are refused before any site is asked, with the name of what to mend."""

import re
from functools import partial

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.algorithms.towers import mlp_tower
from fedray.errors import ConfigError, DataError, QuorumError
from fedray.learn import parts
from fedray.runtime.oort import oort
from fedray.runtime.selection import power_of_choice

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


model = fr.learn.mlp(3, hidden=(2,))
layers = fr.learn.sgd(model, lr=LR)
NUMBERS = [
    (partial(A.afl, local, ["a"]), "rate"),
    (partial(A.apfl, local), "alpha"),
    (partial(A.cfl, local), "eps1"),
    (partial(A.ditto, local), "prox"),
    (partial(A.dpsgd, local, ["a", "b"]), "edge_probability"),
    (partial(A.drfa, local, ["a"]), "rate"),
    (partial(A.fedamp, local), "sigma"),
    (partial(A.fedasync, local), "alpha"),
    (partial(A.feddf, layers, num_features=3), "lr"),
    (partial(A.feddyn, local, 5), "alpha"),
    (partial(A.fedexp, local), "eps"),
    (partial(A.fedgkt, layers), "weight"),
    (partial(A.fedlora, layers), "alpha"),
    (partial(A.fedmatch, fr.learn.sgd(model, lr=0.01)), "agreement"),
    (partial(A.fednova, local), "mu"),
    (partial(A.fedprox, local), "mu"),
    (partial(A.ifca, local), "spread"),
    (partial(A.mime, local), "momentum"),
    (partial(A.moon, layers), "temperature"),
    (partial(A.per_fedavg, local), "inner_lr"),
    (partial(A.pfedme, local, 1.0, LR), "beta"),
    (partial(A.pretrain, layers, num_features=3), "share"),
    (partial(A.pseudo_label, layers), "threshold"),
    (partial(A.qfedavg, local), "q"),
    (partial(A.scaffold, local, 5), "server_lr"),
    (partial(A.split, model), "lr"),
    (partial(A.splitfed, model), "lr"),
    (partial(A.term, local), "t"),
    (A.vertical_logistic, "l2"),
    (A.vertical_logistic, "lr"),
    (partial(A.vertical_towers, mlp_tower(), model), "lr"),
    (partial(fr.learn.sgd, squares, LR), "l2"),
    (partial(fr.learn.adamw, squares), "beta1"),
    (fr.learn.optimizer.adam, "tau"),
    (fr.learn.schedules.cosine, "lr"),
    (fr.synchronous, "quorum"),
    (fr.buffered, "deadline_s"),
    (partial(oort, local), "alpha"),
    (partial(fr.data.few_labels, None), "share"),
]
OPTIONAL = (NUMBERS[8][0], NUMBERS[12][0], fr.buffered)  # None stands for what is worked out
WHOLE = [
    (partial(A.drfa, local, ["a"]), "steps"),
    (partial(A.feddf, layers, num_features=3), "steps"),
    (partial(A.fedgkt, layers), "epochs"),
    (partial(A.fedlora, layers), "rank"),
    (partial(A.fedmatch, fr.learn.sgd(model, lr=0.01)), "helpers"),
    (partial(A.hierfavg, local), "period"),
    (partial(A.ifca, local), "num_clusters"),
    (partial(A.pfedme, local, 1.0, LR), "local_rounds"),
    (partial(A.pretrain, layers), "num_features"),
    (partial(A.scaffold, local), "num_sites"),
    (partial(A.split, model), "batch_size"),
    (partial(A.split, model), "cut"),
    (partial(A.dpsgd, local, ["a"]), "graph"),
    (partial(A.push_sum, local, ["a"]), "graph"),
    (A.vertical_logistic, "batch_size"),
    (partial(A.evaluation, model), "bins"),
    (partial(fr.learn.sgd, squares, LR), "steps"),
    (fr.synchronous, "retries"),
    (fr.buffered, "size"),
    (partial(oort, local), "pacer_window"),
    (partial(power_of_choice, local), "candidates"),
]


@pytest.mark.parametrize("given", ["0.5", NAN, True, -1.0e9, None])
@pytest.mark.parametrize(("make", "setting"), NUMBERS)
def test_what_is_no_number_that_can_be_meant_is_refused_by_name(make, setting, given):
    if (given == -1.0e9 and setting == "t") or (given is None and make in OPTIONAL):
        return
    told = {"lr": given, "rounds": 3} if make is fr.learn.schedules.cosine else {setting: given}
    with pytest.raises((ValueError, fr.errors.FedrayError), match=f"{setting}={given!r}"):
        make(**told)


@pytest.mark.parametrize("given", ["2", NAN, True, 2.5])
@pytest.mark.parametrize(("make", "setting"), WHOLE)
def test_what_is_no_whole_number_is_refused_by_name(make, setting, given):
    with pytest.raises((ValueError, fr.errors.FedrayError), match=f"{setting}={given!r}"):
        make(**{setting: given})


@pytest.mark.parametrize("wrong", [{"rounds": "3"}, {"rounds": 2.5}, {"rounds": 0}, {"every": NAN}])
def test_rounds_are_whole_numbers(wrong):
    (name,) = wrong
    with fr.simulate(tables) as federation, pytest.raises(ConfigError, match=f"{name}={wrong[name]!r}"):
        fr.fit(A.fedavg(local), federation, **{"init": INIT, "rounds": 1, **wrong})


@pytest.mark.parametrize(("make", "told"), [
    (partial(A.fedlora, layers, variant="naiv"), "variant='naiv': choose one of stacked, naive, ffa"),
    (partial(A.fedlora, layers, init="zero"), "init='zero': choose one of kaiming"),
    (partial(A.feddf, layers, "rows.npy"), "public='rows.npy': give a mapping"),
])  # fmt: skip
def test_what_to_give_instead_is_said(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_public_rows_are_tensors_and_layers_have_a_width():
    with pytest.raises(ValueError, match="public x must be tensors"):
        A.feddf(layers, {"x": [[1.0, 2.0, 3.0]]})
    with pytest.raises(ValueError, match=r"hidden\[1\]=-1"):
        fr.learn.mlp(3, hidden=(4, -1))
    with pytest.raises(ValueError, match=r"hidden\[0\]=-1"):
        mlp_tower(hidden=(-1,))


@pytest.mark.parametrize("make", [A.scaffold, A.feddyn])
@pytest.mark.parametrize("number", [2, 6, 500])
def test_another_number_of_sites_than_there_are_is_refused(make, number):
    with pytest.raises(ConfigError, match=f"num_sites={number}, and there are 5: give it num_sites=5"):
        trained(make(local, number), rounds=1)


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


@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize("init", [{"w": torch.zeros(3), "b": torch.zeros(())},
                                  {"w": torch.zeros(3), "b": torch.zeros((), dtype=torch.float64)}])
def test_first_parameters_that_are_not_finite_are_refused_before_a_site_is_asked(init, bad):
    init = {**init, "w": torch.tensor([0.0, bad, bad])}
    with fr.simulate(tables) as federation, pytest.raises(ConfigError, match=r"2 of 3 first .* of w .*Fix: "):
        fr.fit(A.fedavg(local), federation, init=init, rounds=1)


TWO = {f"h{n:02d}": {"x": torch.ones(5, 3), "y": torch.ones(5)} for n in (1, 2)}


def by_budget(named):
    return A.fedprox(fr.learn.budgeted(layers, dict.fromkeys(named, 1)), 0.1)


@pytest.mark.parametrize(("make", "setting"), [
    (lambda named: A.fedlora(layers, rank=dict.fromkeys(named, 1)), "fedlora(rank=...)"),
    (by_budget, "budgeted(budget=...)"),
    (lambda named: A.fedlora(fr.learn.budgeted(layers, dict.fromkeys(named, 1))), "budgeted(budget=...)"),
])
def test_a_setting_for_a_site_that_there_is_not_is_refused_with_the_nearest(make, setting):
    told = re.escape(f"{setting} names h001, and no site is called that. Fix: h01")
    with fr.simulate(TWO) as federation, pytest.raises(ConfigError, match=told):
        fr.fit(make(["h02", "h001"]), federation, init=model.init(0), rounds=1)
    with fr.simulate(TWO) as federation:
        fr.fit(make(["h02"]), federation, init=model.init(0), rounds=1)


def test_a_start_for_a_site_that_there_is_not_is_refused():
    algorithm = A.vertical_logistic(start={"h02": torch.zeros(3), "h002": torch.zeros(3)})
    told = re.escape("vertical_logistic(start=...) names h002, and no site is called that. Fix: h02")
    with fr.simulate(TWO) as federation, pytest.raises(ConfigError, match=told):
        fr.fit(algorithm, federation, init={"bias": torch.zeros(())}, rounds=1)


@pytest.mark.parametrize("where", ["server", "sites"])
def test_public_rows_of_another_width_are_refused_with_theirs(where):
    algorithm = A.feddf(layers, {"x": torch.zeros(8, 2)}, where=where)
    told = r"cannot predict the public rows \(x \(8, 2\)\): give public="
    with fr.simulate(tables) as federation, pytest.raises(ValueError, match=told):
        fr.fit(algorithm, federation, init=model.init(0), rounds=1)


def test_a_site_without_rows_teaches_nobody():
    data = {n: {"x": torch.ones(rows, 3), "y": torch.ones(rows)} for n, rows in {"a": 4, "b": 0}.items()}
    with fr.simulate(data, allow_empty=True) as federation, pytest.raises(ConfigError, match=r"\(b\)\. Fix"):
        fr.fit(A.feddf(layers, num_features=3, steps=1), federation, init=model.init(0), rounds=1)


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
