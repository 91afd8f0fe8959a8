"""Every loop over local steps asks before each step whether anybody waits for it."""

import pytest
import torch
from torch import nn

import fedray as fr
from fedray import learn
from fedray.adapters.fedml import Batches
from fedray.cancellation import Cancelled, asking
from fedray.data.site import SiteData
from fedray.rng import Key
from fedray.rows import Group, Ragged, Rows, Same

FEATURES, STEPS = 6, 7


def site(number, rows=50):
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(rows, FEATURES, generator=generator)
    splits = {"train": torch.arange(40), "valid": torch.arange(40, rows)}
    return SiteData({"x": x, "y": (x[:, 0] > 0).float()}, splits)


def mlp():
    return learn.mlp(FEATURES, (8,))


def still():
    body = nn.Linear(FEATURES, 8)
    layers = nn.Sequential(body.requires_grad_(False), nn.ReLU(), nn.Linear(8, 1))
    return learn.from_module(layers, task="binary")


def large():
    return learn.mlp(FEATURES, (1024, 256))


def loss(params, batch):
    return (batch["x"] @ params["w"] - batch["y"]).square().mean()


USUAL = {"lr": 0.1, "steps": STEPS, "batch_size": 8}
PRIVATE = {"lr": 0.1, "steps": STEPS, "sampling_rate": 0.3, "noise_multiplier": 1.0}
LOOPS = {
    "one by one": (mlp, lambda model: learn.sgd(model, **USUAL, form="loop"), STEPS),
    "stacked": (mlp, lambda model: learn.sgd(model, **USUAL), STEPS),
    "vmap": (mlp, lambda model: learn.sgd(model, **USUAL, form="vmap"), STEPS),
    "adamw": (mlp, lambda model: learn.adamw(model, **USUAL), STEPS),
    "early stop": (mlp, lambda model: learn.sgd(model, **USUAL, patience=1000), STEPS),
    "held still": (still, lambda model: learn.sgd(model, **USUAL), STEPS),
    "one large step": (large, lambda model: learn.sgd(model, lr=0.1, steps=1), 1),
    "private, one by one": (mlp, lambda model: learn.private_sgd(model, **PRIVATE, form="loop"), STEPS),
    "private, stacked": (mlp, lambda model: learn.private_sgd(model, **PRIVATE), STEPS),
}


class Counts:
    """Says yes from one question on."""

    def __init__(self, first):
        self.first, self.asked = first, 0

    def __call__(self):
        self.asked += 1
        return self.asked >= self.first


def train(local, model):
    params = model.init(0)
    if local.rows is None:
        return local(params, site(0), Key(0, 0, "a"))
    data, keys = Rows(Ragged([site(0), site(1)])), Rows(Ragged([Key(0, 0, "a"), Key(0, 0, "b")]))
    return local.rows(Group(["a", "b"]), Same(params), data, keys)


@pytest.mark.parametrize("name", LOOPS)
def test_a_training_asks_before_each_step_and_stops_there(name):
    make, local, steps = LOOPS[name][0], *LOOPS[name][1:]
    model = make()
    never, last = Counts(10**9), Counts(steps)
    with asking(never):
        train(local(model), model)
    with asking(last), pytest.raises(Cancelled):
        train(local(model), model)
    assert never.asked >= steps and last.asked == steps


@pytest.mark.parametrize("name", [name for name in LOOPS if not name.startswith("private")])
def test_a_training_that_was_stopped_leaves_nothing_in_the_next_one(name):
    make, local, steps = LOOPS[name][0], *LOOPS[name][1:]
    model = make()
    again = local(model)
    expected = train(local(model), model)
    with asking(Counts(steps)), pytest.raises(Cancelled):
        train(again, model)
    assert torch.equal(train(again, model).delta.buffer, expected.delta.buffer)


def test_a_function_of_ones_own_is_trained_by_a_loop_that_asks():
    with asking(Counts(3)), pytest.raises(Cancelled):
        learn.sgd(loss, lr=0.1, steps=STEPS)({"w": torch.zeros(FEATURES)}, site(0), Key(0, 0, "a"))


def test_the_batches_of_a_fedml_trainer_end_where_nobody_waits():
    seen = []
    with asking(Counts(3)), pytest.raises(Cancelled):
        seen.extend(Batches(site(0).train, 8, torch.Generator()))
    assert len(seen) <= 2 and fr.learn.stop_if_cancelled() is None
