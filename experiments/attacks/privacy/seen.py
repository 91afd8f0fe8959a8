"""What a server sees of one round under a defence. Every attack of this folder starts from it.

The defences are the library's own passes and trainings, run as in any study; only their noise is drawn from a
key, so that a table can be made again.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fedray as fr
from fedray import noise
from fedray.core.rewrite import Pass
from fedray.data.site import SiteData
from fedray.rng import Key
from fedray.tree import Flat

VICTIM = "s00"  # the site that is attacked; others are beside it only in a sum
BOUND = 4.0  # public, of a number in a secure sum


@dataclass(frozen=True)
class Defence:
    """How many sites are in the sum that the server sees, what passes, and noise on single rows."""

    name: str
    sites: int = 1
    passes: Callable[[int], Sequence[Pass]] = lambda seed: ()
    clip: float | None = None
    sigma: float = 0.0

    def training(
        self, model: Any, seed: int, lr: float = 1.0, steps: int = 1, batch_size: int | None = None
    ) -> Any:
        """Return the local training: steps of gradient descent, with clipped and noised rows where asked."""
        if self.clip is None:
            return fr.learn.sgd(model, lr=lr, steps=steps, batch_size=batch_size)
        rate = {"sampling_rate": 1.0} if batch_size is None else {"batch_size": batch_size}
        return fr.learn.private_sgd(
            model, lr=lr, clip=self.clip, noise_multiplier=self.sigma, steps=steps,
            source=partial(source, seed), **rate,
        )  # fmt: skip


def source(seed: int) -> noise.Source:
    """Return a keystream of a test."""
    return noise.keystream(hashlib.sha256(f"attack {seed}".encode()).digest())


def _sum(sites: int) -> Defence:
    return Defence(
        f"secure sum of {sites}", sites, lambda seed: [fr.passes.secure_sum(mode="ideal", clip=BOUND)]
    )


def _site_noise(seed: int) -> list[Pass]:
    return [fr.passes.site_dp_local(clip=1.0, noise_multiplier=0.1, cohort=1, source=source(seed))]


DEFENCES = {
    each.name: each
    for each in (
        Defence("none"),
        _sum(5),
        _sum(50),
        Defence("records: clip, noise 0.1", clip=1.0, sigma=0.1),
        Defence("records: clip, noise 1", clip=1.0, sigma=1.0),
        Defence("records: clip, noise 4", clip=1.0, sigma=4.0),
        Defence("site: clip, noise 0.1", passes=_site_noise),
        Defence("top 10 %", passes=lambda seed: [fr.passes.topk(0.1)]),
        Defence("4 bits a number", passes=lambda seed: [fr.passes.qsgd(7)]),
    )
}


def watched(local: Any) -> fr.Algorithm:
    """A round whose result is the mean update itself."""

    def round(params: Any, site: Any) -> fr.Outputs:
        update = fr.map(local, fr.broadcast(params), site.data, site.rng)
        return fr.Outputs(server=fr.mean(update.delta))

    return fr.Algorithm(lambda params: params, round, name="watched")


def seen(defence: Defence, local: Any, params: Flat, tables: Sequence[SiteData], seed: int) -> Flat:
    """Return the sum of the updates as the server gets it. The first table is the victim's."""
    sites = {f"s{number:02d}": (lambda table=table: table) for number, table in enumerate(tables)}
    with fr.simulate(sites) as federation:
        mean = fr.compute(watched(local), federation, state=params, passes=defence.passes(seed), seed=seed)
    return fr.tree.scale(mean, float(len(tables)))


def draw_rows(rows: int, width: int, seed: int, label: str) -> SiteData:
    """Return rows of independent normal numbers, and coins for their outcomes."""
    generator = Key(seed, 0, "attack", label).generator()
    x = torch.randn(rows, width, generator=generator)
    return SiteData({"x": x, "y": torch.randint(0, 2, (rows,), generator=generator).float()})


def tables_of(defence: Defence, rows: int, width: int, seed: int) -> list[SiteData]:
    """Return the victim's rows and those of the others in the sum."""
    return [draw_rows(rows, width, seed, f"site {number}") for number in range(defence.sites)]


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the absolute cosine of two vectors."""
    return float(
        torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0).abs()
    )
