"""Dropout masks are a function of (key, layer, step, index)."""

import pytest
import torch
from torch import nn

from fedray import learn, tree
from fedray.learn import dropout

from .cases import KEY, site

CPU = torch.device("cpu")


def mask(count=100_000, p=0.3, key=1, layer=0, step=0):
    return dropout.keep_mask(count, p, *dropout.words(key, layer, step), CPU)


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
def test_keep_rate_is_one_minus_p(p) -> None:
    kept = torch.stack([mask(p=p, step=step) for step in range(10)]).double().mean()
    assert abs(float(kept) - (1 - p)) < 5 * (p * (1 - p) / 1_000_000) ** 0.5  # five standard errors


@pytest.mark.parametrize("other", [{"key": 2}, {"layer": 1}, {"step": 1}, {"key": 1 + 2**63}])
def test_masks_of_other_names_agree_only_by_chance(other) -> None:
    agree = (mask(p=0.5) == mask(p=0.5, **other)).double().mean()
    assert abs(float(agree) - 0.5) < 0.01


def test_neighbours_are_not_correlated() -> None:
    bits = mask(p=0.5).double() - 0.5
    assert max(abs(float((bits[lag:] * bits[:-lag]).mean() * 4)) for lag in (1, 2, 3, 32, 64, 1024)) < 0.02


def test_element_depends_on_its_index_not_on_the_number_of_rows() -> None:
    assert torch.equal(mask(1000)[:77], mask(77))


def test_mask_is_fixed_for_ever() -> None:
    assert dropout.words(123, 4, 5) == dropout.words(123, 4, 5)
    assert dropout.hash32(torch.arange(4, dtype=torch.int32), 0, 0).tolist() == [0, *REFERENCE]


def lowbias32(x):
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    x ^= x >> 16
    return x - 2**32 if x >> 31 else x


REFERENCE = [lowbias32(index) for index in (1, 2, 3)]


def test_words_as_tensors_give_one_mask_a_row() -> None:
    words = [dropout.words(key, 0, 0) for key in (5, 6)]
    first, second = (torch.tensor(column, dtype=torch.int32)[:, None] for column in zip(*words, strict=True))
    stacked = dropout.keep_mask(50, 0.4, first, second, CPU)
    assert all(torch.equal(stacked[i], dropout.keep_mask(50, 0.4, *words[i], CPU)) for i in range(2))


def test_kept_elements_are_scaled_up() -> None:
    layer = dropout.Dropout(0.25)
    layer.words = dropout.words(1, 0, 0)
    assert sorted(set(layer(torch.ones(1000)).tolist())) == pytest.approx([0.0, 4 / 3])


def test_whole_channels_are_dropped() -> None:
    layer = dropout.prepare(nn.Dropout2d(0.5))
    layer.words = dropout.words(1, 0, 0)
    sums = layer(torch.ones(8, 16, 3, 3)).sum(dim=(2, 3))
    assert sorted(set(sums.flatten().tolist())) == [0.0, 18.0]


def test_evaluation_drops_nothing_and_training_without_a_key_is_refused() -> None:
    layer = dropout.Dropout(0.5)
    assert torch.equal(layer.eval()(torch.ones(5)), torch.ones(5))
    with pytest.raises(RuntimeError, match="no key"):
        layer.train()(torch.ones(5))


def test_dropout_changes_training_and_not_prediction() -> None:
    plain, dropped = learn.mlp(5, (8,)), learn.mlp(5, (8,), dropout=0.5)
    data, params = site(dtype=torch.float32), dropped.init(0)
    same = tree.flatten(
        {
            "0.weight": params["0.weight"],
            "0.bias": params["0.bias"],
            "2.weight": params["3.weight"],
            "2.bias": params["3.bias"],
        }
    )
    assert torch.equal(plain.predict(same, data), dropped.predict(params, data))
    with_it = learn.sgd(dropped, lr=0.1)(params, data, KEY).delta["0.weight"]
    assert not torch.allclose(with_it, learn.sgd(plain, lr=0.1)(same, data, KEY).delta["0.weight"], atol=1e-4)


def test_steps_of_one_training_have_masks_of_their_own() -> None:
    model, data = learn.mlp(5, (8,), dropout=0.5), site(dtype=torch.float32)
    local = learn.sgd(model, lr=1.0, steps=1)
    one = local(model.init(0), data, KEY).delta
    two = learn.sgd(model, lr=1.0, steps=2)(model.init(0), data, KEY).delta
    again = local(tree.add(model.init(0), one), data, KEY).delta
    assert not torch.allclose(two.buffer - one.buffer, again.buffer, atol=1e-4)


@pytest.mark.parametrize("layer", [nn.AlphaDropout(0.1), nn.GRU(3, 3, 2, dropout=0.2), nn.RReLU()])
def test_layers_that_draw_from_the_global_generator_are_refused_by_name(layer) -> None:
    with pytest.raises(ValueError, match=rf"0 \({type(layer).__name__}\) draws from the global generator"):
        learn.from_module(nn.Sequential(layer))
