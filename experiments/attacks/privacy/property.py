"""What is a hospital like? Whether 30 % or 70 % of its patients are women, from its update.

The attacker makes sites of its own of both kinds from rows like the site's, sees an update of each under
the same defence, and fits a linear rule to them; told is AUROC on sites it has not seen. What is not the
property is the same but for chance: 200 rows of the synthetic ICU. Source: Ganju et al., Property inference
attacks on fully connected neural networks, CCS 2018; Melis et al., IEEE S&P 2019 (on updates).
"""

import torch
from torch import Tensor

import fedray as fr
from experiments.attacks.privacy.membership import stays
from experiments.attacks.privacy.seen import Defence, seen
from fedray.data.site import SiteData
from fedray.learn.intervals import auroc
from fedray.rng import Key

FEATURE = "female"
SHARES = (0.3, 0.7)
ROWS, STEPS, BATCH, RATE = 200, 50, 20, 0.1
KNOWN, UNKNOWN = 60, 60  # sites of the attacker's own, and sites attacked
RIDGE = 10.0


def attack(defence: Defence, seed: int, known: int = KNOWN, unknown: int = UNKNOWN) -> dict[str, float]:
    """Return AUROC of the guess over sites that were not seen."""
    kinds = torch.arange(known + unknown) % 2
    updates = torch.stack([update_of(defence, int(kind), seed, world) for world, kind in enumerate(kinds)])
    rule, shift = fit(updates[:known], kinds[:known])
    return {"auroc": auroc(kinds[known:], (updates[known:] - shift) @ rule)}


def update_of(defence: Defence, kind: int, seed: int, world: int) -> Tensor:
    """Return what the server sees where the first site is of a kind and the others are of either."""
    generator = Key(seed, world, "attack", "property").generator()
    kinds = [kind, *torch.randint(0, 2, (defence.sites - 1,), generator=generator).tolist()]
    tables = [site_of(SHARES[each], generator) for each in kinds]
    model = fr.learn.mlp(tables[0]["x"].shape[1], hidden=(16,))
    local = defence.training(model, 1000 * seed + world, RATE, STEPS, BATCH)
    delta = seen(defence, local, model.init(0), tables, 1000 * seed + world)
    return torch.cat([delta[name].flatten() for name in delta]).double()


def site_of(share: float, generator: torch.Generator) -> SiteData:
    """Return a site whose share of women is as asked."""
    whole, is_woman = stays(), women()
    wanted = round(share * ROWS)
    parts = [(is_woman, wanted), (~is_woman, ROWS - wanted)]
    chosen = [torch.nonzero(mask).flatten() for mask, _ in parts]
    rows = [
        places[torch.randint(0, len(places), (count,), generator=generator)]
        for places, (_, count) in zip(chosen, parts, strict=True)
    ]
    together = torch.cat(rows)
    return SiteData({name: column[together] for name, column in whole.items()})


def women() -> Tensor:
    """Tell which rows are women's: the larger of the column's two values."""
    place = fr.data.synthetic_icu(num_sites=1, scale=0.01).features.index(FEATURE)
    column = stays()["x"][:, place]
    return column > column.mean()


def fit(updates: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Return a ridge rule of standardised numbers, and what is taken off first."""
    shift = updates.mean(0)
    spread = updates.std(0) + 1e-12 * updates.std(0).max()
    scaled = (updates - shift) / spread
    gram = scaled @ scaled.T / updates.shape[1] + RIDGE / len(updates) * torch.eye(
        len(updates), dtype=torch.float64
    )
    return scaled.T @ torch.linalg.solve(gram, 2 * kinds.double() - 1) / spread, shift
