"""Modules as functions: BatchNorm statistics travel, integer buffers do not, the template keeps nothing."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fedray import learn, tree
from fedray.data.site import SiteData
from fedray.learn import optimizer
from fedray.rng import Key

from .cases import KEY, site


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x)))) * self.scale


MODEL = learn.from_module(Normed)
DATA = site(dtype=torch.float32)
STATISTICS = ["norm.running_mean", "norm.running_var"]


def test_parameters_come_first_and_statistics_are_not_trainable() -> None:
    flat = MODEL.init(0)
    trainable = [leaf.name for leaf in flat.schema.leaves if leaf.offset < flat.schema.trainable]
    assert [name for name in flat if name not in trainable] == STATISTICS
    assert set(trainable) == {name for name, _ in Normed().named_parameters()}


def test_integer_and_constant_buffers_never_travel() -> None:
    assert "norm.num_batches_tracked" not in MODEL.init(0) and "scale" not in MODEL.init(0)


def torch_training(params, batches, lr=0.1):
    module = MODEL.as_module(params).train()
    stepper = torch.optim.SGD(module.parameters(), lr=lr)
    for rows in batches:
        stepper.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(
            module(DATA["x"][rows])[:, 0], DATA["y"][rows]
        ).backward()
        stepper.step()
    return module.state_dict()


def test_training_with_batchnorm_equals_a_torch_loop_statistics_included() -> None:
    params = MODEL.init(4)
    update = learn.sgd(MODEL, lr=0.1, steps=3)(params, DATA, KEY)
    expected = torch_training(params, [torch.arange(23)] * 3)
    ends = {name: params[name] + update.delta[name] for name in params}
    assert max(float((ends[name] - expected[name]).abs().max()) for name in ends) < 1e-6
    assert float(update.delta["norm.running_mean"].abs().max()) > 0


class Cumulative(nn.Module):
    """BatchNorm without momentum: its batch counter decides how much a new batch weighs."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 1)

    def forward(self, x):
        return self.last(self.norm(x))


def test_batch_counter_starts_fresh_in_each_local_training() -> None:
    model = learn.from_module(Cumulative)
    local, params = learn.sgd(model, lr=0.1, steps=2), model.init(0)
    local(params, DATA, KEY)
    update = local(params, DATA, KEY)
    mean = params["norm.running_mean"] + update.delta["norm.running_mean"]
    assert torch.allclose(mean, DATA["x"].mean(dim=0), atol=1e-6)
    assert int(model.module.norm.num_batches_tracked) == 0


def test_statistics_of_a_training_are_copies() -> None:
    params = MODEL.init(0)
    before = params.clone()
    MODEL.loss(params, DATA, MODEL.training(params, key=1))
    assert tree.equal(params, before)


def test_template_is_unchanged_by_training_and_prediction() -> None:
    before = copy.deepcopy(MODEL.module.state_dict())
    params = MODEL.init(7)
    learn.sgd(MODEL, lr=0.1, steps=3)(params, DATA, KEY)
    MODEL.predict(params, DATA)
    after = MODEL.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_prediction_uses_running_statistics_and_does_not_change_them() -> None:
    params = MODEL.init(0)
    before = params.clone()
    single = MODEL.predict(params, {"x": DATA["x"][:1]})
    assert torch.allclose(single, MODEL.predict(params, DATA)[:1], atol=1e-6)
    assert tree.equal(params, before)


def test_prediction_equals_that_of_the_plain_module() -> None:
    params = MODEL.init(3)
    with torch.no_grad():
        assert torch.allclose(MODEL.as_module(params)(DATA["x"])[:, 0], MODEL.predict(params, DATA))


def test_constant_buffers_follow_the_dtype_of_the_parameters() -> None:
    params = tree.map(lambda buffer: buffer.double(), MODEL.init(0))
    assert MODEL.predict(params, DATA).dtype == torch.float64
    assert learn.sgd(MODEL, lr=0.1)(params, DATA, KEY).delta.schema.dtype == torch.float64


def test_server_optimizer_averages_statistics_and_steps_weights_only() -> None:
    params = MODEL.init(0)
    delta = learn.sgd(MODEL, lr=0.1, steps=3)(params, DATA, KEY).delta
    rule = optimizer.adam(0.1)
    moved = rule.step(params, rule.init(params), delta).params
    assert torch.equal(moved["norm.running_var"], params["norm.running_var"] + delta["norm.running_var"])
    assert not torch.allclose(moved["first.weight"], params["first.weight"] + delta["first.weight"])


def test_correction_and_prox_leave_statistics_alone() -> None:
    params, c = MODEL.init(0), MODEL.init(1)
    plain = learn.sgd(MODEL, lr=0.1)(params, DATA, KEY).delta
    moved = learn.sgd(MODEL, lr=0.1)(params, DATA, KEY, correction=c, anchor=c, prox=1.0).delta
    assert all(torch.equal(plain[name], moved[name]) for name in STATISTICS)


def test_frozen_parameters_are_not_stepped() -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))
    module[0].requires_grad_(False)
    model = learn.from_module(module)
    delta = learn.sgd(model, lr=0.1, l2=0.1)(model.init(0), DATA, KEY).delta
    assert float(delta["0.weight"].abs().max()) == 0.0 and float(delta["2.weight"].abs().max()) > 0


def test_tied_weights_are_one_leaf() -> None:
    module = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 1))
    module[1].weight = module[0].weight
    model = learn.from_module(module)
    params = model.init(0)
    moved = tree.add(params, learn.sgd(model, lr=0.1)(params, DATA, KEY).delta)
    assert "1.weight" not in params
    with torch.no_grad():
        assert torch.allclose(model.as_module(moved)(DATA["x"])[:, 0], model.predict(moved, DATA), atol=1e-6)


def test_weights_of_a_trained_module_are_kept_on_request_and_drawn_otherwise() -> None:
    module = nn.Linear(5, 1)
    kept = learn.from_module(module, keep_weights=True)
    assert torch.equal(kept.init(9)["weight"], module.weight)
    assert not torch.equal(learn.from_module(module).init(9)["weight"], module.weight)


def test_given_module_is_copied() -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    before = module[0].weight.clone()
    model = learn.from_module(module)
    learn.sgd(model, lr=0.1)(model.init(0), DATA, KEY)
    assert torch.equal(module[0].weight, before) and isinstance(module[1], nn.Dropout)


def test_own_loss_and_columns_are_used() -> None:
    model = learn.from_module(
        nn.Linear(5, 1), task="number", loss=nn.functional.l1_loss, inputs=["labs"], target="stay"
    )
    data = SiteData({"labs": DATA["x"], "stay": DATA["y"]})
    params = model.init(0)
    expected = (model.predict(params, data) - DATA["y"]).abs().mean()
    assert float(model.loss(params, data)) == pytest.approx(float(expected), abs=1e-7)


def test_plain_model_of_two_modules_has_a_picklable_record() -> None:
    twin = pickle.loads(pickle.dumps(MODEL))
    assert tree.equal(twin.init(5), MODEL.init(5))
    first, second = (
        learn.sgd(each, lr=0.1)(MODEL.init(0), DATA, Key(0, 0, "a")).delta for each in (MODEL, twin)
    )
    assert tree.equal(first, second)
