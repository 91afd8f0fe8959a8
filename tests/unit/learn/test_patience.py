"""Local early stop: the best epoch on a site's own validation rows, in the plain loop and in rows."""

import math

import pytest
import torch
from torch import nn

from fedray import learn, tree
from fedray.data.site import SiteData
from fedray.learn.stopping import Watch
from fedray.rng import Key
from fedray.testing import check_rows, difference

from .test_mapped import Residual, together
from .test_rows import FEATURES, data_of, start

KEY = Key(1, 2, "h")


def held_out(rows, number, target="binary", valid=12):
    """A site whose last rows are for validation, where it has so many."""
    data = data_of(rows, target, 7 + number)
    cut = max(rows - valid, 0) if valid else rows
    return SiteData(data.columns, {"train": torch.arange(cut), "valid": torch.arange(cut, rows)})


def sites(target="binary", sizes=(40, 90, 33, 64, 20, 150, 13, 70)):
    found = [[held_out(rows, i, target), Key(1, 2, f"h{i}")] for i, rows in enumerate(sizes)]
    return [
        *found,
        [data_of(30, target, 1), Key(1, 2, "without")],
        [held_out(30, 2, target, 0), Key(1, 2, "none")],
    ]


def steps_of(local, params, given):
    return [local(params, *site).num_steps for site in given]


SETTINGS = {
    "batches": {"batch_size": 16, "epochs": 12, "lr": 1.0},
    "whole tables": {"batch_size": None, "epochs": 30, "lr": 3.0},
    "wide batches": {"batch_size": 300, "epochs": 30, "lr": 3.0},
    "steps": {"batch_size": 16, "steps": 31, "lr": 1.0},
    "momentum": {"batch_size": 16, "epochs": 12, "lr": 0.3, "momentum": 0.9},
    "penalties": {"batch_size": 16, "epochs": 12, "lr": 1.0, "l2": 0.001, "prox": 0.01},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("form", ["auto", "loop"])
def test_rows_stop_where_the_plain_loop_stops(settings, form):
    model = learn.mlp(FEATURES, (8,))
    local = learn.sgd(model, patience=2, form=form, **SETTINGS[settings])
    endless = learn.sgd(model, form="loop", **SETTINGS[settings])
    params, given = start(model), sites()
    if form == "auto":
        check_rows(local, given, shared=[params], tolerance=1e-4)
    stopped = [a < b for a, b in zip(*(steps_of(fn, params, given) for fn in (local, endless)), strict=True)]
    assert any(stopped) and not all(stopped) and not any(stopped[-2:])


@pytest.mark.parametrize("model", ["softmax", "dropout"])
def test_other_models_stop_alike(model):
    made = {
        "softmax": lambda: (learn.logistic(FEATURES, num_classes=3), "classes"),
        "dropout": lambda: (learn.mlp(FEATURES, (16,), dropout=0.3), "binary"),
    }
    net, target = made[model]()
    local = learn.adamw(net, lr=0.05, batch_size=16, epochs=15, patience=1)
    check_rows(local, sites(target), shared=[start(net)], tolerance=1e-4)


def test_mapped_modules_stop_alike():
    model, given = learn.from_module(Residual), sites()
    settings = {"lr": 0.5, "batch_size": 16, "epochs": 12, "patience": 1}
    found = together(learn.sgd(model, form="vmap", **settings), given, start(model))
    loop = learn.sgd(model, form="loop", **settings)
    for i, site in enumerate(given):
        plain = loop(start(model), *site)
        assert found.num_steps.row(i) == plain.num_steps
        assert difference(found.delta.row(i), plain.delta) < 1e-4


@pytest.mark.parametrize("form", ["auto", "loop"])
def test_the_update_is_that_of_the_best_epoch(form):
    """Against a loop over epochs that starts again each time and measures the validation rows itself."""
    model, data = learn.mlp(FEATURES, (8,)), held_out(90, 1)
    params, settings = start(model), {"lr": 1.0, "batch_size": 16, "form": "loop"}
    updates = [learn.sgd(model, epochs=epoch, **settings)(params, data, KEY) for epoch in range(1, 13)]
    losses = [float(model.loss(tree.add(params, update.delta), data.valid)) for update in updates]
    first = next(i for i in range(2, 12) if min(losses[: i - 1]) <= min(losses[i - 1 : i + 1]))
    best = min(range(first + 1), key=losses.__getitem__)
    local = learn.sgd(model, lr=1.0, batch_size=16, epochs=12, patience=2, form=form)
    found = local(params, data, KEY) if form == "loop" else row_alone(local, params, data)
    assert best == first - 2 and first < 11
    assert difference(found.delta, updates[best].delta) < 1e-5
    assert found.num_steps == updates[first].num_steps
    assert found.metrics["loss"] == pytest.approx(updates[first].metrics["loss"], rel=1e-5)


def row_alone(local, params, data):
    found = together(local, [(data, KEY)], params)
    return learn.Update(
        found.delta, found.num_examples.row(0), found.num_steps.row(0), {"loss": found.metrics["loss"].row(0)}
    )


def test_without_validation_rows_patience_changes_nothing():
    model, data = learn.mlp(FEATURES, (8,)), data_of(50, "binary", 3)
    settings = {"lr": 1.0, "batch_size": 16, "epochs": 8}
    with_, without = (learn.sgd(model, patience=given, **settings) for given in (1, None))
    assert tree.equal(with_(start(model), data, KEY), without(start(model), data, KEY))
    assert tree.equal(*(row_alone(local, start(model), data) for local in (with_, without)))


def test_batch_statistics_are_those_of_the_best_epoch():
    model = learn.from_module(nn.Sequential(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)))
    data, params = held_out(60, 4), model.init(0)
    local = learn.sgd(model, lr=2.0, batch_size=16, epochs=10, patience=1)
    found = local(params, data, KEY)
    candidates = [learn.sgd(model, lr=2.0, batch_size=16, epochs=e)(params, data, KEY) for e in range(1, 11)]
    losses = [float(model.loss(tree.add(params, update.delta), data.valid)) for update in candidates]
    rises = next(i for i in range(1, 10) if losses[i] >= min(losses[:i]))
    assert tree.equal(found.delta, candidates[rises - 1].delta) and found.num_steps < candidates[-1].num_steps


def test_a_loss_that_is_no_number_counts_as_no_improvement():
    watch = Watch(learn.sgd(learn.logistic(2), lr=0.1, patience=2), rows=10, steps=9)
    assert [watch.note(loss) for loss in (math.nan, 3.0, math.nan, 2.0, 2.0)] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert not watch.is_over and not watch.note(2.5) and watch.is_over


def test_patience_must_be_above_zero():
    with pytest.raises(ValueError, match="patience=0"):
        learn.sgd(learn.logistic(2), lr=0.1, patience=0)
