"""Server optimizers against hand computation in the paper's form, one round of three having a zero delta."""

import math
import pickle

import pytest
import torch

from fedray import learn, tree
from fedray.learn import optimizer

DELTAS = (0.5, 0.0, -0.25)
LR, B1, B2, TAU = 0.1, 0.9, 0.99, 0.01


def flat(value, dtype=torch.float64):
    return tree.flatten({"x": torch.tensor([value, 2 * value], dtype=dtype)})


def path(rule, deltas=DELTAS):
    """Return x after each round, from x = 1."""
    params, found = flat(1.0), []
    state = rule.init(params)
    for round, delta in enumerate(deltas):
        step = rule.step(params, state, flat(delta), round)
        params, state = step.params, step.state
        found.append(float(params["x"][0]))
    return found


def by_hand(second, v0, lr=LR, b1=B1, tau=TAU):
    x, m, v, found = 1.0, 0.0, v0, []
    for delta in DELTAS:
        m = b1 * m + (1 - b1) * delta
        v = second(v, delta * delta)
        x = x + lr * m / (math.sqrt(v) + tau)
        found.append(x)
    return found


def adam_v(v, square):
    return B2 * v + (1 - B2) * square


def yogi_v(v, square):
    return v - (1 - B2) * square * ((v > square) - (v < square))


def test_sgd_adds_the_delta_once() -> None:
    assert path(optimizer.sgd()) == [1.5, 1.5, 1.25]
    assert path(optimizer.sgd(0.5)) == [1.25, 1.25, 1.125]


def test_momentum_counts_the_first_round_and_coasts_through_a_zero_one() -> None:
    expected = [1.5, 1.5 + 0.45, 1.95 + 0.9 * 0.45 - 0.25]
    assert path(optimizer.momentum(1.0, beta=0.9)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (optimizer.adagrad(LR, tau=TAU), by_hand(lambda v, square: v + square, TAU**2, b1=0.0)),
        (optimizer.adagrad(LR, beta1=B1, tau=TAU), by_hand(lambda v, square: v + square, TAU**2)),
        (optimizer.adam(LR, B1, B2, TAU), by_hand(adam_v, TAU**2)),
        (optimizer.adam(LR, B1, B2, TAU, v0=0.0), by_hand(adam_v, 0.0)),
        (optimizer.yogi(LR, B1, B2, TAU), by_hand(yogi_v, TAU**2)),
        (optimizer.yogi(LR, B1, B2, TAU, v0=0.0), by_hand(yogi_v, 0.0)),
    ],
)
def test_adaptive_rules_equal_hand_computation_with_a_zero_round(rule, expected) -> None:
    assert path(rule) == pytest.approx(expected, abs=1e-14)


def test_first_round_of_adam_has_no_bias_correction() -> None:
    found = path(optimizer.adam(LR, B1, B2, TAU))[0]
    assert found == pytest.approx(1 + LR * 0.05 / (math.sqrt(B2 * TAU**2 + 0.01 * 0.25) + TAU), abs=1e-15)
    corrected = 1 + LR * 0.5 / (math.sqrt((B2 * TAU**2 + 0.01 * 0.25) / 0.01) + TAU)
    assert abs(found - corrected) > 0.01


@pytest.mark.parametrize("make", [optimizer.adagrad, optimizer.adam, optimizer.yogi])
def test_zero_updates_from_the_start_move_nothing(make) -> None:
    assert path(make(v0=0.0), (0.0, 0.0)) == [1.0, 1.0]


@pytest.mark.parametrize(
    "make", [optimizer.sgd, optimizer.momentum, optimizer.adam, optimizer.yogi, optimizer.adagrad]
)
def test_step_is_proportional_to_the_server_rate(make) -> None:
    one, two = path(make(0.1), (0.5,))[0] - 1, path(make(0.2), (0.5,))[0] - 1
    assert two == pytest.approx(2 * one, rel=1e-12)


def test_schedule_is_read_at_the_round() -> None:
    assert path(optimizer.sgd(learn.step(1.0, every=1, factor=0.5)), (0.5, 0.5, 0.5)) == [1.5, 1.75, 1.875]


@pytest.mark.parametrize("make", [optimizer.sgd, optimizer.momentum, optimizer.adam])
def test_step_writes_to_none_of_its_inputs_and_keeps_the_dtype(make) -> None:
    rule, params, delta = make(), flat(1.0, torch.float32), flat(0.5, torch.float32)
    state = rule.init(params)
    before = [value.buffer.clone() for value in (params, delta, *state.values())]
    step = rule.step(params, state, delta)
    after = [value.buffer for value in (params, delta, *state.values())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert step.params.buffer.dtype == torch.float32


def test_padding_of_parameters_and_moments_stays_zero() -> None:
    rule, params = optimizer.adam(), flat(1.0)
    step = rule.step(params, rule.init(params), flat(0.5))
    assert all(float(v.buffer[0, 2:].abs().max()) == 0.0 for v in (step.params, *step.state.values()))


def test_optimizer_survives_pickling() -> None:
    assert path(pickle.loads(pickle.dumps(optimizer.yogi(learn.cosine(0.1, 9))))) == path(
        optimizer.yogi(learn.cosine(0.1, 9))
    )


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"beta1": 1.0}, {"tau": 0.0}, {"v0": -1.0}, {"beta2": 1.5}])
def test_impossible_settings_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="server optimizer"):
        optimizer.adam(**wrong)


def with_statistics(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (37, 5), "b": (3,), "bn.mean": (5,)}
    return tree.flatten(
        {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()},
        buffers=("bn.mean",),
    )


def whole_buffer_step(rule, x, state, d, lr):
    """The same formulas over whole buffers, with a temporary for each operation."""
    cut, name = x.schema.trainable, getattr(rule, "kind", "momentum")
    kept = {}
    if name == "momentum":
        move = rule.beta * state["v"].buffer + d.buffer if rule.beta else d.buffer
        kept = {"v": move} if rule.beta else {}
        move = lr * move
    else:
        m = rule.beta1 * state["m"].buffer + (1 - rule.beta1) * d.buffer
        v, square = state["v"].buffer, d.buffer.square()
        v = {
            "adagrad": lambda: v + square,
            "adam": lambda: rule.beta2 * v + (1 - rule.beta2) * square,
            "yogi": lambda: v - (1 - rule.beta2) * square * torch.sign(v - square),
        }[name]()
        kept, move = {"m": m, "v": v}, lr * m / (v.sqrt() + rule.tau)
    whole = torch.cat([move[:, :cut], d.buffer[:, cut:]], dim=1)
    inside = torch.zeros_like(whole)
    for leaf in x.schema.leaves:
        inside[:, leaf.offset : leaf.offset + leaf.size] = float(leaf.offset < cut)
    return x.buffer + whole, {name: buffer * inside for name, buffer in kept.items()}


@pytest.mark.parametrize("block", [64, 2**16])
@pytest.mark.parametrize(
    "make", [optimizer.sgd, optimizer.momentum, optimizer.adam, optimizer.yogi, optimizer.adagrad]
)
def test_steps_in_place_have_the_bits_of_whole_buffer_formulas(make, block, monkeypatch) -> None:
    monkeypatch.setattr(optimizer, "BLOCK", block)
    rule, x = make(0.3), with_statistics(1)
    state = rule.init(x)
    for seed in (2, 3):
        d = with_statistics(seed)
        expected, kept = whole_buffer_step(rule.step.__self__, x, state, d, 0.3)
        found = rule.step(x, state, d)
        assert torch.equal(found.params.buffer, expected) and found.state.keys() == kept.keys()
        assert all(torch.equal(found.state[name].buffer, kept[name]) for name in kept)
        x, state = found.params, found.state
