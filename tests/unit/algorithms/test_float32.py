"""In float32, stacked: one round beside the plain form in float64, which equals the papers."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.data.site import SiteData
from fedray.learn import optimizer
from tests.unit.algorithms.cases import CYCLIC, INIT, LR, NUM_FEATURES, STEPS, kept, sites, squares, trained

A = fr.algorithms
MODEL = fr.learn.linear(NUM_FEATURES)  # its loss is twice that of `squares`, so its rate is half
MAKE = {
    "afl": lambda local: A.afl(local, tuple("abcde")),
    "cfl": A.cfl,
    "ditto": lambda local: A.ditto(local, 0.5),
    "fedadam": lambda local: A.fedavg(local, optimizer.adam(0.1)),
    "fedavg": A.fedavg,
    "fedavg_uniform": lambda local: A.fedavg(local, weighted=False),
    "feddyn": lambda local: A.feddyn(local, 5, alpha=0.5),
    "fedexp": A.fedexp,
    "fedlin": A.fedlin,
    "fednova": A.fednova,
    "fedprox": lambda local: A.fedprox(local, 0.5),
    "fine_tuning": A.fine_tuning,
    "ifca": A.ifca,
    "mime": A.mime,
    "mime_rows": lambda local: A.mime(local, control="rows"),
    "mimelite": A.mimelite,
    "one_shot": A.one_shot,
    "qfedavg": lambda local: A.qfedavg(local, 2.0),
    "scaffold_i": lambda local: A.scaffold(local, 5, option="I"),
    "scaffold_ii": lambda local: A.scaffold(local, 5),
    "term": lambda local: A.term(local, 0.05),
}


def single():
    """The sites of `cases` in float32."""
    tables = {site: data.train for site, data in sites().items()}
    return {site: SiteData({n: table[n].float() for n in ("x", "y")}) for site, table in tables.items()}


def bounded(model, rate):
    return fr.learn.budgeted(fr.learn.sgd(model, lr=rate, steps=9), STEPS)


def same_gradient(params, batch):
    """The loss of MODEL as a function of its own: twice `squares`."""
    return 2 * squares(params, batch)


def starts(name, init):
    """The first parameters: IFCA has two models, the second one away from zero."""
    return [init, tree.map(lambda leaf: leaf + 0.5, init)] if name == "ifca" else init


def models(result, *names):
    """Every model that the server has, as one vector."""
    found = getattr(result.params, "models", result.params)
    each = [found] if hasattr(found, "keys") else list(found)
    return torch.cat([model[name].double().flatten() for model in each for name in names])


@pytest.mark.parametrize("name", MAKE)
def test_a_stacked_round_in_float32_is_within_1e_4_of_float64(name):
    stacked = bounded(MODEL, LR / 2)
    assert stacked.rows is not None and bounded(squares, LR).rows is None
    algorithm = MAKE[name](stacked)
    found, _ = trained(algorithm, single(), 1, CYCLIC, starts(name, MODEL.init(0)))
    double, _ = trained(MAKE[name](bounded(same_gradient, LR / 2)), rounds=1, init=starts(name, INIT))
    expected = models(double, "w", "b")
    assert expected.abs().max() > 0.05
    assert (models(found, "weight", "bias") - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["ditto", "local_only"])
def test_what_sites_keep_after_a_stacked_round_in_float32_is_within_1e_4(name):
    make = {**MAKE, "local_only": A.local_only}[name]
    found = trained(make(bounded(MODEL, LR / 2)), single(), 1, CYCLIC, MODEL.init(0), kept)[1]
    double = trained(make(bounded(same_gradient, LR / 2)), rounds=1, look=kept)[1]
    for site in "abc":
        assert np.abs(found[site] - double[site]).max() < 1e-4 * np.abs(double[site]).max()
