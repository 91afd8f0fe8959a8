"""Shipped models: shapes, starts that depend on the seed alone, learning, and the names of plain torch."""

import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedray import learn, tree
from fedray.data.site import SiteData
from fedray.rng import Key

from .cases import KEY, site

ROOT = Path(__file__).resolve().parents[3]
ROWS = 12
CASES = {
    "logistic": (learn.logistic(5), torch.randn, (5,), ()),
    "softmax": (learn.logistic(5, 3), torch.randn, (5,), (3,)),
    "linear": (learn.linear(5), torch.randn, (5,), ()),
    "linear of two": (learn.linear(5, 2), torch.randn, (5,), (2,)),
    "mlp": (learn.mlp(5, (6, 4), dropout=0.1), torch.randn, (5,), ()),
    "mlp on images": (learn.mlp(64, (6,), 10), torch.randn, (1, 8, 8), (10,)),
    "cnn": (learn.cnn((1, 8, 8), (3, 4), 10), torch.randn, (1, 8, 8), (10,)),
    "cnn with batch norm": (learn.cnn((3, 9, 8), (4,), norm="batch"), torch.randn, (3, 9, 8), ()),
    "cnn with group norm": (
        learn.cnn((1, 8, 8), (4,), norm="group", dropout=0.2),
        torch.randn,
        (1, 8, 8),
        (),
    ),
    "gru": (learn.gru(4, 6, 2), torch.randn, (7, 4), ()),
    "bag": (learn.bag_of_embeddings(20, 6, 5), None, (9,), (5,)),
}


def rows_of(name):
    model, draw, shape, outputs = CASES[name]
    generator = torch.Generator().manual_seed(0)
    if draw is None:
        x = torch.randint(0, 20, (ROWS, *shape), generator=generator)
    else:
        x = draw(ROWS, *shape, generator=generator)
    if model.task == "classes":
        return SiteData({"x": x, "y": torch.arange(ROWS) % outputs[0]})
    if model.task == "number":
        return SiteData({"x": x, "y": torch.randn(ROWS, *outputs, generator=generator)})
    return SiteData({"x": x, "y": (torch.arange(ROWS) % 2).float()})


@pytest.mark.parametrize("name", CASES)
def test_model_predicts_one_value_a_row_and_its_loss_falls(name) -> None:
    model, data = CASES[name][0], rows_of(name)
    params = model.init(1)
    assert model.predict(params, data).shape == (ROWS, *CASES[name][3])
    update = learn.sgd(model, lr=0.02, steps=30)(params, data, KEY)
    assert float(model.loss(tree.add(params, update.delta), data)) < float(model.loss(params, data))


@pytest.mark.parametrize("name", CASES)
def test_start_depends_on_the_seed_alone(name) -> None:
    model = CASES[name][0]
    before = torch.get_rng_state()
    assert tree.equal(model.init(3), pickle.loads(pickle.dumps(model)).init(3))
    assert model.zero or not tree.equal(model.init(3), model.init(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_follow_torchs_distributions() -> None:
    flat = learn.mlp(400, (300,)).init(0)
    bound = 1 / math.sqrt(400)
    weight = flat["0.weight"]
    assert float(weight.abs().max()) <= bound and float(flat["0.bias"].abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert float(learn.bag_of_embeddings(500, 64).init(0)["0.weight"][1:].std()) == pytest.approx(
        1.0, rel=0.02
    )
    assert float(learn.gru(4, 16).init(0)["gru.weight_hh_l0"].abs().max()) <= 0.25


def test_padding_word_has_no_weight() -> None:
    model = learn.bag_of_embeddings(20, 6)
    params = model.init(0)
    short, long = torch.tensor([[3, 4, 0, 0]]), torch.tensor([[3, 4, 0, 0, 0, 0, 0]])
    assert torch.equal(model.predict(params, {"x": short}), model.predict(params, {"x": long}))


def test_logistic_starts_from_zero_with_a_given_intercept() -> None:
    flat = learn.logistic(4, bias=-2.3).init(0)
    assert flat["weight"].abs().max() == 0 and flat["bias"].item() == pytest.approx(-2.3)
    assert learn.logistic(4, zero=False).init(0)["weight"].abs().max() > 0
    assert learn.mlp(4, (3,), bias=-1.0).init(0)["2.bias"].item() == -1.0


def test_weights_of_a_torch_layer_are_a_start_for_logistic_regression() -> None:
    layer = torch.nn.Linear(5, 1)
    start = tree.flatten(dict(layer.named_parameters()))
    data = site(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(learn.logistic(5).predict(start, data), layer(data["x"])[:, 0])


def test_mlp_loads_into_plain_torch_by_name() -> None:
    model = learn.mlp(5, (6,))
    plain = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 1))
    plain.load_state_dict(dict(model.init(3)))
    data = site(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(plain(data["x"])[:, 0], model.predict(model.init(3), data))


def test_losses_equal_their_formulas() -> None:
    data = rows_of("linear")
    model, params = learn.linear(5, zero=False), learn.linear(5, zero=False).init(2)
    error = model.predict(params, data) - data["y"]
    assert float(model.loss(params, data)) == pytest.approx(float(error.square().mean()), rel=1e-6)
    logistic = learn.logistic(5, zero=False)
    z = logistic.predict(logistic.init(2), site(dtype=torch.float32))
    y = site(dtype=torch.float32)["y"]
    expected = -(y * torch.log(torch.sigmoid(z)) + (1 - y) * torch.log(1 - torch.sigmoid(z))).mean()
    assert float(logistic.loss(logistic.init(2), site(dtype=torch.float32))) == pytest.approx(
        float(expected), rel=1e-6
    )


@pytest.mark.parametrize("name", CASES)
def test_float64_parameters_stay_float64(name) -> None:
    model, data = CASES[name][0], rows_of(name)
    params = tree.map(lambda buffer: buffer.double(), model.init(1))
    update = learn.sgd(model, lr=0.01, batch_size=5)(params, data, Key(0, 0, "a"))
    assert update.delta.buffer.dtype == torch.float64 and model.predict(params, data).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (learn.logistic, "num_features=None"),
        (lambda: learn.logistic(3, task="number"), "linear"),
        (lambda: learn.mlp(3, task="survival"), "survival"),
        (lambda: learn.cnn((1, 3, 3), (4, 4)), "leave nothing"),
        (lambda: learn.cnn(norm="layer"), "norm='layer'"),
    ],
)
def test_impossible_model_is_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_of_another_shape_are_refused() -> None:
    model = learn.from_module(torch.nn.Linear(5, 2))
    with pytest.raises(ValueError, match="task='classes'"):
        model.loss(model.init(0), site(dtype=torch.float32))


@pytest.mark.parametrize("name", learn.__all__)
def test_public_name_resolves(name) -> None:
    assert getattr(learn, name) is not None


def test_functions_are_not_hidden_by_modules_of_their_name() -> None:
    import fedray.learn.local
    import fedray.learn.schedules  # noqa: F401

    assert callable(learn.sgd) and callable(learn.step)


def test_import_of_the_package_loads_no_torch() -> None:
    program = "import sys, fedray.learn; dir(fedray.learn); print('torch' in sys.modules)"
    asked = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert asked.stdout.strip() == "False"
