"""Local training: equal to torch's own optimizers, and every option changes the step as its formula says."""

import pickle

import pytest
import torch

from fedray import learn, tree
from fedray.data.site import SiteData
from fedray.rng import Key

from .cases import (
    KEY,
    at,
    difference,
    double,
    epochs_of,
    quadratic,
    quadratic_site,
    random_params,
    site,
    trained_by_torch,
)

MODELS = {"logistic": learn.logistic(5), "mlp": learn.mlp(5, (7, 4))}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("settings", "bound", "dtype"),
    [
        ({"momentum": 0.9, "weight_decay": 0.01}, 1e-12, torch.float64),
        ({}, 1e-12, torch.float64),
        ({"momentum": 0.9, "weight_decay": 0.01}, 1e-6, torch.float32),
    ],
)
def test_sgd_equals_torch_sgd_on_the_same_batches(name, settings, bound, dtype) -> None:
    model, data = MODELS[name], site(dtype=dtype)
    params = random_params(model, dtype=dtype)
    update = learn.sgd(model, lr=0.1, epochs=3, batch_size=8, **settings)(params, data, KEY)
    expected = trained_by_torch(
        model, params, data, lambda weights: torch.optim.SGD(weights, lr=0.1, **settings), epochs_of(23, 8, 3)
    )
    assert update.delta.schema.dtype == dtype
    assert difference(update.delta, params, expected) < bound


@pytest.mark.parametrize(("bound", "dtype"), [(1e-12, torch.float64), (1e-6, torch.float32)])
def test_adamw_equals_torch_adamw_on_the_same_batches(bound, dtype) -> None:
    model, data = MODELS["mlp"], site(dtype=dtype)
    params = random_params(model, dtype=dtype)
    update = learn.adamw(model, lr=0.01, epochs=4, batch_size=8, weight_decay=0.1)(params, data, KEY)
    expected = trained_by_torch(
        model,
        params,
        data,
        lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1),
        epochs_of(23, 8, 4),
    )
    assert difference(update.delta, params, expected) < bound


def test_clipping_equals_that_of_torch() -> None:
    model, data = MODELS["mlp"], site()
    params = random_params(model)
    update = learn.sgd(model, lr=0.5, epochs=2, batch_size=8, clip_norm=0.05)(params, data, KEY)
    expected = trained_by_torch(
        model,
        params,
        data,
        lambda weights: torch.optim.SGD(weights, lr=0.5),
        epochs_of(23, 8, 2),
        adjust=lambda module: torch.nn.utils.clip_grad_norm_(module.parameters(), 0.05),
    )
    assert difference(update.delta, params, expected) < 1e-12


def test_clipping_leaves_small_gradients_as_they_are() -> None:
    model, data = MODELS["mlp"], site()
    plain, loose = (
        learn.sgd(model, 0.5, clip_norm=bound)(random_params(model), data, KEY) for bound in (None, 1e3)
    )
    assert tree.equal(plain.delta, loose.delta)


def test_one_full_batch_step_is_minus_lr_times_the_gradient_by_hand() -> None:
    model, data = MODELS["logistic"], site()
    params = random_params(model)
    error = (torch.sigmoid(data["x"] @ params["weight"][0] + params["bias"]) - data["y"]) / 23
    update = learn.sgd(model, lr=0.7)(params, data, KEY)
    assert torch.allclose(update.delta["weight"][0], -0.7 * error @ data["x"], atol=1e-15)
    assert torch.allclose(update.delta["bias"], -0.7 * error.sum(), atol=1e-15)


def test_federated_averaging_of_one_full_batch_step_equals_pooled_gradient_descent() -> None:
    model, hospitals = MODELS["logistic"], [site(7, seed=1), site(30, seed=2), site(12, seed=3)]
    pooled = SiteData({name: torch.cat([each[name] for each in hospitals]) for name in ("x", "y")})
    local = learn.sgd(model, lr=0.5)
    params = central = random_params(model)
    for round in range(5):
        updates = [local(params, each, Key(0, round, f"h{i}")) for i, each in enumerate(hospitals)]
        total = sum(update.num_examples for update in updates)
        delta = sum(update.delta.buffer * (update.num_examples / total) for update in updates)
        params = tree.Flat(params.buffer + delta, params.schema)
        central = tree.add(central, local(central, pooled, KEY).delta)
    assert float((params.buffer - central.buffer).abs().max()) < 1e-14


def test_momentum_does_not_survive_between_rounds() -> None:
    local = learn.sgd(quadratic, lr=0.1, steps=3, momentum=0.9)
    first = local(at(2), quadratic_site(1.0, 0.0), KEY)
    again = local(at(2), quadratic_site(1.0, 0.0), KEY)
    assert tree.equal(first.delta, again.delta)


def test_momentum_is_kept_where_the_algorithm_asks_for_it() -> None:
    data = quadratic_site(1.0, 0.0)
    local = learn.sgd(quadratic, lr=0.1, steps=3, momentum=0.9)
    half = local.with_state(at(2), data, KEY, local.init_state(at(2)))
    rest = local.with_state(tree.add(at(2), half.update.delta), data, KEY, half.state)
    whole = learn.sgd(quadratic, lr=0.1, steps=6, momentum=0.9)(at(2), data, KEY)
    assert tree.equal(tree.add(half.update.delta, rest.update.delta)["x"], whole.delta["x"]) or (
        abs(float(half.update.delta["x"] + rest.update.delta["x"] - whole.delta["x"])) < 1e-15
    )


def test_moments_of_adamw_are_kept_with_their_step_count() -> None:
    data = site()
    model, params = MODELS["mlp"], random_params(MODELS["mlp"])
    local = learn.adamw(model, lr=0.01, steps=2)
    half = local.with_state(params, data, KEY, local.init_state(params))
    rest = local.with_state(tree.add(params, half.update.delta), data, KEY, half.state)
    whole = learn.adamw(model, lr=0.01, steps=4)(params, data, KEY)
    assert rest.state["count"] == 4
    assert torch.allclose(half.update.delta.buffer + rest.update.delta.buffer, whole.delta.buffer, atol=1e-14)


def test_site_without_rows_gives_a_zero_update() -> None:
    model = learn.mlp(5, dropout=0.5)
    update = learn.sgd(model, lr=0.1)(model.init(0), site(0, dtype=torch.float32), KEY)
    assert (update.num_examples, update.num_steps, update.metrics) == (0, 0, {"loss": 0.0})
    assert float(update.delta.buffer.abs().max()) == 0.0


def test_correction_shifts_every_gradient_exactly() -> None:
    c = tree.flatten({"x": torch.tensor(0.25, dtype=torch.float64)})
    update = learn.sgd(quadratic, lr=0.1, steps=2)(at(2), quadratic_site(1.0, 0.0), KEY, correction=c)
    x = 2 - 0.1 * (2 + 0.25)
    assert float(update.delta["x"]) == pytest.approx(x - 0.1 * (x + 0.25) - 2, abs=1e-15)


def test_correction_is_added_after_clipping() -> None:
    c = {"x": torch.tensor(3.0, dtype=torch.float64)}
    local = learn.sgd(quadratic, lr=1.0, clip_norm=0.5)
    update = local(at(4), quadratic_site(1.0, 0.0), KEY, correction=c)
    assert float(update.delta["x"]) == pytest.approx(-3.5, abs=1e-6)


def test_prox_pulls_to_the_received_parameters_exactly() -> None:
    update = learn.sgd(quadratic, lr=0.1, steps=2, prox=0.5)(at(2), quadratic_site(1.0, 0.0), KEY)
    x = 2 - 0.1 * 2
    assert float(update.delta["x"]) == pytest.approx(x - 0.1 * (x + 0.5 * (x - 2)) - 2, abs=1e-15)


def test_prox_pulls_to_a_given_anchor_exactly() -> None:
    local = learn.sgd(quadratic, lr=0.1)
    update = local(at(2), quadratic_site(1.0, 0.0), KEY, anchor=at(-1), prox=0.5)
    assert float(update.delta["x"]) == pytest.approx(-0.1 * (2 + 0.5 * 3), abs=1e-15)


@pytest.mark.parametrize("settings", [{"prox": 0.5}, {"l2": 0.5}, {"weight_decay": 0.5}])
def test_a_regulariser_changes_the_update(settings) -> None:
    params, data = random_params(MODELS["mlp"]), site()
    plain = learn.sgd(MODELS["mlp"], lr=0.1, steps=5)(params, data, KEY)
    other = learn.sgd(MODELS["mlp"], lr=0.1, steps=5, **settings)(params, data, KEY)
    assert float((plain.delta.buffer - other.delta.buffer).abs().max()) > 1e-3


def test_anchor_without_prox_is_refused() -> None:
    with pytest.raises(ValueError, match="pulls nowhere"):
        learn.sgd(quadratic, lr=0.1)(at(2), quadratic_site(1.0, 0.0), KEY, anchor=at(-1))


def test_l2_leaves_the_bias_and_weight_decay_does_not() -> None:
    model, data = MODELS["logistic"], site()
    params = random_params(model)
    plain = learn.sgd(model, lr=1.0)(params, data, KEY).delta
    l2 = learn.sgd(model, lr=1.0, l2=0.2)(params, data, KEY).delta
    decay = learn.sgd(model, lr=1.0, weight_decay=0.2)(params, data, KEY).delta
    assert torch.allclose(l2["weight"], plain["weight"] - 0.2 * params["weight"], atol=1e-15)
    assert torch.equal(l2["bias"], plain["bias"])
    assert torch.allclose(decay["bias"], plain["bias"] - 0.2 * params["bias"], atol=1e-15)


def test_l2_may_spare_other_names_or_none() -> None:
    model, data = MODELS["logistic"], site()
    params = random_params(model)
    plain = learn.sgd(model, lr=1.0)(params, data, KEY).delta
    every = learn.sgd(model, lr=1.0, l2=0.2, unpenalised=())(params, data, KEY).delta
    assert torch.allclose(every["bias"], plain["bias"] - 0.2 * params["bias"], atol=1e-15)


def test_pos_weight_counts_positive_rows_as_often_as_it_says() -> None:
    model, data = MODELS["logistic"], site()
    params, positive = random_params(model), data["y"] > 0.5
    doubled = SiteData({name: torch.cat([data[name], data[name][positive]]) for name in ("x", "y")})
    weighted = learn.sgd(model, lr=1.0, pos_weight=2.0)(params, data, KEY).delta
    repeated = learn.sgd(model, lr=1.0)(params, doubled, KEY).delta
    assert torch.allclose(weighted.buffer * 23, repeated.buffer * doubled.num_rows, atol=1e-13)


def test_class_weights_equal_those_of_torch() -> None:
    model = learn.logistic(5, 3)
    data = SiteData({"x": site()["x"], "y": torch.arange(23) % 3})
    params = random_params(model)
    update = learn.sgd(model, lr=1.0, pos_weight=(1.0, 2.0, 5.0))(params, data, KEY)
    weight = params["weight"].clone().requires_grad_()
    logits = data["x"] @ weight.T + params["bias"]
    loss = torch.nn.functional.cross_entropy(logits, data["y"], torch.tensor([1.0, 2.0, 5.0]).double())
    assert torch.allclose(update.delta["weight"], -torch.autograd.grad(loss, weight)[0], atol=1e-14)


def test_schedule_is_read_at_the_round_of_the_key() -> None:
    local = learn.sgd(quadratic, lr=learn.step(1.0, every=1, factor=0.5))
    deltas = [
        float(local(at(2), quadratic_site(1.0, 0.0), Key(0, round, "a")).delta["x"]) for round in range(3)
    ]
    assert deltas == [-2.0, -1.0, -0.5]


def test_rate_of_a_call_overrides_the_own_one() -> None:
    update = learn.sgd(quadratic, lr=9.0)(at(2), quadratic_site(1.0, 0.0), KEY, lr=0.25)
    assert float(update.delta["x"]) == -0.5


def test_loss_is_the_mean_over_rows_of_batches_before_their_step() -> None:
    data = SiteData({"a": torch.ones(3).double(), "b": torch.tensor([1.0, 2.0, 6.0]).double()})
    update = learn.sgd(quadratic, lr=0.0, batch_size=2, prox=3.0)(at(0), data, KEY)
    assert update.metrics["loss"] == pytest.approx((1 + 4 + 36) / 2 / 3, abs=1e-12)


def test_inputs_are_not_written_to() -> None:
    model, data = learn.mlp(5), site(dtype=torch.float32)
    params, c = model.init(0), tree.scale(model.init(1), 0.1)
    rows = data.train
    versions = [tensor._version for tensor in (params.buffer, c.buffer, rows["x"], rows["y"])]
    learn.sgd(model, lr=0.1, epochs=2, batch_size=4, momentum=0.9)(
        params, data, KEY, correction=c, anchor=c, prox=1.0
    )
    assert [tensor._version for tensor in (params.buffer, c.buffer, rows["x"], rows["y"])] == versions


def test_read_only_parameters_are_enough() -> None:
    params = learn.mlp(5).init(0)
    array = params.buffer.numpy().copy()
    array.flags.writeable = False
    with pytest.warns(UserWarning, match="not writable"):
        shared = tree.Flat(torch.from_numpy(array), params.schema)
    local = learn.sgd(learn.mlp(5), lr=0.1, epochs=2, batch_size=4, momentum=0.5)
    data = site(dtype=torch.float32)
    assert tree.equal(local(shared, data, KEY).delta, local(params, data, KEY).delta)


def test_padding_stays_zero() -> None:
    model = MODELS["mlp"]
    delta = learn.adamw(model, lr=0.1, steps=3, l2=0.1)(random_params(model), site(), KEY).delta
    used = torch.zeros(delta.schema.stride, dtype=torch.bool)
    for leaf in delta.schema.leaves:
        used[leaf.offset : leaf.offset + leaf.size] = True
    assert float(delta.buffer[0, ~used].abs().max()) == 0.0


def test_same_key_gives_the_same_bits_and_another_key_others() -> None:
    model, data = learn.mlp(5, dropout=0.3), site(dtype=torch.float32)
    local = learn.sgd(model, lr=0.1, epochs=2, batch_size=4)
    first, again, other = (local(model.init(0), data, key).delta for key in (KEY, KEY, Key(1, 0, "h1")))
    assert tree.equal(first, again) and not tree.equal(first, other)


def test_training_survives_pickling_with_equal_bits() -> None:
    model, data = learn.mlp(5, dropout=0.3), site(dtype=torch.float32)
    local = learn.adamw(model, lr=learn.warmup(learn.cosine(0.1, 10), 3, 0.01), batch_size=4)
    twin = pickle.loads(pickle.dumps(local))
    assert tree.equal(local(model.init(0), data, KEY).delta, twin(model.init(0), data, KEY).delta)


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    model = learn.cnn((1, 8, 8), (4, 4), norm="batch", dropout=0.5)
    data = SiteData({"x": torch.zeros(6, 1, 8, 8), "y": torch.zeros(6)})
    learn.sgd(model, lr=0.1, batch_size=4)(model.init(0), data, KEY)
    assert torch.equal(torch.get_rng_state(), before)


def test_gradient_is_that_of_one_full_batch_step() -> None:
    model, data = MODELS["mlp"], site()
    params = random_params(model)
    local = learn.sgd(model, lr=1.0, l2=0.1, batch_size=4, momentum=0.9)
    step = learn.sgd(model, lr=1.0, l2=0.1)(params, data, KEY)
    assert torch.allclose(local.gradient(params, data).buffer, -step.delta.buffer, atol=1e-14)


def test_training_works_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        update = learn.sgd(quadratic, lr=0.1)(at(2), quadratic_site(1.0, 0.0), KEY)
    assert float(update.delta["x"]) == pytest.approx(-0.2)


@pytest.mark.skipif(torch.cpu._is_avx512_bf16_supported(), reason="this processor has bfloat16")
def test_amp_changes_nothing_on_a_processor_without_bfloat16() -> None:
    model, data = MODELS["mlp"], site(dtype=torch.float32)
    plain, amp = (learn.sgd(model, lr=0.1, amp=amp)(model.init(0), data, KEY).delta for amp in (False, True))
    assert tree.equal(plain, amp)


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this processor has no bfloat16")
def test_amp_computes_the_loss_in_bfloat16_and_keeps_float32_weights() -> None:
    model, data = learn.cnn((1, 8, 8), (4,)), image_site()
    plain, amp = (learn.sgd(model, lr=0.1, amp=amp)(model.init(0), data, KEY).delta for amp in (False, True))
    assert amp.buffer.dtype == torch.float32 and not tree.equal(plain, amp)
    assert torch.allclose(plain.buffer, amp.buffer, atol=5e-3)


def image_site() -> SiteData:
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return SiteData({"x": images, "y": (images.mean((1, 2, 3)) > 0.5).float()})


def test_doubled_site_gives_the_same_full_batch_update() -> None:
    model, data = MODELS["logistic"], site()
    twice = SiteData({name: torch.cat([data[name]] * 2) for name in ("x", "y")})
    params = random_params(model)
    one, two = (learn.sgd(model, lr=1.0)(params, each, KEY).delta for each in (data, twice))
    assert torch.allclose(one.buffer, two.buffer, atol=1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": None}, "epochs or steps"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"steps": -1}, "steps=-1"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"lr": -0.1}, "lr=-0.1"),
        ({"prox": -1.0}, "prox"),
        ({"pos_weight": (1.0, 2.0)}, "pos_weight"),
        ({"pos_weight": 0.0}, "pos_weight"),
        ({"model": 3}, "neither a model"),
        ({"model": quadratic, "pos_weight": 2.0}, "loss of your own"),
    ],
)
def test_impossible_settings_are_refused_at_the_door(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        learn.sgd(**{"model": MODELS["logistic"], "lr": 0.1, **settings})


def test_loss_per_row_is_refused_with_its_shape() -> None:
    with pytest.raises(ValueError, match="mean over the rows"):
        learn.sgd(lambda params, batch: params["x"] * batch["a"], 0.1)(at(1), quadratic_site(1.0, 0.0), KEY)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_training_on_a_gpu_is_close_to_training_on_the_cpu() -> None:
    model, data = learn.mlp(5, dropout=0.2), site(dtype=torch.float32)
    local = learn.sgd(model, lr=0.1, epochs=3, batch_size=8, momentum=0.9)
    on_gpu = tree.map(lambda buffer: buffer.cuda(), model.init(0))
    update = local(on_gpu, data, KEY)
    assert update.delta.buffer.is_cuda
    expected = local(model.init(0), data, KEY).delta.buffer
    assert torch.allclose(update.delta.buffer.cpu(), expected, atol=1e-5)


def test_float64_parameters_meet_float32_rows() -> None:
    model = learn.mlp(5)
    update = learn.sgd(model, lr=0.1)(double(model.init(0)), site(dtype=torch.float32), KEY)
    assert update.delta.schema.dtype == torch.float64 and float(update.delta.buffer.abs().max()) > 0
