"""Split learning beside the paper's loop in numpy, and beside training the whole model, for every cut."""

import pytest
import torch

import fedray as fr
from fedray.errors import PolicyError, ScheduleError
from tests.unit.algorithms.cases import NUM_FEATURES, leaving, sites, trained
from tests.unit.algorithms.split_cases import (
    HALVES,
    RATE,
    as_params,
    client_by_hand,
    doubled,
    farthest,
    forward_by_hand,
    halves_of,
    moved,
    rows_of,
    server_by_hand,
    start,
)

IN_TURN = fr.synchronous(cohort=1, sampling="cyclic")


def split_by_hand(turns, steps=1):
    """Gupta and Raskar, Algorithm 2 (1 within a turn), on all rows of a site; returns all weights."""
    client, server = halves_of(start())  # Algorithm 2: Alice_1 initializes F_a; Bob initializes F_b
    for alice in turns:  # Bob waits for the next Alice_j, who takes over the weights of the last one trained
        x, y = rows_of(alice)
        for _ in range(steps):
            hidden = forward_by_hand(client, x)  # Alice: X = F_a(data); send X and the labels to Bob
            gradients, at_cut = server_by_hand(server, hidden, y)  # Bob: loss of F_b(X), and backward
            server = moved(server, gradients)  # Bob updates F_b and sends the gradient to Alice
            client = moved(client, client_by_hand(x, hidden, at_cut))  # Alice: backward through F_a, update
    return client | server


@pytest.mark.parametrize("steps", [1, 3])
def test_split_learning_equals_the_papers_loop(steps):
    algorithm = fr.algorithms.split(HALVES, lr=RATE, steps=steps)
    result, _ = trained(algorithm, rounds=7, schedule=IN_TURN, init=as_params(start()))
    assert farthest(result.params, split_by_hand("abcdeab", steps)) < 1e-12
    assert farthest(result.params, start()) > 0.01


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_model_cut_at_any_layer_is_the_model_trained_in_one_place(cut):
    model = fr.learn.mlp(NUM_FEATURES, [5, 4], task="number")  # linear, ReLU, linear, ReLU, linear
    init = doubled(model.init(3))
    algorithm = fr.algorithms.split(model, cut, lr=RATE, batch_size=4, steps=5)
    result, _ = trained(algorithm, rounds=6, schedule=IN_TURN, init=init)
    local = fr.learn.sgd(model, lr=RATE, steps=5, batch_size=4, form="loop")
    whole, _ = trained(fr.algorithms.cyclic(local), rounds=6, schedule=IN_TURN, init=init)
    assert list(result.params) == list(whole.params)
    assert (result.params.buffer - whole.params.buffer).abs().max() < 1e-12


def test_two_sites_at_once_are_refused():
    two = fr.synchronous(cohort=2)
    with pytest.raises(ScheduleError, match="2 were asked at once"):
        trained(fr.algorithms.split(HALVES), rounds=1, schedule=two, init=as_params(start()))


def test_activations_labels_and_layers_leave_by_name_and_a_policy_may_refuse_them():
    algorithm = fr.algorithms.split(HALVES)
    assert leaving(algorithm) == {name: {"data", "rng"} for name in ("hidden", "label", "front")}
    with pytest.raises(PolicyError, match=r"hidden .*\n.*label .*\n.*front ") as caught:
        fr.compile(algorithm, [fr.passes.require()])
    assert str(caught.value).count("shows the value of one site") == 3


MLP = fr.learn.mlp(3, [4])


@pytest.mark.parametrize(("model", "cut"), [(MLP, 0), (MLP, 3), (MLP, None), (fr.learn.logistic(3), 1)])
def test_a_model_that_cannot_be_cut_there_is_refused(model, cut):
    with pytest.raises(ValueError, match="cut"):
        fr.algorithms.split(model, cut)


@pytest.mark.parametrize("settings", [{"dropout": 0.5}, {"norm": "batch"}])
def test_layers_that_know_training_from_prediction_cannot_be_cut(settings):
    with pytest.raises(ValueError, match="dropout or batch normalisation"):
        fr.algorithms.split(fr.learn.mlp(3, [4], **settings), 1)


def test_what_is_frozen_stays():
    module = torch.nn.Sequential(torch.nn.Linear(NUM_FEATURES, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    module[0].bias.requires_grad_(False)
    model = fr.learn.from_module(module, task="number")
    init = model.init(1)
    result, _ = trained(fr.algorithms.split(model, 1), sites(), 5, IN_TURN, init)
    assert torch.equal(result.params["0.bias"], init["0.bias"])
    assert not torch.equal(result.params["0.weight"], init["0.weight"])
