"""The stacked form of local training: rows are invariant, and equal the plain loop with the same batches."""

import math

import pytest
import torch
from torch import nn

from fedray import learn, tree
from fedray.data.site import SiteData
from fedray.learn.dropout import words, words_of
from fedray.rng import Key, Keys
from fedray.rows import Group, Ragged, Rows, Same
from fedray.testing import check_rows, difference

FEATURES = 6
SIZES = (5, 17, 32, 33, 64, 70, 129, 1, 90, 40)


def data_of(rows, target, seed, features=FEATURES):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator)
    binary = (torch.rand(rows, generator=generator) < torch.sigmoid(x.sum(1))).float()
    classes = torch.randint(0, 3, (rows,), generator=generator)
    words_in = torch.randint(0, 20, (rows, 9), generator=generator)
    hazards = torch.stack([torch.randint(0, 4, (rows,), generator=generator).float(), binary], dim=1)
    targets = {"binary": binary, "classes": classes, "number": x[:, :2] * 2, "hazards": hazards}
    return SiteData({"x": words_in if target == "bag" else x, "y": targets.get(target, binary)})


def sites(target="binary", sizes=SIZES):
    return [[data_of(rows, target, 7 + i), Key(1, 2, f"h{i}")] for i, rows in enumerate(sizes)]


def start(model):
    """Parameters in which no leaf is constant."""
    flat = model.init(3)
    noise = torch.Generator().manual_seed(5)
    return tree.flatten({n: flat[n] + 0.1 * torch.randn(flat[n].shape, generator=noise) for n in flat})


def sequence(*layers, task="binary"):
    return learn.from_module(nn.Sequential(*layers), task=task)


MODELS = {
    "logistic": lambda: (learn.logistic(FEATURES), "binary"),
    "softmax": lambda: (learn.logistic(FEATURES, num_classes=3), "classes"),
    "linear": lambda: (learn.linear(FEATURES, num_outputs=2), "number"),
    "mlp": lambda: (learn.mlp(FEATURES, (16, 8)), "binary"),
    "mlp of whole lines": lambda: (learn.mlp(FEATURES, (8, 16)), "binary"),
    "mlp of odd widths": lambda: (learn.mlp(FEATURES, (7, 5), num_classes=3), "classes"),
    "mlp with dropout": lambda: (learn.mlp(FEATURES, (16, 8), dropout=0.3), "binary"),
    "bag": lambda: (learn.bag_of_embeddings(20, 8), "bag"),
    "hazards": lambda: (sequence(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 5), task="hazards"),
    "hazards"),
    "no bias": lambda: (sequence(nn.Linear(FEATURES, 8, bias=False), nn.ReLU(), nn.Linear(8, 1)), "binary"),
    "through one feature": lambda: (
        sequence(nn.Linear(FEATURES, 1), nn.Tanh(), nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1)),
        "binary",
    ),
    "layer norm": lambda: (
        sequence(nn.Linear(FEATURES, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 1)),
        "binary",
    ),
    "nested": lambda: (
        sequence(nn.Sequential(nn.Linear(FEATURES, 8), nn.Sigmoid()), nn.Identity(), nn.Linear(8, 1)),
        "binary",
    ),
    "two activations": lambda: (
        sequence(nn.Linear(FEATURES, 8), nn.Tanh(), nn.ReLU(), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1)),
        "binary",
    ),
}
ACTIVATIONS = [
    nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.LeakyReLU(0.2), nn.ELU(), nn.Softplus(), nn.Mish(),
    nn.Hardswish(), nn.Softmax(dim=-1), nn.LogSoftmax(dim=1), nn.Tanhshrink(), nn.SELU(),
]  # fmt: skip
SETTINGS = {
    "batches of 16": {"batch_size": 16},
    "batches of 32, three epochs": {"batch_size": 32, "epochs": 3},
    "whole tables": {"batch_size": None, "epochs": 3},
    "wide batches": {"batch_size": 300, "epochs": 2},
    "steps": {"batch_size": 20, "steps": 7},
    "momentum": {"batch_size": 16, "momentum": 0.9, "weight_decay": 0.01},
    "penalties": {"batch_size": 16, "l2": 0.1, "prox": 0.3, "weight_decay": 0.02},
    "clipped": {"batch_size": 16, "l2": 0.1, "clip_norm": 0.3},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_rows_are_invariant_and_equal_the_plain_loop(name, settings):
    model, target = MODELS[name]()
    local = learn.sgd(model, lr=0.1, **SETTINGS[settings])
    assert check_rows(local, sites(target), shared=[start(model)], tolerance=5e-6) > 0


@pytest.mark.parametrize("settings", [*SETTINGS.values(), {"batch_size": 16, "record_clip": 0.2}])
@pytest.mark.parametrize("features", [16, 96])
def test_one_output_of_whole_lines_in_rows_equals_the_plain_loop(features, settings):
    model = learn.logistic(features)
    given = [[data_of(n, "binary", i, features), Key(1, 2, f"h{i}")] for i, n in enumerate(SIZES)]
    check_rows(learn.sgd(model, lr=0.1, **settings), given, shared=[start(model)], tolerance=5e-6)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"batch_size": None}])
def test_a_pull_beside_a_correction_in_rows_equals_the_plain_loop(settings):
    model = learn.mlp(FEATURES, (8, 16))
    local = learn.sgd(model, lr=0.1, prox=0.4, **{"batch_size": 16, **settings})
    params = start(model)
    named = {"correction": [tree.scale(params, 0.05 * i) for i in range(len(SIZES))]}
    check_rows(local, sites(), shared=[params], named=named, tolerance=5e-6)


@pytest.mark.parametrize("name", ["logistic", "mlp of whole lines", "mlp with dropout", "bag", "layer norm"])
def test_adamw_in_rows_equals_the_plain_loop(name):
    model, target = MODELS[name]()
    local = learn.adamw(model, lr=0.01, batch_size=16, epochs=2, weight_decay=0.1)
    check_rows(local, sites(target), shared=[start(model)], tolerance=1e-5)


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=repr)
def test_every_activation_in_rows_equals_the_plain_loop(layer):
    model = sequence(nn.Linear(FEATURES, 8), layer, nn.Linear(8, 1))
    check_rows(learn.sgd(model, lr=0.1, batch_size=16), sites(), shared=[start(model)], tolerance=5e-6)


@pytest.mark.parametrize("layer", [nn.GELU(), nn.SiLU(), nn.ELU(), nn.Tanh(), nn.Mish()], ids=repr)
@pytest.mark.parametrize("features", [15, 16])
def test_an_activation_after_one_output_is_row_invariant(features, layer):
    model = sequence(nn.Linear(features, 1), layer, nn.Linear(1, 1))
    sizes = [(1, 2, 7, 20, 40)[i % 5] for i in range(26)]
    given = [[data_of(n, "binary", i, features), Key(1, 2, f"h{i}")] for i, n in enumerate(sizes)]
    check_rows(learn.sgd(model, lr=0.1, batch_size=8), given, shared=[start(model)], tolerance=5e-6)


@pytest.mark.parametrize("settings", [{"pos_weight": 3.0}, {"pos_weight": 0.5, "batch_size": None}])
def test_positive_weight_in_rows_equals_the_plain_loop(settings):
    local = learn.sgd(learn.mlp(FEATURES, (8,)), lr=0.1, **{"batch_size": 16, **settings})
    check_rows(local, sites(), shared=[start(local.model)], tolerance=5e-6)


def test_class_weights_in_rows_equal_the_plain_loop():
    model = learn.mlp(FEATURES, (8,), num_classes=3)
    local = learn.sgd(model, lr=0.1, batch_size=16, pos_weight=[1.0, 2.0, 0.5])
    check_rows(local, sites("classes"), shared=[start(model)], tolerance=5e-6)


@pytest.mark.parametrize("name", ["logistic", "mlp", "layer norm", "bag"])
@pytest.mark.parametrize("batch_size", [16, None])
def test_record_clipping_in_rows_equals_row_by_row(name, batch_size):
    model, target = MODELS[name]()
    local = learn.sgd(model, lr=0.5, batch_size=batch_size, record_clip=0.2)
    check_rows(local, sites(target), shared=[start(model)], tolerance=5e-6)


def test_a_row_moves_no_further_than_its_clip():
    model = learn.mlp(FEATURES, (8,))
    data = data_of(1, "binary", 0)
    local = learn.sgd(model, lr=1.0, record_clip=0.01)
    update = local(start(model), SiteData({"x": data["x"] * 10, "y": 1 - (data["x"].sum(1) > 0).float()}),
    Key(0, 0, "h"))
    assert 0 < tree.norm(update.delta) <= 0.01 * (1 + 1e-4)


@pytest.mark.parametrize("settings", ["batches of 16", "whole tables", "momentum", "clipped"])
def test_extras_of_each_site_in_rows_equal_the_plain_loop(settings):
    model = learn.mlp(FEATURES, (8,))
    local = learn.sgd(model, lr=0.1, **SETTINGS[settings])
    params = start(model)
    many = len(SIZES)
    named = {
        "correction": [tree.scale(params, 0.01 * i) for i in range(many)],
        "lr": [0.02 * i for i in range(many)],
        "steps": list(range(many)),
    }
    check_rows(local, sites(), shared=[params], named=named, tolerance=5e-6)


def test_personal_parameters_and_anchor_stay_stacked():
    model = learn.mlp(FEATURES, (8,))
    local = learn.sgd(model, lr=0.1, batch_size=16)
    params = start(model)
    given = [[tree.scale(params, 1 + 0.1 * i), *site] for i, site in enumerate(sites())]
    named = {"anchor": [params] * len(given), "prox": [0.5] * len(given)}
    check_rows(local, given, named=named, tolerance=5e-6)


def test_a_site_without_rows_does_not_move():
    model = learn.mlp(FEATURES, (8,))
    local = learn.sgd(model, lr=0.1, batch_size=16)
    check_rows(local, sites(sizes=(0, 20, 0, 3)), shared=[start(model)], tolerance=5e-6)


def test_float64_rows_equal_the_plain_loop_to_float64():
    model = learn.mlp(FEATURES, (16, 8))
    params = tree.map(lambda buffer: buffer.double(), start(model))
    local = learn.sgd(model, lr=0.1, batch_size=16, epochs=2)
    check_rows(local, sites(), shared=[params], tolerance=1e-13)


def test_sites_in_one_table_give_the_bits_of_sites_apart():
    model = learn.mlp(FEATURES, (8,))
    local, params = learn.sgd(model, lr=0.1, batch_size=16), start(model)
    apart, together = sites(), sites()
    SiteData.together([data for data, _ in together])
    assert len({data.train["x"].untyped_storage().data_ptr() for data, _ in together}) == 1
    for left, right in zip(apart, together, strict=True):
        assert tree.equal(local(params, *left), local(params, *right))
    check_rows(local, together, shared=[params], tolerance=5e-6)


@pytest.mark.parametrize("name", ["mlp", "bag"])
def test_inputs_are_not_written_to(name):
    model, target = MODELS[name]()
    local, params = learn.sgd(model, lr=0.1, batch_size=16), start(model)
    before, version = params.buffer.clone(), params.buffer._version
    data = sites(target)
    tables = [site["x"].clone() for site, _ in data]
    check_rows(local, data, shared=[params], tolerance=None)
    assert torch.equal(params.buffer, before) and params.buffer._version == version
    assert all(torch.equal(site["x"], table) for (site, _), table in zip(data, tables, strict=True))


def test_words_of_many_keys_are_those_of_each():
    keys = [Key(3, r, "x").value for r in range(4)]
    found = words_of(keys, 2, 5)
    expected = [[[list(words(key, layer, step)) for layer in range(2)] for key in keys] for step in range(5)]
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: learn.cnn((1, 8, 8), (4,)), "Sequential has a layer without a stacked form"),
        (lambda: learn.from_module(nn.Linear(3, 1), loss=nn.functional.mse_loss), "a loss of its own"),
        (lambda: sequence(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), "layer without a stacked"),
        (lambda: sequence(nn.Linear(3, 2)), "2 outputs for a binary outcome"),
        (lambda: learn.from_module(nn.Linear(3, 1), inputs=("x", "z")), "several inputs"),
    ],
)
def test_what_cannot_be_stacked_is_trained_site_by_site_and_says_why(model, why):
    local = learn.sgd(model(), lr=0.1)
    assert local.rows is None and why in local.how
    with pytest.raises(ValueError, match="is not possible"):
        learn.sgd(model(), lr=0.1, form="stacked")


def test_the_form_can_be_forced_to_the_loop():
    local = learn.sgd(learn.logistic(3), lr=0.1, form="loop")
    assert local.rows is None and "was asked for" in local.how


def test_frozen_and_shared_parameters_are_left_to_the_loop():
    frozen = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    frozen[0].weight.requires_grad_(False)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    tied[1].weight = tied[0].weight
    for module in (frozen, tied):
        assert learn.sgd(learn.from_module(module), lr=0.1).rows is None


def test_difference_sees_numbers_and_tensors():
    assert difference({"a": 1.0, "b": torch.ones(2)}, {"a": 1.5, "b": torch.ones(2) * 3}) == 2.0


def test_check_rows_finds_a_twin_whose_rows_depend_on_their_neighbours():
    def fn(x):
        return x

    fn.rows = lambda group, x: x.value + group.k
    with pytest.raises(AssertionError, match="other bits among 2 sites"):
        check_rows(fn, [[torch.ones(3)] for _ in range(4)])


class _Square(nn.ReLU):
    def forward(self, x):
        return x * x


def _hooked():
    module = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, 1))
    module.register_forward_hook(lambda layer, given, out: out * 2)
    return module


def test_what_only_looks_like_a_known_layer_is_left_to_the_loop():
    subclass = nn.Sequential(nn.Linear(FEATURES, 4), _Square(), nn.Linear(4, 1))
    bag = nn.Sequential(nn.EmbeddingBag(20, 4, scale_grad_by_freq=True), nn.Linear(4, 1))
    for module in (subclass, _hooked(), bag):
        assert learn.sgd(learn.from_module(module), lr=0.1).rows is None


def test_a_layer_that_stands_in_two_places_is_applied_twice():
    act, drop = nn.Tanh(), nn.Dropout(0.3)
    model = sequence(nn.Linear(FEATURES, 8), act, drop, nn.Linear(8, 8), act, drop, nn.Linear(8, 1))
    local = learn.sgd(model, lr=0.1, batch_size=16)
    assert check_rows(local, sites(), shared=[start(model)], tolerance=5e-6) > 0


def test_strided_views_of_one_tensor_give_their_own_rows():
    whole = data_of(120, "binary", 3)
    given = [[SiteData({"x": whole["x"][i::4], "y": whole["y"][i::4]}), Key(1, 2, f"h{i}")] for i in range(4)]
    model = learn.mlp(FEATURES, (8,))
    check_rows(learn.sgd(model, lr=0.1, batch_size=16), given, shared=[start(model)], tolerance=5e-6)


@pytest.mark.parametrize(
    ("make", "data", "error"),
    [
        (
            lambda: learn.bag_of_embeddings(10, 4),
            {"x": torch.full((9, 3), 12), "y": torch.ones(9)},
            IndexError,
        ),
        (lambda: learn.logistic(FEATURES), {"x": torch.ones(9, 1), "y": torch.ones(9)}, RuntimeError),
        (lambda: learn.logistic(FEATURES), {"x": torch.ones(9, FEATURES), "y": torch.ones(9, 1)}, ValueError),
        (lambda: learn.linear(FEATURES, 3), {"x": torch.ones(9, FEATURES), "y": torch.ones(9)}, ValueError),
        (
            lambda: learn.logistic(FEATURES, num_classes=3),
            {"x": torch.ones(9, FEATURES), "y": torch.full((9,), 7)},
            ValueError,
        ),
    ],
)
def test_data_that_do_not_fit_are_refused_and_not_broadcast(make, data, error):
    model = make()
    local = learn.sgd(model, lr=0.1, batch_size=4)
    group = Group(["a"])
    with pytest.raises(error):
        local.rows(group, Same(start(model)), Rows(Ragged([SiteData(data)])), Rows(Ragged([Key(0, 0, "a")])))


def test_a_site_that_does_not_fit_beside_sites_that_do_takes_the_plain_form():
    model = sequence(nn.Linear(FEATURES, 1))
    local, params = learn.sgd(model, lr=0.1, batch_size=4), start(model)
    hours = SiteData({"x": torch.randn(9, 5, FEATURES), "y": torch.ones(9, 5)})
    check_rows(local, [[hours, Key(0, 0, "odd")], *sites()], shared=[params], tolerance=5e-6)


def test_an_unknown_extra_is_refused_and_none_is_none():
    model = learn.logistic(FEATURES)
    local, params = learn.sgd(model, lr=0.1, batch_size=16), start(model)
    data, key = sites()[0]
    given = Group(["a"]), Same(params), Rows(Ragged([data])), Rows(Ragged([key]))
    with pytest.raises(TypeError, match="learning_rate"):
        local.rows(*given, learning_rate=Same(5.0))
    found = local.rows(*given, correction=Same(None), anchor=Same(None))
    assert torch.equal(found.delta.buffer, local.rows(*given).delta.buffer)


def test_class_weights_and_record_clipping_are_refused_together():
    with pytest.raises(ValueError, match="record_clip with class weights"):
        learn.sgd(learn.logistic(3, num_classes=3), lr=0.1, pos_weight=[1.0, 2.0, 3.0], record_clip=1.0)


@pytest.mark.parametrize("twin", [lambda group, x: x.value * math.nan, lambda group, x: x.value[:, :1]])
def test_check_rows_finds_twins_that_are_not_the_plain_form(twin):
    def fn(x):
        return x

    fn.rows = twin
    with pytest.raises(AssertionError):
        check_rows(fn, [[torch.ones(3)] for _ in range(4)])


def test_keys_of_several_sites_are_the_keys_of_each():
    keys = Keys(3, 7, ("a", "b", "c"), "drop")
    assert list(keys) == [Key(3, 7, site, "drop") for site in "abc"]
    assert list(keys[1:]) == list(keys)[1:] and len(keys) == 3
