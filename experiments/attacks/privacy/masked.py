"""What a server sees of ONE site in a secure sum: words. The attacks on single rows are tried on them.

A site's gradient of one row is encoded for a sum of 5 sites and masked as the protocol masks it, with one
mask shared with each other site and one of its own. Before its own mask is taken off, which happens to sums
alone, the words are uniform: nothing of the gradient is in them.
"""

import hashlib

import numpy as np
import torch

import fedray as fr
from experiments.attacks.privacy.seen import BOUND, DEFENCES, Defence, cosine, seen, tables_of
from fedray.airlock.inversion import ratios
from fedray.secrecy.encoding import Encoding, decode, encode
from fedray.secrecy.keystream import OneTimeKey, mask_inplace

WIDTH, HIDDEN, SITES = 2000, (64,), 5


def attack(defence: Defence, seed: int) -> dict[str, float]:
    """Return the cosine of what is seen with the gradient, and the best of a candidate with the row."""
    table = tables_of(Defence("one"), 1, WIDTH, seed)
    model = fr.learn.mlp(WIDTH, hidden=HIDDEN)
    params = model.init(seed)
    update = seen(DEFENCES["none"], DEFENCES["none"].training(model, seed), params, table, seed)
    shown = hidden(update, seed) if defence.sites > 1 else update
    row = table[0]["x"][0]
    candidates = ratios(shown, WIDTH)
    return {
        "gradient": cosine(shown.buffer, update.buffer),
        "row": max(cosine(candidate, row) for candidate in candidates),
    }


def hidden(update: fr.tree.Flat, seed: int) -> fr.tree.Flat:
    """Return the update as the server could read it from masked words."""
    encoding = Encoding(num_sites=SITES, bound=BOUND)
    words = encode(update.buffer.double().numpy(), np.ones(1), encoding)[0]
    keys = [OneTimeKey(hashlib.sha256(f"mask {seed} {other}".encode()).digest()) for other in range(SITES)]
    mask_inplace(words, add=keys[:3], subtract=keys[3:])
    words[-2] = 1  # the count, so that the reader reads on
    return fr.tree.Flat(torch.from_numpy(decode(words, encoding, 1).values)[None], update.schema)
