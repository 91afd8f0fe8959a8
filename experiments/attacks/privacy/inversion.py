"""Rows searched for: made-up rows are moved until their gradient points where the one that was seen points.

Cosine distance and Adam; the outcomes are given to the attacker. A row counts as rebuilt where one of
the made-up rows is within 10 % of it. Source: Geiping et al., Inverting gradients, NeurIPS 2020, without the
prior on images.
"""

import torch
from torch import Tensor

import fedray as fr
from experiments.attacks.privacy.seen import Defence, seen, tables_of
from fedray.airlock.inversion import relative_errors
from fedray.rng import Key

WIDTH, HIDDEN = 100, (128, 64)
BATCHES = (1, 2, 4, 8)
STEPS, RATE = 2000, 0.2


def attack(defence: Defence, seed: int) -> dict[str, float]:
    """Return the share of rows rebuilt, by the number of rows in the batch."""
    return {f"batch {rows}": share(defence, rows, seed) for rows in BATCHES}


def share(defence: Defence, rows: int, seed: int, steps: int = STEPS) -> float:
    """Return the share of the victim's rows that the search finds."""
    model = fr.learn.mlp(WIDTH, hidden=HIDDEN)
    params = model.init(seed)
    tables = tables_of(defence, rows, WIDTH, seed)
    delta = seen(defence, defence.training(model, seed), params, tables, seed)
    found = search(model, params, delta, tables[0]["y"], seed, steps)
    return float((relative_errors(found, tables[0]["x"]) <= 0.1).double().mean())


def search(
    model: fr.learn.Model, params: fr.tree.Flat, delta: fr.tree.Flat, y: Tensor, seed: int, steps: int
) -> Tensor:
    """Return the rows whose gradient matches best at the end of the search."""
    weights = {name: params[name].clone().requires_grad_() for name in params}
    goal = torch.cat([-delta[name].flatten() for name in params])
    x = torch.randn(len(y), WIDTH, generator=Key(seed, 0, "attack", "search").generator()).requires_grad_()
    adam = torch.optim.Adam([x], lr=RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        loss = model.loss(weights, {"x": x, "y": y})
        parts = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        distance = 1 - torch.nn.functional.cosine_similarity(
            torch.cat([p.flatten() for p in parts]), goal, dim=0
        )
        x.grad = torch.autograd.grad(distance, x)[0]
        adam.step()
        decay.step()
    return x.detach().double()
