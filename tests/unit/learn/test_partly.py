"""Layers that are held still: the same steps in rows as one by one, and no bit of what is still moves."""

import pytest
import torch
from torch import nn

from fedray import learn
from fedray.learn.partly import PartlyStill
from fedray.learn.parts import Part, Still
from fedray.rows import Group, Ragged, Rows, Same
from fedray.testing import check_rows
from tests.unit.learn.test_rows import FEATURES, SETTINGS, sequence, sites, start

MODELS = {
    "mlp": lambda: learn.mlp(FEATURES, (16, 8), dropout=0.3),
    "layer norm": lambda: learn.mlp(FEATURES, (12, 7), norm="layer"),
    "thin": lambda: sequence(nn.Linear(FEATURES, 1), nn.Tanh(), nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1)),
}


def parts_of(model):
    """Return parts of whole layers: the first, the last, one in the middle."""
    layers = sorted({name.partition(".")[0] for name in model.init(0)}, key=int)
    return {"first": Part((layers[0],)), "last": Part((layers[-1],)), "middle": Part((layers[1],))}


def update_of(local, params, count=5):
    chosen = sites()[:count]
    group = Group([f"s{i}" for i in range(count)])
    columns = [Rows(Ragged([site[place] for site in chosen])) for place in (0, 1)]
    return local.rows(group, Same(params), *columns), group


@pytest.mark.parametrize("settings", [name for name in SETTINGS if name != "momentum"])
@pytest.mark.parametrize("place", ["first", "last", "middle"])
@pytest.mark.parametrize("name", MODELS)
def test_rows_are_invariant_and_equal_the_plain_loop(name, place, settings):
    model = MODELS[name]()
    local = learn.sgd(model, lr=0.1, **SETTINGS[settings])
    part = parts_of(model)[place]
    for still in (part, part.rest):
        params = Still(still)(start(model))
        assert check_rows(local, sites(), shared=[params], tolerance=5e-6) > 0
        update, group = update_of(local, params)
        kinds = {key[0] for key in group.cache["trainings"]}
        assert kinds == {PartlyStill}
        assert all(still.holds(leaf) != bool(update.delta.stacked(leaf).any()) for leaf in params)


@pytest.mark.parametrize("settings", [{"momentum": 0.9}, {}])
def test_other_rules_and_pulls_leave_what_is_still_alone(settings):
    model = MODELS["mlp"]()
    make = learn.sgd if settings else learn.adamw
    local = make(model, lr=0.05, batch_size=16, epochs=2, weight_decay=0.0, l2=0.1, **settings)
    params = Still(parts_of(model)["first"])(start(model))
    extras = {
        "anchor": [Still(parts_of(model)["first"])(model.init(9))] * 10,
        "correction": [params] * 10,
        "prox": [0.3] * 10,
    }
    check_rows(local, sites(), shared=[params], named=extras, tolerance=1e-5)
    assert not update_of(local, params)[0].delta.stacked("0.weight").any()


@pytest.mark.parametrize(
    ("words", "settings"),
    [(("0.bias",), {}), (("0",), {"momentum": 0.9, "weight_decay": 0.1}), (("0",), {"record_clip": 1.0})],
    ids=["half a layer", "decay beside momentum", "clipped records"],
)
def test_what_cannot_be_held_still_in_rows_is_trained_one_by_one(words, settings):
    model = learn.mlp(FEATURES, (8,))
    local = learn.sgd(model, lr=0.1, batch_size=16, **settings)
    params = Still(Part(words))(start(model))
    update, group = update_of(local, params)
    assert "trainings" not in group.cache
    plain = [local(params, *site) for site in sites()[:5]]
    assert torch.equal(update.delta.buffer, torch.cat([one.delta.buffer for one in plain]))
    assert all(Part(words).holds(leaf) != bool(update.delta.stacked(leaf).any()) for leaf in params)
