"""Models of several tasks beside the same formulas in numpy; labels that are missing count nowhere."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.data.site import SiteData
from fedray.learn import metrics
from fedray.learn.many_tasks import MISSING, ManyTasks
from fedray.rng import Key

ROWS, INPUTS, TASKS = 12, 5, 3


def site(missing=0.5):
    draws = np.random.default_rng(2)
    y = np.where(draws.random((ROWS, TASKS)) < missing, MISSING, (draws.random((ROWS, TASKS)) < 0.5) * 1.0)
    return SiteData({"x": torch.from_numpy(draws.normal(size=(ROWS, INPUTS))).float(),
                     "y": torch.from_numpy(y).float()})  # fmt: skip


def whole():
    """Return (model, parameters of a site)."""
    model = ManyTasks(fr.learn.mlp(INPUTS, hidden=(4,)))
    head = model.make_head(site(), Key(0, 0, "a"))
    return model, {**model.init(3), **{f"head.{name}": leaf for name, leaf in head.items()}}


def by_hand(params, data):
    """Return the logits of the labels that are there, and the labels."""
    p = {name: params[name].double().numpy() for name in params}
    hidden = np.maximum(data["x"].double().numpy() @ p["0.weight"].T + p["0.bias"], 0)
    logits, y = hidden @ p["head.weight"].T + p["head.bias"], data["y"].numpy()
    return logits[y != MISSING], y[y != MISSING]


def test_loss_is_the_mean_over_the_labels_that_are_there():
    model, params = whole()
    z, y = by_hand(params, site())
    assert float(model(params, site())) == pytest.approx(np.mean(np.log1p(np.exp(z)) - y * z), rel=1e-6)
    assert float(model(params, site(missing=1.0))) == 0.0


def test_measures_count_a_label_as_a_row():
    model, params = whole()
    z, y = by_hand(params, site())
    sums, record = (fn(params, site()) for fn in (metrics.evaluate(model), metrics.site_record(model)))
    assert (sums["n"], sums["events"], sums["correct"]) == (len(y), y.sum(), ((z >= 0) == (y > 0)).sum())
    better = (z[y == 1][:, None] > z[y == 0]).mean()
    assert record["auroc"] == pytest.approx(better)
    assert record["loss"] == pytest.approx(sums["loss_sum"] / len(y))


def test_the_trunk_is_the_model_without_its_last_layer_and_heads_fit_the_tasks_of_a_site():
    model, params = whole()
    assert list(model.init(0)) == ["0.weight", "0.bias"]
    assert params["head.weight"].shape == (TASKS, 4) and params["head.weight"].abs().max() <= 0.5


@pytest.mark.parametrize("made", [{"dropout": 0.1}, {"norm": "batch"}, {"hidden": ()}])
def test_a_model_that_has_no_such_trunk_is_refused(made):
    with pytest.raises(ValueError, match=r"many tasks|head"):
        ManyTasks(fr.learn.mlp(INPUTS, **{"hidden": (4,), **made}))
