"""Five sites with a linear map of 5 inputs to 4 outputs in float64, trained by FedAvg, three of them a round.

Unequal rows and steps, c and d hold the same rows. 24 numbers, so that a flat row has padding (20 + 4 of 32).
"""

import hashlib

import numpy as np
import torch

import fedray as fr
from fedray.data.site import SiteData
from tests.unit.algorithms.cases import COHORTS, CYCLIC, SIZES, STEPS, Uneven

INPUTS, OUTPUTS, LR = 5, 4, 0.1
SHAPES = {"W": (INPUTS, OUTPUTS), "b": (OUTPUTS,)}
SIZE = INPUTS * OUTPUTS + OUTPUTS
INIT = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
ROUNDS = len(COHORTS)


def tables():
    """Return {site: (x, y)}."""
    draws = np.random.default_rng(11)
    made = {}
    for shift, (site, rows) in enumerate(SIZES.items()):
        x = draws.normal(size=(rows, INPUTS))
        truth = draws.normal(size=(INPUTS, OUTPUTS)) + shift
        made[site] = (x, x @ truth + 1.0 + draws.normal(size=(rows, OUTPUTS)))
    return {**made, "d": made["c"]}


def sites(dtype=torch.float64):
    return {
        site: SiteData({"x": torch.from_numpy(x).to(dtype), "y": torch.from_numpy(y).to(dtype)})
        for site, (x, y) in tables().items()
    }


def squares(params, batch):
    return (batch["x"] @ params["W"] + params["b"] - batch["y"]).square().sum(1).mean() / 2


def trained(passes, weighted=True, rounds=ROUNDS, dtype=torch.float64, look=None, **layout):
    """Fit and return the result, and what `look(federation)` sees after the last commit."""
    local = Uneven(fr.learn.sgd(squares, lr=LR), STEPS)
    init = {name: value.to(dtype) for name, value in INIT.items()}
    with fr.simulate(sites(dtype), **(layout or {"packs": 2})) as federation:
        result = fr.fit(
            fr.algorithms.fedavg(local, weighted=weighted),
            federation,
            init=init,
            rounds=rounds,
            schedule=CYCLIC,
            passes=passes,
        )
        federation.aggregator.root.commit([])
        return result, look(federation) if look else None


def memory(slot):
    """Return a function that reads {site: vector} of a pass's slot, None where a site was never counted."""

    def look(federation):
        packs = federation.aggregator.root.transport.hosts.values()
        found = {site: pack.state_of(site, slot) for pack in packs for site in pack.sites}
        return {site: None if value is None else vector(value) for site, value in found.items()}

    return look


def vector(params):
    return np.concatenate([params[name].numpy().ravel() for name in SHAPES])


def seed_of(round, site, label, seed=0):
    """The key of a stream, as it is fixed for ever: SHA-256 of the names."""
    digest = hashlib.sha256(f"fedray|{seed}|{round}|{site}|{label}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def generator(round, site, label):
    return torch.Generator().manual_seed(seed_of(round, site, label))


def fedavg_by_hand(mean_of, weighted=True, received=lambda t, x: x):
    """FedAvg in numpy; `mean_of(round, {site: update}, {site: weight})` stands for what replaces the mean,
    `received(round, x)` for what reaches the sites.
    """
    x, cut = np.zeros(SIZE), INPUTS * OUTPUTS
    for t, cohort in enumerate(COHORTS):
        updates, start = {}, received(t, x)
        for i in cohort:
            features, y = tables()[i]
            w, b = start[:cut].reshape(INPUTS, OUTPUTS), start[cut:]
            for _ in range(STEPS[i]):
                error = (features @ w + b - y) / len(y)
                w, b = w - LR * features.T @ error, b - LR * error.sum(0)
            updates[i] = np.concatenate([w.ravel(), b]) - start
        x = x + mean_of(t, updates, {i: SIZES[i] if weighted else 1 for i in cohort})
    return x


def mean(rows, weights):
    return sum(weights[i] * rows[i] for i in rows) / sum(weights[i] for i in rows)
