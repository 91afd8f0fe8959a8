"""In float32, stacked: one round beside the plain form in float64, which equals the papers."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.data.site import SiteData
from tests.unit.algorithms.cases import CYCLIC, LR, NUM_FEATURES, STEPS, sites, squares, trained, vector

A = fr.algorithms
MODEL = fr.learn.linear(NUM_FEATURES)  # its loss is twice that of `squares`, so its rate is half
MAKE = {
    "afl": lambda local: A.afl(local, tuple("abcde")),
    "feddyn": lambda local: A.feddyn(local, 5, alpha=0.5),
    "fedexp": A.fedexp,
    "fedlin": A.fedlin,
    "fednova": A.fednova,
    "mime": A.mime,
    "mime_rows": lambda local: A.mime(local, control="rows"),
    "mimelite": A.mimelite,
    "qfedavg": lambda local: A.qfedavg(local, 2.0),
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


@pytest.mark.parametrize("name", MAKE)
def test_a_stacked_round_in_float32_is_within_1e_4_of_float64(name):
    stacked = bounded(MODEL, LR / 2)
    assert stacked.rows is not None and bounded(squares, LR).rows is None
    found, _ = trained(MAKE[name](stacked), single(), 1, CYCLIC, MODEL.init(0))
    double, _ = trained(MAKE[name](bounded(same_gradient, LR / 2)), rounds=1)
    flat = torch.cat([found.params["weight"][0], found.params["bias"]]).double().numpy()
    expected = vector(double.params)
    assert np.abs(flat - expected).max() < 1e-4 * np.abs(expected).max()
