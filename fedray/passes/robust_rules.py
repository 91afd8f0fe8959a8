"""The robust rules that need nothing but the rows of one round. Start at robust.py, which says what holds
for all of them.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from fedray.passes import coordinate, gram
from fedray.passes.compression import Names
from fedray.passes.robust import (
    MINORITY,
    UPDATES,
    Asked,
    Outcome,
    Robust,
    Rule,
    attackers_among,
    bad_sites,
    check_attackers,
    need,
    rule_of,
)
from fedray.passes.stack import Array, Stack, product
from fedray.settings import check_numbers, check_whole, is_number


@dataclass(frozen=True)
class Trimmed:
    """See `trimmed_mean` and `median`; of the median `attackers` is None."""

    attackers: float | None
    keeps: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """As `explain` names it."""
        return "median" if self.attackers is None else f"trimmed_mean({self.attackers:g})"

    def __call__(self, asked: Asked) -> Outcome:
        """Sort each coordinate and average what is left."""
        stack = asked.stack
        if self.attackers is None:
            return Outcome(stack.by_column(coordinate.median))
        cut = attackers_among(self.attackers, stack)
        need(self.title, stack, 2 * cut + 1, f"more than 2 x {cut} attackers")
        return Outcome(stack.by_column(lambda block: coordinate.trimmed(block, cut)))


def median(only: Names = UPDATES) -> Robust:
    """Replace a mean by the coordinate-wise median.

    Bears with fewer than half of the sites; of an even number the mean of the middle two. The server holds
    every update while it works. Weights are ignored. Source: Yin, Chen, Ramchandran, Bartlett,
    Byzantine-robust distributed learning, ICML 2018, Definition 1.
    """
    return Robust(Trimmed(None), MINORITY, tuple(only))


def trimmed_mean(attackers: float = 0.2, only: Names = UPDATES) -> Robust:
    """Replace a mean by the coordinate-wise mean without the `attackers` largest and smallest values.

    Needs more than 2f sites; f = 0 is the mean. Weights are ignored. Raises QuorumError at run time where
    fewer deliver. Source: Yin et al., ICML 2018, Definition 2.
    """
    check_attackers("trimmed_mean", attackers)
    return Robust(Trimmed(attackers), bad_sites(attackers), tuple(only))


@dataclass(frozen=True)
class Krum:
    """See `krum` and `multi_krum`. `keep` rows are averaged; None is all but the attackers."""

    attackers: float
    keep: int | None
    keeps: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """As `explain` names it."""
        return f"krum({self.attackers:g})" if self.keep == 1 else f"multi_krum({self.attackers:g})"

    def __call__(self, asked: Asked) -> Outcome:
        """Average the rows that lie closest to their neighbours."""
        stack = asked.stack
        f = attackers_among(self.attackers, stack)
        need(self.title, stack, 2 * f + 3, f"2f + 3 with f = {f} attackers")
        keep = min(self.keep or stack.num_rows - f, stack.num_rows - f)
        weights = gram.krum(stack.gram, f, keep, stack.tolerance)
        return Outcome(stack.combined(weights), weights=weights)


def krum(attackers: float = 0.2, only: Names = UPDATES) -> Robust:
    """Replace a mean by the value of one site: that with the smallest sum of squared distances to its
    n - f - 2 nearest others.

    Needs n >= 2f + 3. The result is a single site's update. Source: Blanchard, El Mhamdi, Guerraoui, Stainer,
    Machine learning with adversaries, NeurIPS 2017, section 4.
    """
    check_attackers("krum", attackers)
    return Robust(Krum(attackers, 1), bad_sites(attackers), tuple(only))


def multi_krum(attackers: float = 0.2, keep: int | None = None, only: Names = UPDATES) -> Robust:
    """Replace a mean by that of the `keep` sites with the smallest Krum scores, by default n - f.

    Needs n >= 2f + 3; of more than n - f sites n - f are kept. Source: Blanchard et al., NeurIPS 2017,
    section 5 (Multi-Krum).
    """
    check_attackers("multi_krum", attackers)
    check_whole("multi_krum", or_none=True, keep=keep)
    return Robust(Krum(attackers, keep), bad_sites(attackers), tuple(only))


@dataclass(frozen=True)
class Bulyan:
    """See `bulyan`."""

    attackers: float
    keeps: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """As `explain` names it."""
        return f"bulyan({self.attackers:g})"

    def __call__(self, asked: Asked) -> Outcome:
        """Pick rows by Krum, then average around their medians."""
        stack = asked.stack
        f = attackers_among(self.attackers, stack)
        need(self.title, stack, 4 * f + 3, f"4f + 3 with f = {f} attackers")
        count = stack.num_rows - 2 * f
        picked = gram.picked_by_krum(stack.gram, f, count, stack.tolerance)
        chosen = stack.chosen(picked)
        return Outcome(chosen.by_column(lambda block: coordinate.around_median(block, count - 2 * f)))


def bulyan(attackers: float = 0.1, only: Names = UPDATES) -> Robust:
    """Replace a mean by Bulyan: Krum picks n - 2f sites, of whose values the n - 4f nearest to the median are
    averaged, coordinate by coordinate.

    Needs n >= 4f + 3. Krum is asked again after each pick, with r - f - 2 neighbours among the r sites left,
    at least 1 (the paper leaves open what the last picks use). Source: El Mhamdi, Guerraoui, Rouault, The
    hidden vulnerability of distributed learning in Byzantium, ICML 2018, section 4.
    """
    check_attackers("bulyan", attackers)
    return Robust(Bulyan(attackers), bad_sites(attackers), tuple(only))


@dataclass(frozen=True)
class Rfa:
    """See `rfa`, and `three_sigma` with a number of `sigmas`."""

    iterations: int
    smoothing: float = 1e-6
    sigmas: float | None = None
    keeps: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """As `explain` names it."""
        return "rfa" if self.sigmas is None else f"three_sigma({self.sigmas:g})"

    def __call__(self, asked: Asked) -> Outcome:
        """Weigh the rows towards their geometric median, or drop those far from it."""
        products = asked.stack.gram
        weights = gram.geometric_median(products, self.iterations, self.smoothing)
        if self.sigmas is not None:
            far = gram.distances(products, weights)
            weights = gram.within_sigmas(far, self.sigmas, asked.stack.tolerance)
        return Outcome(asked.stack.combined(weights), weights=weights)


def rfa(iterations: int = 8, smoothing: float = 1e-6, only: Names = UPDATES) -> Robust:
    """Replace a mean by the geometric median, found by the smoothed Weiszfeld algorithm from the mean.

    Bears with fewer than half of the sites. `smoothing` is the paper's nu. Deviations: sites weigh the same;
    `iterations` are those at least, and it goes on until one moves the result by less than 1 % of the median
    distance: eight take back 96 % of what four of ten sites add, which is nothing where they lie far off.
    Source: Pillutla, Kakade, Harchaoui, Robust aggregation for federated learning, IEEE Transactions on
    Signal Processing 2022, Algorithm 2.
    """
    check_whole("rfa", iterations=iterations)
    check_numbers("rfa", above=0, smoothing=smoothing)
    return Robust(Rfa(iterations, smoothing), MINORITY, tuple(only))


def three_sigma(sigmas: float = 3.0, only: Names = UPDATES) -> Robust:
    """Replace a mean by that of the sites whose distance from the geometric median is usual.

    Usual is at most median + `sigmas` deviations of the distances. Deviation: the deviation is 1.4826 times
    the median absolute one; with mean and standard deviation, a tenth of the sites that lie equally far out
    hide themselves (a share p lies sqrt((1 - p) / p) deviations out, below 3 from p = 0.1 on). The geometric
    median is that of `rfa`.
    """
    check_numbers("three_sigma", above=0, sigmas=sigmas)
    return Robust(Rfa(8, 1e-6, sigmas), MINORITY, tuple(only))


@dataclass(frozen=True)
class Reweighted:
    """See `residual_reweighting`."""

    iterations: int
    bound: float
    least: float
    keeps: ClassVar[bool] = False
    title: ClassVar[str] = "residual_reweighting"

    def __call__(self, asked: Asked) -> Outcome:
        """Weigh the rows by their residuals."""
        weights = gram.reweighted(asked.stack.gram, self.iterations, self.bound, self.least)
        return Outcome(asked.stack.combined(weights), weights=weights)


def residual_reweighting(
    iterations: int = 8, bound: float = 2.0, least: float = 0.1, only: Names = UPDATES
) -> Robust:
    """Replace a mean by iteratively reweighted least squares: sites far from the mean weigh less, then none.

    e = distance / (1.48 (1 + 5 / (n - 1)) median distance); w = min(1, bound sqrt(2 / n) / e), 0 below
    `least`. Source: Fu, Xie, Li, Chen, Attack-resistant federated learning with residual-based reweighting,
    2019, from which are scale, bound (lambda) and least (delta). Deviation: one residual a site, its distance
    from the weighted mean, in place of one a parameter from a line through the sorted values: that costs n^2
    a parameter, while this takes the Gram matrix.
    """
    check_whole("residual_reweighting", iterations=iterations)
    if not is_number(bound) or bound <= 0 or not 0 <= least < 1:
        raise ValueError(f"residual_reweighting: iterations={iterations}, bound={bound}, least={least}: give "
                         "1 or more, above 0, and in [0, 1)")  # fmt: skip
    few = "a few sites that lie far from all others"
    return Robust(Reweighted(iterations, bound, least), few, tuple(only))


@dataclass(frozen=True)
class Mixed:
    """See `bucketing` and `nnm`: the rows are mixed before another rule. `size` is that of a bucket."""

    then: Rule
    size: int | None = None
    attackers: float = 0.0

    @property
    def title(self) -> str:
        """As `explain` names it."""
        mixed = f"nnm({self.attackers:g}" if self.size is None else f"bucketing({self.size}"
        return f"{mixed}, {self.then.title})"

    @property
    def keeps(self) -> bool:
        """As the rule that follows."""
        return self.then.keeps

    def __call__(self, asked: Asked) -> Outcome:
        """Mix the rows and ask the rule."""
        mixing = self._nearest(asked.stack) if self.size is None else self._buckets(asked)
        found = self.then(replace(asked, stack=asked.stack.mixed(mixing)))
        return found if found.weights is None else replace(found, weights=product(found.weights, mixing))

    def _nearest(self, stack: Stack) -> Array:
        f = attackers_among(self.attackers, stack)
        need(self.title, stack, 2 * f + 1, f"2f + 1 with f = {f} attackers")
        return gram.nearest(stack.gram, stack.num_rows - f, stack.tolerance)

    def _buckets(self, asked: Asked) -> Array:
        assert asked.key is not None and self.size is not None
        rows = asked.stack.num_rows
        order = torch.randperm(rows, generator=asked.key.generator()).tolist()
        found = np.zeros((-(-rows // self.size), rows))
        for place, row in enumerate(order):
            found[place // self.size, row] = 1.0
        return np.asarray(found / found.sum(1, keepdims=True))


def bucketing(size: int = 2, then: Robust | None = None, only: Names = UPDATES) -> Robust:
    """Average sites in random buckets of `size`, new in each round, and give the buckets to another rule.

    What buckets send differs less than what sites send, but f attackers may be in f buckets: a share of
    attackers in `then` is one of the sites. The last bucket may be smaller. By default then is the median.
    Source: Karimireddy, He, Jaggi, Byzantine-robust learning on heterogeneous datasets via bucketing, ICLR
    2022, Algorithm 1.
    """
    check_whole("bucketing", size=size)
    inner = then or median()
    rule = rule_of("bucketing", inner)
    bears = f"{inner.bears}, buckets of {size} sites taken for sites: one bad site spoils its bucket"
    return Robust(Mixed(rule, size), bears, tuple(only))


def nnm(attackers: float = 0.2, then: Robust | None = None, only: Names = UPDATES) -> Robust:
    """Replace each site's value by the mean of the n - f nearest to it, and give those to another rule.

    Needs n > 2f. By default then is the trimmed mean with as many attackers. Source: Allouah, Farhadkhani,
    Guerraoui, Gupta, Pinot, Stephan, Fixing by mixing, AISTATS 2023, Algorithm 2.
    """
    check_attackers("nnm", attackers)
    rule = rule_of("nnm", then or trimmed_mean(attackers))
    return Robust(Mixed(rule, attackers=attackers), bad_sites(attackers), tuple(only))
