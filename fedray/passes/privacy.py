"""Differential privacy for a whole site: what a round releases hardly depends on any one hospital.

    passes=[fr.passes.site_dp(clip=1.0, noise_multiplier=0.8, cohort=200, weights="uniform")]

Unit: a site, with all of its patients. Adjacency: add/remove of a site, the cohorts of others unchanged.
`site_dp` adds the noise at the server, which must be trusted with each site's update (or combined with a
secure sum, then with their sum); `site_dp_local` adds it at each site and trusts nobody. Variants: a clip
bound that follows the updates is in adaptive.py, noise that is correlated over rounds in matrix.py, and noise
in shares under a secure sum in distributed.py. What they have in common is in site_level.py.

With few sites the noise is larger than what is learnt: docs/privacy-sites.md has the table.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedray import coded, noise, rows, tree
from fedray.accounting import Mechanism
from fedray.core import trace as fr
from fedray.core.graph import Label
from fedray.core.rewrite import Pass
from fedray.core.trace import Site
from fedray.core.value import Value
from fedray.noise import Source
from fedray.passes.clipping import ClipByNorm, bound_of, check_bound, row_norms, shortened, stacked
from fedray.passes.site_level import Cohort, Names, Taken, cohort_of, protected
from fedray.rows import Group, Tagged

logger = logging.getLogger(__name__)
Clips = float | Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Add normal noise to a sum at the server, once: the draw is from the operating system's entropy."""

    std: float
    mechanism: Mechanism
    cohort: Cohort
    source: Source | None = None
    one_shot: ClassVar[bool] = True
    grants: ClassVar[Label] = Label.DP

    def __call__(self, total: Any) -> Any:
        """Return the noisy sum."""
        return noisy(total, self.std, self.source)

    def check_run(self, schedule: Any, num_sites: int | None) -> None:
        """Raise ScheduleError where the run asks others than the noise reckons with."""
        self.cohort.check(schedule, num_sites)


def noisy(total: Any, std: float, source: Source | None = None) -> Any:
    """Return a value of one row plus normal noise: added in float64, rounded once, padding left at zero."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, tree.Flat):
            numbers = coded.dense(leaf.buffer, leaf.schema)
            return tree.Flat(coded.spread(_noisy(numbers, std, source), leaf.schema), leaf.schema)
        if isinstance(leaf, Tensor):
            return _noisy(leaf, std, source)
        return float(_noisy(torch.tensor(float(leaf), dtype=torch.float64), std, source))

    return tree.replace_leaves(total, [one(leaf) for _, leaf in tree.leaves(total)])


def _noisy(numbers: Tensor, std: float, source: Source | None) -> Tensor:
    drawn = noise.gaussian(tuple(numbers.shape), std, source, torch.float64)
    return (numbers.to("cpu", torch.float64) + drawn).to(numbers)


def site_dp(
    clip: Clips,
    noise_multiplier: float,
    cohort: float | None = None,
    population: float | None = None,
    only: Names | None = ("delta",),
    exact: Names = ("metrics",),
    drop: Names = (),
    weights: str | None = None,
    sampling: str | None = None,
    delta: float = 1e-5,
    max_noise: float = 10.0,
    source: Source | None = None,
) -> Pass:
    """Clip each site's contribution, add Gaussian noise to the sum, and divide by the expected cohort.

    The noise has standard deviation `noise_multiplier` x `clip` on the sum; every name of `only` is a release
    of its own, with its own noise and cost. `clip` is one bound, or a mapping {name: bound}. `only=None`
    takes every sum and mean that is not in `exact` or `drop`. `sampling="poisson"` claims amplification at
    the rate cohort / population, for who does not learn who was asked; None claims none.
    Unit: site; adjacency: add/remove; noise by the server, which must be trusted with each site's update.
    Raises: PassError on a weighted mean without weights="uniform", or a name that would leave without noise;
    ScheduleError where the run samples otherwise than is claimed.
    Source: McMahan, Ramage, Talwar, Zhang, Learning differentially private recurrent language models, ICLR
    2018, Algorithm 1 with a fixed denominator.
    """
    title = f"site_dp({_told(clip)}, {noise_multiplier:g})"
    check_clips(title, clip)
    asked = cohort_of(title, cohort, population, sampling)
    taken = Taken(title=title, only=only, exact=exact, drop=drop, weights=weights)
    mechanism = Mechanism(
        kind="gaussian" if asked.rate == 1 else "sampled_gaussian",
        noise_multiplier=noise_multiplier,
        sampling_rate=asked.rate,
        unit="site",
        noise_by="server",
        trusted="server",
        delta=delta,
        divisor=asked.size,
        max_noise=max_noise,
    )

    def noisy_sum(x: Value, name: str, site: Site) -> Value:
        bound = bound_of(clip, name)
        total = fr.sum(fr.map(ClipByNorm(bound), x), name=name)
        std = noise_multiplier * bound
        return fr.apply(GaussianNoise(std=std, mechanism=mechanism, cohort=asked, source=source), total)

    def claim(name: str) -> str:
        bound = bound_of(clip, name)
        return (f"{name}: a site adds at most {bound:g} (L2); the server adds Gaussian noise of standard "
                f"deviation {noise_multiplier * bound:g} to the sum ({amplified(asked)}); unit: site; trusted: server")

    return protected(taken, asked, noisy_sum, claim)


def amplified(cohort: Cohort) -> str:
    """Say what is claimed of sampling."""
    if cohort.rate == 1:
        return "no amplification by sampling claimed"
    return f"Poisson sampling at rate {cohort.rate:g}, kept from whom it protects against"


def _told(clip: Clips) -> str:
    return "clips" if isinstance(clip, Mapping) else f"{clip:g}"


def check_clips(title: str, clip: Clips) -> None:
    """Raise ValueError where a bound is no finite number above 0."""
    for bound in clip.values() if isinstance(clip, Mapping) else [clip]:
        check_bound(title, bound)


@dataclass(frozen=True, kw_only=True)
class LocalNoise:
    """Clip a site's value and add normal noise at full strength, before it leaves the site."""

    max_norm: float
    std: float
    mechanism: Mechanism
    cohort: Cohort
    source: Source | None = None
    one_shot: ClassVar[bool] = True
    grants: ClassVar[Label] = Label.DP

    def __call__(self, x: Any) -> Any:
        """Return the noisy value of one site."""
        return coded.alone(self.rows, x)

    def rows(self, group: Group, x: Tagged) -> Any:
        """Return the noisy values of a group."""
        value = stacked(x, group.k)
        short = shortened(value, group, row_norms(value, group), self.max_norm)
        each = [noisy(rows.row(rows.Rows(short), index), self.std, self.source) for index in range(group.k)]
        return rows.stack(each).value

    def check_run(self, schedule: Any, num_sites: int | None) -> None:
        """Raise ScheduleError where the run asks others than the noise reckons with."""
        self.cohort.check(schedule, num_sites)


def site_dp_local(
    clip: Clips,
    noise_multiplier: float,
    cohort: float | None = None,
    only: Names | None = ("delta",),
    exact: Names = ("metrics",),
    drop: Names = (),
    weights: str | None = None,
    delta: float = 1e-5,
    max_noise: float = 10.0,
    source: Source | None = None,
) -> Pass:
    """Clip each site's contribution and add Gaussian noise there, so that nobody need be trusted.

    Almost never useful: the mean of n sites has sqrt(n) times the noise of `site_dp` at the same epsilon.
    Unit: site; adjacency: add/remove; noise by the sites; trusted: nobody.
    Raises: as `site_dp`.
    """
    title = f"site_dp_local({_told(clip)}, {noise_multiplier:g})"
    check_clips(title, clip)
    asked = cohort_of(title, cohort, None, None)
    taken = Taken(title=title, only=only, exact=exact, drop=drop, weights=weights)
    logger.warning(
        "%s: every site adds the whole noise by itself, %.0f times what a trusted server would add in all: "
        "use site_dp, or site_dp_distributed with a secure sum", title, math.sqrt(asked.size),
    )
    mechanism = Mechanism(
        kind="gaussian",
        noise_multiplier=noise_multiplier,
        unit="site",
        noise_by="sites",
        trusted="nobody",
        delta=delta,
        divisor=math.sqrt(asked.size),
        max_noise=max_noise,
    )

    def noisy_sum(x: Value, name: str, site: Site) -> Value:
        bound = bound_of(clip, name)
        std = noise_multiplier * bound
        fn = LocalNoise(max_norm=bound, std=std, mechanism=mechanism, cohort=asked, source=source)
        return fr.sum(fr.map(fn, x), name=name)

    def claim(name: str) -> str:
        bound = bound_of(clip, name)
        return (f"{name}: a site's value of at most {bound:g} (L2) leaves it with Gaussian noise of standard "
                f"deviation {noise_multiplier * bound:g}; unit: site; trusted: nobody")

    return protected(taken, asked, noisy_sum, claim)
