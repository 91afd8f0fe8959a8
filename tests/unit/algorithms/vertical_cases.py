"""Three sites that hold other columns of the same 60 records, in one order; one of them holds the labels."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import fedray as fr
from fedray.data.site import SiteData

WIDTHS, ROWS = {"a": 2, "b": 3, "c": 1}, 60
PARTS = {"a": slice(0, 2), "b": slice(2, 5), "c": slice(5, 6)}


def table():
    """Return (x of all columns, y)."""
    draws = np.random.default_rng(5)
    x = draws.normal(size=(ROWS, 6))
    odds = x @ np.array([1.0, -2.0, 0.5, 0.0, 1.5, -0.5]) + 0.3
    return x, (draws.random(ROWS) < 1 / (1 + np.exp(-odds))).astype(float)


def aligned(holders=("b",), rows=ROWS, test=0):
    """Return the sites; the last `test` rows are test rows."""
    x, y = table()
    cut = rows - test
    splits = {"train": torch.arange(cut), "test": torch.arange(cut, rows)}
    made = {}
    for site, part in PARTS.items():
        columns = {"x": torch.from_numpy(x[:rows, part].copy())}
        if site in holders:
            columns["y"] = torch.from_numpy(y[:rows].copy())
        made[site] = SiteData(columns, splits)
    return made


def batch_of(round, batch_size, rows=ROWS, seed=0):
    """Return the places of a round's records, by the derivation that fedray/rng.py fixes."""
    epoch, place = divmod(round, -(-rows // batch_size))
    digest = hashlib.sha256(f"fedray|{seed}|{epoch}||records".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    order = torch.randperm(rows, generator=generator).numpy()
    return order[place * batch_size : (place + 1) * batch_size]


def state_of(federation):
    """Return what each site keeps."""
    packs = federation.aggregator.root.transport.hosts.values()
    return {site: pack.state_of(site) for pack in packs for site in pack.sites}


def fitted(algorithm, init, rounds, data=None, packs=2, **more):
    """Fit and return (result, what the sites keep)."""
    with fr.simulate(data or aligned(), packs=packs) as federation:
        result = fr.fit(algorithm, federation, init=init, rounds=rounds, **more)
        federation.aggregator.root.commit([])
        return result, state_of(federation)


@dataclass(frozen=True)
class Failing:
    """A mapped function that raises at a site, in one round."""

    inner: Any
    site: str
    in_round: int

    def __call__(self, params, data, rng, *more):
        if (rng.site, rng.round) == (self.site, self.in_round):
            raise ArithmeticError("a patient's value could stand here")
        return self.inner(params, data, rng, *more)
