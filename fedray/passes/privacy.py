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
from fedray.errors import PassError
from fedray.noise import Source
from fedray.passes.clipping import ClipByNorm, Names, row_norms, shortened, stacked
from fedray.passes.site_level import Clips, Cohort, Terms, check_cohort, protected
from fedray.rows import Group, Tagged

logger = logging.getLogger(__name__)
LEAST_BYTES = 4  # of a number: one site moves a sum of 257 bfloat16 numbers by twice what it adds
SERVER = "the server, with what each site sends (under a secure sum with the sums)"


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

    check_run = check_cohort


def noisy(total: Any, std: float, source: Source | None = None) -> Any:
    """Return a value of one row plus normal noise: added in float64, rounded once, padding left at zero.

    Raises PassError on numbers of two bytes.
    """

    def one(leaf: Any) -> Any:
        if isinstance(leaf, tree.Flat):
            numbers = coded.dense(leaf.buffer, leaf.schema)
            return tree.Flat(coded.spread(_noisy(numbers, std, source), leaf.schema), leaf.schema)
        if isinstance(leaf, Tensor):
            return _noisy(leaf, std, source)
        return float(_noisy(torch.tensor(float(leaf), dtype=torch.float64), std, source))

    return tree.replace_leaves(total, [one(leaf) for _, leaf in tree.leaves(total)])


def _noisy(numbers: Tensor, std: float, source: Source | None) -> Tensor:
    if numbers.dtype.itemsize < LEAST_BYTES:
        raise PassError(
            f"noise on numbers of {numbers.dtype}: their sum is rounded before the noise is added, by more "
            "than what one site may move it. Fix: parameters of float32"
        )
    drawn = noise.gaussian(tuple(numbers.shape), std, source, torch.float64)
    return (numbers.to("cpu", torch.float64) + drawn).to(numbers)


def site_dp(
    clip: Clips = 1.0, noise_multiplier: float | None = None, cohort: float | None = None,
    population: float | None = None, only: Names | None = ("delta",), exact: Names = ("metrics",),
    drop: Names = (), weights: str | None = None, sampling: str | None = None,
    epsilon: float | None = None, delta: float = 1e-5, rounds: int | None = None, max_noise: float = 10.0,
    source: Source | None = None,
) -> Pass:  # fmt: skip
    """Clip each site's contribution, add Gaussian noise to the sum, and divide by the expected cohort.

    The noise has standard deviation `noise_multiplier` x `clip` on the sum; every name of `only` is a release
    of its own, with its own noise and cost. `only=None` takes every sum and mean that is not in `exact` or
    `drop`. `sampling="poisson"` claims amplification at the rate cohort / population; None claims none.
    Unit: site; adjacency: add/remove; noise by the server, which must be trusted with each site's update.
    Raises: PassError on a weighted mean without weights="uniform", or a name that would leave without noise;
    ScheduleError where the run samples otherwise than is claimed.
    Source: McMahan, Ramage, Talwar, Zhang, Learning differentially private recurrent language models, ICLR
    2018, Algorithm 1 with a fixed denominator.
    """
    terms = Terms(
        who="site_dp", clip=clip, cohort=cohort, noise_multiplier=noise_multiplier, epsilon=epsilon,
        delta=delta, rounds=rounds, max_noise=max_noise, only=only, exact=exact, drop=drop, weights=weights,
        population=population, sampling=sampling,
    )  # fmt: skip
    mechanism = terms.mechanism()

    def noisy_sum(x: Value, name: str, site: Site) -> Value:
        bound = terms.bound(name)
        std = terms.noise * bound
        total = fr.sum(fr.map(ClipByNorm(bound), x), name=name)
        return fr.apply(GaussianNoise(std=std, mechanism=mechanism, cohort=terms.asked, source=source), total)

    def told(name: str) -> str:
        std = terms.noise * terms.bound(name)
        at_site = f"{name}: a site adds at most {terms.bound(name):g} (L2)"
        return f"{at_site}; the server adds noise of standard deviation {std:.4g}; {terms.of_sampling}"

    return protected(terms, noisy_sum, told, SERVER)


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

    check_run = check_cohort


def site_dp_local(
    clip: Clips = 1.0, noise_multiplier: float | None = None, cohort: float | None = None,
    only: Names | None = ("delta",), exact: Names = ("metrics",), drop: Names = (),
    weights: str | None = None,
    epsilon: float | None = None, delta: float = 1e-5, rounds: int | None = None, max_noise: float = 10.0,
    source: Source | None = None,
) -> Pass:  # fmt: skip
    """Clip each site's contribution and add Gaussian noise there, so that nobody need be trusted.

    Almost never useful: the mean of n sites has sqrt(n) times the noise of `site_dp` at the same epsilon.
    Unit: site; adjacency: add/remove; noise by the sites; trusted: nobody. Raises: as `site_dp`.
    """
    terms = Terms(
        who="site_dp_local", clip=clip, cohort=cohort, noise_multiplier=noise_multiplier, epsilon=epsilon,
        delta=delta, rounds=rounds, max_noise=max_noise, only=only, exact=exact, drop=drop, weights=weights,
    )  # fmt: skip
    logger.warning(
        "site_dp_local: every site adds the whole noise, and the sum has %.3g times what a trusted server "
        "would add: use site_dp, or site_dp_distributed with a secure sum",
        math.sqrt(terms.asked.size),
    )
    mechanism = terms.mechanism(noise_by="sites", trusted="nobody", divisor=math.sqrt(terms.asked.size))

    def noisy_sum(x: Value, name: str, site: Site) -> Value:
        bound = terms.bound(name)
        std = terms.noise * bound
        fn = LocalNoise(max_norm=bound, std=std, mechanism=mechanism, cohort=terms.asked, source=source)
        return fr.sum(fr.map(fn, x), name=name)

    def told(name: str) -> str:
        std = terms.noise * terms.bound(name)
        at_site = f"{name}: what a site sends is at most {terms.bound(name):g} (L2)"
        return f"{at_site}, and leaves with noise of standard deviation {std:.4g}"

    return protected(terms, noisy_sum, told, "nobody")
