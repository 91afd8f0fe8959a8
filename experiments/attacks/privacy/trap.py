"""A trap: a model that a lying server prepares so that single rows stand alone in its gradient.

All outputs of the first layer look along one direction and start at rising quantiles of it, so two that are
neighbours differ by the rows between them: the difference of their weights over that of their biases is the
row, where there is one. Source: Fowl et al., Robbing the Fed, ICLR 2022; Boenisch et al., When the curious
abandon honesty, EuroS&P 2023.
"""

import torch
from torch import Tensor

import fedray as fr
from experiments.attacks.privacy.seen import Defence, seen, tables_of
from fedray.airlock.inversion import relative_errors
from fedray.rng import Key
from fedray.tree import Flat

ROWS, WIDTH, BINS = 32, 100, 256


def attack(defence: Defence, seed: int) -> dict[str, float]:
    """Return how many of the victim's rows are rebuilt to within 10 %."""
    model = fr.learn.mlp(WIDTH, hidden=(BINS,))
    params = trapped(model.init(0), seed)
    tables = tables_of(defence, ROWS, WIDTH, seed)
    delta = seen(defence, defence.training(model, seed), params, tables, seed)
    errors = relative_errors(between(delta), tables[0]["x"])
    return {"rows": float((errors <= 0.1).sum())}


def trapped(params: Flat, seed: int) -> Flat:
    """Return the prepared model: the server knows how rows are distributed along any direction."""
    found = params.clone()
    direction = torch.randn(WIDTH, generator=Key(seed, 0, "attack", "trap").generator())
    quantiles = (torch.arange(BINS) + 0.5) / BINS
    found["0.weight"].copy_((direction / direction.norm()).expand(BINS, WIDTH))
    found["0.bias"].copy_(-torch.special.ndtri(quantiles.double()))
    found["2.weight"].fill_(1 / BINS)
    found["2.bias"].zero_()
    return found


def between(delta: Flat) -> Tensor:
    """Return the candidates: what lies between two neighbouring outputs, and above the last."""
    weight, bias = delta["0.weight"].double(), delta["0.bias"].double()
    weight = torch.cat([weight[:-1] - weight[1:], weight[-1:]])
    bias = torch.cat([bias[:-1] - bias[1:], bias[-1:]])
    is_filled = bias.abs() > 1e-9 * bias.abs().max()
    return weight[is_filled] / bias[is_filled, None]
