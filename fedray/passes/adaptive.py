"""A clip bound that follows the updates: `site_dp_adaptive`, the quantile of norms estimated under the noise.

Each site also says whether its update was within the bound, as one number; the noisy share of those is
compared with the quantile that is wanted, and the bound of the next round moves. Both sums are one release:
together they cost what `noise_multiplier` says.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fedray import coded, noise
from fedray.accounting import Mechanism
from fedray.accounting.calibrate import beside_indicator
from fedray.core import trace as fr
from fedray.core.graph import Label
from fedray.core.rewrite import Pass
from fedray.core.trace import Site
from fedray.core.value import Value
from fedray.noise import Source
from fedray.passes.clipping import Names, row_norms, shortened, stacked
from fedray.passes.privacy import SERVER, noisy
from fedray.passes.site_level import Clips, Cohort, NoisySum, Terms, check_cohort, protected
from fedray.rows import Column, Group, Tagged, row
from fedray.settings import check_numbers


@dataclass(frozen=True)
class ClipAndTell:
    """Clip to the round's bound, and tell whether the value was within it: +1/2, or -1/2."""

    def __call__(self, x: Any, bound: float) -> Any:
        """Clip the value of one site."""
        return coded.alone(self.rows, x, bound)

    def rows(self, group: Group, x: Tagged, bound: Tagged) -> Any:
        """Clip the values of a group; the bound is the server's, one for all."""
        value, limit = stacked(x, group.k), float(row(bound, 0))
        norms = row_norms(value, group)
        within = torch.where(norms <= limit, 0.5, -0.5).to(torch.float64)
        return {"value": shortened(value, group, norms, limit), "within": Column(within, is_whole=False)}


@dataclass(frozen=True)
class Bound:
    """The bound of this round: what the server remembers, the first one before there is anything."""

    first: float

    def __call__(self, memory: float | None) -> float:
        """Return the bound."""
        return self.first if memory is None else memory


@dataclass(frozen=True, kw_only=True)
class AdaptiveNoise:
    """Add noise to a sum of clipped updates and to that of the marks, and move the bound.

    The noise on updates is in units of the bound that they were clipped to, never of the next one.
    """

    update_multiplier: float
    mark_std: float
    target: float
    lr: float
    mechanism: Mechanism
    cohort: Cohort
    source: Source | None = None
    one_shot: ClassVar[bool] = True
    grants: ClassVar[Label] = Label.DP

    def __call__(self, total: Any, within: float, bound: float) -> dict[str, Any]:
        """Return the noisy sum and the next bound."""
        drawn = float(noise.gaussian(1, self.mark_std, self.source, torch.float64))
        share = (float(within) + drawn) / self.cohort.size + 0.5
        return {
            "sum": noisy(total, self.update_multiplier * bound, self.source),
            "bound": moved(bound, share, self.target, self.lr),
        }

    check_run = check_cohort


def moved(bound: float, share: float, target: float, lr: float) -> float:
    """Return the next bound: smaller where more than the target share of updates is within this one."""
    return bound * math.exp(-lr * (share - target))


def site_dp_adaptive(
    clip: Clips = 1.0, noise_multiplier: float | None = None, cohort: float | None = None,
    population: float | None = None, target: float = 0.5, lr: float = 0.2, mark_std: float | None = None,
    only: Names | None = ("delta",), exact: Names = ("metrics",), drop: Names = (),
    weights: str | None = None, sampling: str | None = None, epsilon: float | None = None,
    delta: float = 1e-5, rounds: int | None = None, max_noise: float = 10.0, source: Source | None = None,
) -> Pass:  # fmt: skip
    """As `site_dp`, with a bound that moves to the `target` quantile of the sites' norms, from `clip` on.

    b_i = 1 where a site is within the bound C; share = (sum b_i + N(0, mark_std^2)) / cohort; C <- C *
    exp(-lr (share - target)). `mark_std` is cohort / 20 where it is None. The bound is the server's memory
    `clip.<name>`, and is sent to the sites; the marks leave as `<name>.within`. Unit, adjacency, trust,
    raises: as `site_dp`; ConfigError where the marks would cost as much as is asked for in all.
    Source: Andrew, Thakkar, McMahan, Ramaswamy, Differentially private learning with adaptive clipping,
    NeurIPS 2021, Algorithm 1.
    """
    check_numbers("site_dp_adaptive", above=0, or_none=True, mark_std=mark_std)
    check_numbers("site_dp_adaptive", above=0, lr=lr)
    check_numbers("site_dp_adaptive", above=0, below=1, target=target)
    terms = Terms(
        who="site_dp_adaptive", clip=clip, cohort=cohort, noise_multiplier=noise_multiplier, epsilon=epsilon,
        delta=delta, rounds=rounds, max_noise=max_noise, only=only, exact=exact, drop=drop, weights=weights,
        population=population, sampling=sampling,
    )  # fmt: skip
    spread = terms.asked.size / 20 if mark_std is None else mark_std
    fn = AdaptiveNoise(
        update_multiplier=beside_indicator(terms.noise, spread), mark_std=spread, target=target, lr=lr,
        mechanism=terms.mechanism(), cohort=terms.asked, source=source,
    )  # fmt: skip

    def told(name: str) -> str:
        both = f"{name} and {name}.within: clipped to a bound that follows the {target:g} quantile of norms"
        return f"{both}; noise of the server, as of one release with {terms.noise:.4g}; {terms.of_sampling}"

    return protected(terms, _noisy_sum(terms, fn), told, SERVER)


def _noisy_sum(terms: Terms, fn: AdaptiveNoise) -> NoisySum:
    def noisy_sum(x: Value, name: str, site: Site) -> Value:
        slot = f"clip.{name}"
        bound = fr.apply(Bound(terms.bound(name)), site.server.slot(slot))
        sent = fr.map(ClipAndTell(), x, fr.broadcast(bound, name=slot))
        within = fr.sum(sent["within"], name=f"{name}.within")
        found = fr.apply(fn, fr.sum(sent["value"], name=name), within, bound)
        site.server.store(slot, found["bound"])
        return found["sum"]

    return noisy_sum
