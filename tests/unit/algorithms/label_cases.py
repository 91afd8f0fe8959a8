"""Five hospitals with few labels: logistic regression in float64, by hand in numpy. -1 is no label.

`a` has no label, `b` has all, the others some; c and d are equal.
"""

import numpy as np
import torch

from fedray.data.site import SiteData
from tests.unit.algorithms.cases import NUM_FEATURES, SIZES
from tests.unit.algorithms.cases import tables as regression_tables

KEPT = {"a": 0.0, "b": 1.0, "c": 0.4, "d": 0.4, "e": 0.2}
ZERO = {"w": torch.zeros(NUM_FEATURES, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}
START = np.array([0.3, -0.2, 0.5, 0.1])
INIT = {"w": torch.tensor(START[:-1]), "b": torch.tensor(START[-1])}


def tables():
    """Return {site: (x with a column of ones, y in 0, 1, -1)}."""
    draws = np.random.default_rng(11)
    made = {}
    for site, (x, outcome) in regression_tables().items():
        y = (outcome > np.median(outcome)).astype(float)
        made[site] = (x, np.where(draws.random(len(y)) < KEPT[site], y, -1.0))
    return {**made, "d": made["c"]}


def sites():
    return {
        site: SiteData({"x": torch.from_numpy(x[:, :-1].copy()), "y": torch.from_numpy(y)})
        for site, (x, y) in tables().items()
    }


def logits(params, batch):
    return batch["x"] @ params["w"] + params["b"]


def loss(params, batch):
    assert (batch["y"] >= 0).all()  # a row without a label never reaches a loss as it is
    return torch.nn.functional.binary_cross_entropy_with_logits(logits(params, batch), batch["y"])


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def slope(w, x, y):
    """Return the gradient of the mean cross-entropy; 0 without rows."""
    return x.T @ (sigmoid(x @ w) - y) / len(y) if len(y) else np.zeros_like(w)


def mean(found, cohort, weighted=True):
    """Return the mean of vectors by site, by rows or uniform."""
    rows = {i: SIZES[i] if weighted else 1 for i in cohort}
    return sum(rows[i] * found[i] for i in cohort) / sum(rows.values())
