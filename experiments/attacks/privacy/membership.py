"""Was this patient among the rows of the site? By the loss alone, and by LiRA with 16 shadow models.

Rows of the synthetic ICU. A site holds each of 1,000 rows or not, by a coin, and trains a network long
enough to remember (worlds of other coins are the shadow models: of 17 worlds each is attacked once, with the
other 16 as shadows). Told are the share of members found at .1 % false alarms, over all worlds, and the area
under the curve. In a sum the other sites are the same in all worlds, the best case for the attacker.
Source: Yeom et al., CSF 2018 (loss); Carlini et al., Membership inference attacks from first principles, IEEE
S&P 2022 (LiRA, with one variance for all rows).
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

import fedray as fr
from experiments.attacks.privacy.seen import DEFENCES, Defence, seen
from fedray.data.site import SiteData
from fedray.learn.intervals import auroc
from fedray.rng import Key
from fedray.tree import Flat

SHADOWS, ROWS, HIDDEN = 16, 1000, (64,)
EPOCHS, BATCH, RATE = 100, 50, 0.2
FALSE_ALARMS = 1e-3


def attack(defence: Defence, seed: int, rows: int = ROWS, epochs: int = EPOCHS) -> dict[str, float]:
    """Return both attacks' share of members found at few false alarms, and AUROC."""
    pool = pooled(rows, seed)
    coins = torch.rand(SHADOWS + 1, rows, generator=Key(seed, 0, "attack", "coins").generator()) < 0.5
    confidence = torch.stack(
        [shown(defence, pool, held, seed, world, epochs) for world, held in enumerate(coins)]
    )
    found = {}
    for name, scores in (("loss", confidence), ("lira", lira(confidence, coins))):
        found[f"{name} tpr"] = rate_at(scores[~coins], scores[coins])
        found[f"{name} auroc"] = auroc(coins.flatten(), scores.flatten())
    return found


@cache
def stays() -> SiteData:
    """Return the rows of a synthetic ICU, all hospitals together."""
    hospitals = fr.data.synthetic_icu(num_sites=40, scale=0.5, seed=11)
    sites = [opened() for opened in hospitals.values()]
    return SiteData({name: torch.cat([site[name] for site in sites]) for name in ("x", "y")})


def pooled(rows: int, seed: int, label: str = "pool") -> SiteData:
    """Return rows drawn from all of them."""
    whole = stays()
    chosen = torch.randperm(whole.num_rows, generator=Key(seed, 0, "attack", label).generator())[:rows]
    return SiteData({name: column[chosen] for name, column in whole.items()})


def shown(defence: Defence, pool: SiteData, held: Tensor, seed: int, world: int, epochs: int) -> Tensor:
    """Return how sure the model that the server sees is of each row's outcome, in logits."""
    model = fr.learn.mlp(pool["x"].shape[1], hidden=HIDDEN)
    params = model.init(0)
    site = SiteData({name: column[held] for name, column in pool.items()})
    steps = epochs * len(pool["y"]) // 2 // BATCH
    local = defence.training(model, 1000 * seed + world, RATE, steps, BATCH)
    alone = Defence(defence.name) if defence.sites > 1 else defence
    total = seen(alone, local, params, [site], 1000 * seed + world)
    if defence.sites > 1:
        total = fr.tree.add(total, of_others(defence.sites - 1, len(pool["y"]) // 2, seed, steps))
    shared = fr.tree.add(params, fr.tree.scale(total, 1 / defence.sites))
    return model.predict(shared, pool).double() * (2 * pool["y"].double() - 1)


@cache
def of_others(sites: int, rows: int, seed: int, steps: int) -> Flat:
    """Return the sum of the updates of other sites."""
    tables = [pooled(rows, seed, f"other {number}") for number in range(sites)]
    model = fr.learn.mlp(tables[0]["x"].shape[1], hidden=HIDDEN)
    local = DEFENCES["none"].training(model, seed, RATE, steps, BATCH)
    return seen(Defence("others", sites), local, model.init(0), tables, seed)


def lira(confidence: Tensor, coins: Tensor) -> Tensor:
    """Return log p(confidence | member) - log p(confidence | none), by the other worlds: (worlds, rows)."""
    scores = torch.zeros_like(confidence)
    for world in range(len(coins)):
        others = torch.arange(len(coins)) != world
        inside, seen_there = coins[others], confidence[others]
        parts = []
        for mask in (inside, ~inside):
            count = mask.sum(0).clamp_min(1)
            mean = (seen_there * mask).sum(0) / count
            spread = (((seen_there - mean) * mask) ** 2).sum() / (mask.sum() - len(count))
            parts.append(-((confidence[world] - mean) ** 2) / (2 * spread) - spread.log() / 2)
        scores[world] = parts[0] - parts[1]
    return scores


def rate_at(others: Tensor, members: Tensor, false_alarms: float = FALSE_ALARMS) -> float:
    """Return the share of members above the threshold that so few others pass."""
    ranked = np.sort(others.numpy())[::-1]
    threshold = ranked[int(false_alarms * len(ranked))]
    return float((members > threshold).double().mean())
