"""Robust rules that need more than the rows of a round: a bound, a centre or a history that the server keeps,
or an update of its own. Start at robust.py, which says what holds for all of them.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from fedray.frozen import without_frozen
from fedray.passes import gram
from fedray.passes.clipping import ClipByNorm
from fedray.passes.compression import Names
from fedray.passes.robust import MINORITY, UPDATES, Asked, Outcome, Robust, need
from fedray.passes.stack import Array, Stack, Vectors
from fedray.rng import Key
from fedray.settings import check_numbers, check_whole

TINY = float(np.finfo(np.float64).tiny)


def _factors(norms: Array, bound: float) -> Array:
    """Return what norms are multiplied by so that none is above the bound."""
    return np.minimum(1.0, bound / np.maximum(norms, TINY))


@dataclass(frozen=True)
class Bounded:
    """See `norm_bound`."""

    max_norm: float | None
    keeps: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """As `explain` names it."""
        return f"norm_bound({'median' if self.max_norm is None else f'{self.max_norm:g}'})"

    def __call__(self, asked: Asked) -> Outcome:
        """Scale long rows down, and average."""
        norms = asked.stack.distances_to()
        bound = float(np.median(norms)) if self.max_norm is None else self.max_norm
        weights = _factors(norms, bound) / len(norms)
        return Outcome(asked.stack.combined(weights), weights=weights)


def norm_bound(max_norm: float | None = None, only: Names = UPDATES) -> Robust:
    """Replace a mean by that of updates scaled down to a norm: `max_norm`, or the median one of the round.

    A fixed bound is kept by honest sites themselves, before anything leaves, and checked at the server. It
    limits what an attacker can do in a round, and bears with nothing else: its direction counts in full.
    Source: Sun, Kairouz, Suresh, McMahan, Can you really backdoor federated learning?, 2019, section 4
    (norm thresholding).
    """
    if max_norm is not None and not 0 < max_norm < float("inf"):
        raise ValueError(f"norm_bound: max_norm={max_norm} is not above 0; leave it out for the median")
    limited = "no site for certain: it limits how far one moves a round"
    return Robust(Bounded(max_norm), limited, tuple(only), None if max_norm is None else ClipByNorm(max_norm))


@dataclass(frozen=True)
class CentredClipping:
    """See `centred_clipping`."""

    iterations: int
    radius: float | None
    keeps: ClassVar[bool] = True
    title: ClassVar[str] = "centred_clipping"

    def __call__(self, asked: Asked) -> Outcome:
        """Move the centre by what the rows say, each up to the radius."""
        stack, n = asked.stack, asked.stack.num_rows
        centre: Vectors = asked.memory or [torch.zeros_like(leaf) for leaf in stack.rows[0]]
        weights = np.zeros(n)
        for _ in range(self.iterations):
            far = stack.distances_to(centre)
            radius = float(np.median(far)) if self.radius is None else self.radius
            moves = _factors(far, radius) / n
            stay, moved = 1.0 - moves.sum(), stack.combined(moves)
            centre = [new + stay * old for new, old in zip(moved, centre, strict=True)]
            weights = moves + stay * weights
        return Outcome(centre, centre, weights)


def centred_clipping(iterations: int = 1, radius: float | None = None, only: Names = UPDATES) -> Robust:
    """Replace a mean by v + mean((x_i - v) min(1, radius / |x_i - v|)), v being the result of the last round.

    The first v is zero. `radius` is the paper's tau; without it, the median distance from v, in each
    iteration anew. The server keeps v, as long as an update. Source: Karimireddy, He, Jaggi, Learning from
    history for Byzantine robust optimization, ICML 2021, Algorithm 2, on updates in place of momentum.
    """
    check_whole("centred_clipping", iterations=iterations)
    check_numbers("centred_clipping", above=0, or_none=True, radius=radius)
    return Robust(CentredClipping(iterations, radius), MINORITY, tuple(only))


@dataclass(frozen=True)
class FoolsGold:
    """See `foolsgold`. Memory: {site: sum of its rows}."""

    keeps: ClassVar[bool] = True
    remembers_sites: ClassVar[bool] = True
    title: ClassVar[str] = "foolsgold"

    def __call__(self, asked: Asked) -> Outcome:
        """Weigh the sites by how much their histories are like another's."""
        stack, known = asked.stack, dict(asked.memory or {})
        if stack.mixing is not None:
            raise ValueError("foolsgold remembers sites, and buckets or neighbours are none: use it alone")
        need(self.title, stack, 2, "similarity is one of two sites")
        for name, row in zip(stack.names, stack.rows, strict=True):
            before = known.get(name)
            known[name] = [now if before is None else before[i] + now for i, now in enumerate(row)]
        rates = gram.foolsgold(Stack(stack.names, [known[name] for name in stack.names]).inner)
        weights = rates / rates.sum() if rates.sum() > 0 else rates
        return Outcome(stack.combined(weights), known, weights)


def foolsgold(only: Names = UPDATES) -> Robust:
    """Replace a mean by one in which sites that send alike over the rounds weigh little (Sybils).

    Needs honest sites that differ, and no count of attackers; one attacker alone is not noticed. The server
    keeps the sum of each site's updates: num_sites models, also in every checkpoint. Deviation: rates are
    divided by their sum, so that honest sites give their mean; where all are 0 nothing moves. All
    coordinates count alike, with confidence 1. Source: Fung, Yoon, Beschastnikh, The limitations of federated
    learning in Sybil settings, RAID 2020, Algorithm 1.
    """
    bears = "sites that send alike over the rounds, where honest sites do not"
    return Robust(FoolsGold(), bears, tuple(only))


@dataclass(frozen=True)
class FlTrust:
    """See `fltrust`."""

    keeps: ClassVar[bool] = False
    title: ClassVar[str] = "fltrust"

    def __call__(self, asked: Asked) -> Outcome:
        """Weigh rows by their cosine with the server's own, all at its length."""
        stack, own = asked.stack, asked.root
        length = float(np.sqrt(sum(float(leaf.double().square().sum()) for leaf in own)))
        norms = np.maximum(stack.distances_to(), TINY)
        trust = np.maximum(stack.products_with(own) / norms / max(length, TINY), 0.0)
        weights = trust / trust.sum() * length / norms if trust.sum() > 0 else trust
        return Outcome(stack.combined(weights), weights=weights)


@dataclass(frozen=True)
class RootUpdate:
    """The server's own update on its root set, as a site would train."""

    local: Any
    data: Any

    def __call__(self, params: Any, key: Key) -> Any:
        """Return delta as it is gathered: without what is frozen."""
        data = self.data() if callable(self.data) else self.data
        return without_frozen(self.local(params, data, key).delta)


def fltrust(local: Any, data: Any, only: Names = UPDATES) -> Robust:
    """Replace a mean by one in which sites count by their cosine with the server's own update.

    `local` is the local training and `data` the root set, rows that the server may hold (public ones, or of
    its own hospital): a `SiteData`, which then is part of the plan that hosts are sent, or a function that
    opens it, in every round, at the server. Every update is scaled to the length of the server's. Sites that
    point away count nothing; where all do, nothing moves. Bears with any number of attackers as far as the
    root set is like the sites' rows. Source: Cao, Fang, Liu, Gong, FLTrust: Byzantine-robust federated
    learning via trust bootstrapping, NDSS 2021, Algorithm 2.
    """
    bears = "any number of sites, as far as the server's own rows are like those of honest sites"
    return Robust(FlTrust(), bears, tuple(only), root=RootUpdate(local, data))
