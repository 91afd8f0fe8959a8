"""One row, one step: the row is the gradient of the weights over that of the bias, to rounding.

The label is the sign of the last bias: the loss pulls it up where the outcome is 1. Source: Zhao, Mopuri,
Bilen, iDLG, 2020 (the label); Aono et al., TIFS 2018, section 3 (the row).
"""

import torch

import fedray as fr
from experiments.attacks.privacy.seen import Defence, cosine, seen, tables_of

WIDTH = 100


def attack(defence: Defence, seed: int) -> dict[str, float]:
    """Return the largest error of a number of the row, the cosine, and whether the label was right."""
    tables = tables_of(defence, 1, WIDTH, seed)
    model = fr.learn.logistic(WIDTH)
    params = model.init(0)
    delta = seen(defence, defence.training(model, seed), params, tables, seed)
    weight, bias = delta["weight"][0], delta["bias"][0]
    row, label = tables[0]["x"][0], bool(tables[0]["y"][0])
    guess = weight / bias if bias else torch.zeros_like(weight)
    return {
        "error": float((guess - row).abs().max()),
        "cosine": cosine(guess, row),
        "label": float((float(bias) > 0) == label),
    }
