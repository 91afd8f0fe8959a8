"""`form="vmap"`: modules without a chain, over stacked sites; equal to the plain loop, rows not promised."""

import pytest
import torch
from torch import nn

from fedray import learn, tree
from fedray.data.site import SiteData
from fedray.learn.mapped import HOW
from fedray.rng import Key
from fedray.rows import Group, Ragged, Rows, Same, row
from fedray.testing import difference

from .test_rows import FEATURES, data_of, sequence, start

SIZES = (5, 17, 33, 64, 1, 0)


class Residual(nn.Module):
    """A forward of its own, a skip connection and a parameter without a dimension."""

    def __init__(self, width=8, outputs=1):
        super().__init__()
        self.enter, self.inner = nn.Linear(FEATURES, width), nn.Linear(width, width)
        self.leave, self.scale = nn.Linear(width, outputs), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        h = torch.relu(self.enter(x))
        return self.leave(h + self.scale * torch.tanh(self.inner(h)))


class OverRows(Residual):
    """Looks at the other rows of a batch."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


def images(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 1, 8, 8, generator=generator)
    return SiteData({"x": x, "y": torch.randint(0, 3, (rows,), generator=generator)})


def sites(target="binary"):
    made = images if target == "images" else lambda rows, seed: data_of(rows, target, seed)
    return [(made(rows, 7 + i), Key(1, 2, f"h{i}")) for i, rows in enumerate(SIZES)]


def together(local, given, params, **extras):
    group = Group([key.site for _, key in given])
    data, keys = (Rows(Ragged(column)) for column in zip(*given, strict=True))
    return local.rows(
        group, Same(params), data, keys, **{name: Same(value) for name, value in extras.items()}
    )


def assert_equal_to_the_loop(model, target="binary", rule=learn.sgd, **settings):
    params, given = start(model), sites(target)
    loop = rule(model, form="loop", **settings)
    found = Rows(together(rule(model, form="vmap", **settings), given, params))
    for i, (data, key) in enumerate(given):
        assert difference(row(found, i), loop(params, data, key)) < 1e-5
    assert any(difference(row(found, i).delta, tree.zeros_like(params)) > 1e-3 for i in range(len(given)))


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 16, "epochs": 2},
        {"batch_size": None, "epochs": 3},
        {"batch_size": 300},
        {"batch_size": 16, "momentum": 0.9, "weight_decay": 0.01},
        {"batch_size": 16, "prox": 0.3},
        {"batch_size": 16, "l2": 0.1, "prox": 0.3, "clip_norm": 0.3},
        {"batch_size": 16, "weight_decay": 0.1, "pos_weight": 2.0},
    ],
    ids=str,
)
def test_a_module_with_a_forward_of_its_own_equals_the_plain_loop(settings):
    assert_equal_to_the_loop(learn.from_module(Residual), lr=0.1, **settings)


def test_several_classes_and_adamw_equal_the_plain_loop():
    model = learn.from_module(lambda: Residual(outputs=3), task="classes")
    assert_equal_to_the_loop(model, "classes", learn.adamw, lr=0.01, batch_size=16)


def test_images_equal_the_plain_loop():
    model = learn.cnn((1, 8, 8), (4,), num_classes=3, norm="group")
    assert_equal_to_the_loop(model, "images", lr=0.05, batch_size=16, epochs=2)


def test_one_step_of_a_large_model_equals_the_plain_loop():
    model = learn.from_module(lambda: Residual(width=520))
    assert_equal_to_the_loop(model, lr=0.05, batch_size=16, steps=1)


def test_extras_of_a_site_equal_the_plain_loop():
    model = learn.from_module(Residual)
    params, given = start(model), sites()
    extras = {"correction": tree.scale(params, 0.01), "lr": 0.02, "steps": 3}
    found = Rows(together(learn.sgd(model, lr=0.1, batch_size=16, form="vmap"), given, params, **extras))
    loop = learn.sgd(model, lr=0.1, batch_size=16, form="loop")
    for i, (data, key) in enumerate(given):
        assert difference(row(found, i), loop(params, data, key, **extras)) < 1e-5


def test_vmap_is_said_and_chosen_by_name_only():
    assert learn.sgd(learn.from_module(Residual), lr=0.1, form="vmap").how == f"stacked, {HOW}"
    for model in (learn.from_module(Residual), learn.cnn((1, 8, 8), (4,)), learn.mlp(FEATURES)):
        assert "vmap" not in learn.sgd(model, lr=0.1).how
    assert learn.sgd(learn.from_module(Residual), lr=0.1).rows is None


def frozen():
    module = Residual()
    module.inner.weight.requires_grad_(False)
    return learn.from_module(module)


@pytest.mark.parametrize(
    ("make", "settings", "why"),
    [
        (lambda: learn.mlp(FEATURES, (8,), dropout=0.5), {}, "dropout"),
        (lambda: sequence(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), {}, "buffers"),
        (
            lambda: sequence(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4, track_running_stats=False)),
            {},
            "batch statistics",
        ),
        (frozen, {}, "frozen"),
        (lambda: learn.from_module(Residual, loss=nn.functional.mse_loss), {}, "loss of its own"),
        (lambda: learn.from_module(Residual, inputs=("x", "z")), {}, "several inputs"),
        (lambda: learn.gru(FEATURES), {}, "recurrent"),
        (lambda: learn.from_module(Residual), {"record_clip": 1.0}, "record-level clipping"),
        (lambda: learn.from_module(Residual), {"amp": True}, "mixed precision"),
    ],
)
def test_what_cannot_be_mapped_is_refused_with_the_reason(make, settings, why):
    with pytest.raises(ValueError, match=why):
        learn.sgd(make(), lr=0.1, form="vmap", **settings)


@pytest.mark.parametrize(
    ("module", "why"), [(OverRows, "depend on each other"), (lambda: Residual(outputs=2), "2 outputs")]
)
def test_what_only_the_rows_tell_is_refused_when_they_come(module, why):
    model = learn.from_module(module)
    with pytest.raises(ValueError, match=why):
        together(learn.sgd(model, lr=0.1, form="vmap"), sites(), start(model))
