"""A network of two layers, cut between them, with its gradients written out by hand in numpy."""

import numpy as np
import torch

import fedray as fr
from fedray import tree
from tests.unit.algorithms.cases import NUM_FEATURES, tables

WIDTH, RATE = 4, 0.05


def start():
    """Return {name: array}: the front is tanh(x @ u + c), the back v . hidden + d."""
    draws = np.random.default_rng(11)
    return {
        "front.u": draws.normal(size=(NUM_FEATURES, WIDTH)),
        "front.c": draws.normal(size=WIDTH),
        "v": draws.normal(size=WIDTH),
        "d": np.zeros(()),
    }


def as_params(arrays):
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def front(params, batch):
    return torch.tanh(batch["x"] @ params["front.u"] + params["front.c"])


def back(params, batch):
    return (batch["x"] @ params["v"] + params["d"] - batch["y"]).square().mean() / 2


HALVES = fr.learn.Halves(front, back, ("front",))


def rows_of(site):
    x, y = tables()[site]
    return x[:, :NUM_FEATURES], y


def forward_by_hand(client, x):
    """Return the activations at the cut."""
    return np.tanh(x @ client["front.u"] + client["front.c"])


def server_by_hand(server, hidden, y):
    """Return the server's gradients, and the gradient at the cut."""
    error = (hidden @ server["v"] + server["d"] - y) / len(y)
    return {"v": hidden.T @ error, "d": error.sum()}, np.outer(error, server["v"])


def client_by_hand(x, hidden, at_cut):
    """Return the client's gradients from the gradient at the cut."""
    slope = at_cut * (1 - hidden**2)
    return {"front.u": x.T @ slope, "front.c": slope.sum(0)}


def moved(params, gradients, lr=RATE):
    return {name: params[name] - lr * gradients[name] for name in params}


def halves_of(whole):
    """Return (client's, server's) part."""
    client = {name: value for name, value in whole.items() if name.startswith("front.")}
    return client, {name: value for name, value in whole.items() if name not in client}


def farthest(params, whole):
    """Return the largest difference between parameters and arrays."""
    return max(np.abs(params[name].numpy() - whole[name]).max() for name in whole)


def doubled(params):
    """Return parameters of a model in float64."""
    return tree.flatten({name: params[name].double() for name in params})
