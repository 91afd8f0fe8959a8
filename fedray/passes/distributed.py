"""Noise in shares: `site_dp_distributed`, which trusts nobody with a site's update, nor with the noise.

Each site clips its update, rounds it to integers, and adds a share of integer (Skellam) noise; under a secure
sum the shares add up, in the same ring of integers mod 2^32, to the noise of the whole sum. A share alone
protects nobody, so a plan whose sums are not masked is refused. Sites that drop out or are dishonest take
their shares with them: every share is larger, so that an honest fraction is enough.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedray import coded, noise, tree
from fedray.accounting import Mechanism, accountant
from fedray.core import trace as fr
from fedray.core.graph import Label
from fedray.core.rewrite import Pass
from fedray.core.trace import Site
from fedray.core.value import Value
from fedray.errors import ScheduleError
from fedray.noise import Source
from fedray.passes.clipping import Names, row_norms, shortened, stacked
from fedray.passes.site_level import Cohort, Terms, protected
from fedray.rows import Column, Group, Tagged
from fedray.settings import is_whole

HALF_RING = 2**31 - 1
RESERVE = 8.0  # standard deviations of the noise that the ring keeps room for: missed once in 10^15
STEP = 1.002  # by which the noise grows until an epsilon is met
LEAST_STD = (
    50.0  # of a share, in steps of the ring: below it integer noise costs over 1% more than normal noise
)


@dataclass(frozen=True, kw_only=True)
class Ring:
    """Fixed point for sums of `num_sites` rows of `size` numbers no longer than `bound`, with noise.

    `share_variance` is that of each site's noise, in steps; `l2` how far one site moves the sum, rounding
    included: a number moves by half a step at most, so a row by sqrt(size) / 2.
    """

    bound: float
    size: int
    num_sites: int
    noise_multiplier: float
    honest: float

    @property
    def largest(self) -> int:
        """Steps of a number at the bound: all sites at it, and the noise of all, stay below half the ring."""
        most = RESERVE * self.noise_multiplier / math.sqrt(self.honest)  # where every site adds its share
        return math.floor((HALF_RING - most * math.sqrt(self.size) / 2) / (self.num_sites + most))

    @property
    def scale(self) -> float:
        """Steps in 1."""
        return self.largest / self.bound

    @property
    def l2(self) -> float:
        """The L2 sensitivity, in steps."""
        return self.largest + math.sqrt(self.size) / 2

    @property
    def variance(self) -> float:
        """Of the noise that honest sites leave in the sum."""
        return (self.noise_multiplier * self.l2) ** 2

    @property
    def share_variance(self) -> float:
        """Of one site's noise."""
        return self.variance / (self.honest * self.num_sites)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Clip, round to the ring and add a site's share of the noise. Its result must leave masked."""

    ring: Ring
    mechanism: Mechanism
    cohort: Cohort
    source: Source | None = None
    one_shot: ClassVar[bool] = True
    needs: ClassVar[Label] = Label.MASKED

    @property
    def bound(self) -> float:
        """The largest norm of what it adds to a sum, without noise."""
        return self.ring.bound

    def __call__(self, x: Any) -> Any:
        """Return the words of one site."""
        return coded.alone(self.rows, x)

    def rows(self, group: Group, x: Tagged) -> Any:
        """Return the words of a group: of each leaf a row of uint32. Raises ValueError on more numbers than
        the noise was made for.
        """
        value = stacked(x, group.k)
        short = shortened(value, group, row_norms(value, group), self.ring.bound)
        origins = [coded.plain(_tensor(leaf)) for _, leaf in tree.leaves(short)]
        if (size := sum(origin.schema.num_elements for origin in origins)) > self.ring.size:
            raise ValueError(f"an update of {size} numbers, and noise for {self.ring.size}: raise num_params")
        words = [
            tree.Flat(self._words(origin.numbers),
                      coded.layout({"ring": (origin.numbers.shape[1],)}, torch.uint32, origin, self.ring))
            for origin in origins
        ]  # fmt: skip
        return tree.replace_leaves(short, words)

    def _words(self, numbers: Tensor) -> Tensor:
        steps = numbers.to("cpu", torch.float64).mul(self.ring.scale).round_().to(torch.int64)
        drawn = [noise.skellam(len(row), self.ring.share_variance, self.source) for row in steps]
        words = (steps + torch.stack(drawn)) & 0xFFFFFFFF
        return words.to(torch.uint32)

    def check_run(self, schedule: Any, num_sites: int | None) -> None:
        """Raise ScheduleError where a round may count fewer shares than the noise needs."""
        self.cohort.check(schedule, num_sites)
        title = self.cohort.title
        if getattr(schedule, "sampling", "") == "poisson" or not hasattr(schedule, "cohort_of"):
            raise ScheduleError(
                f"{title} needs a cohort of known size, for every site adds a share of the noise: use "
                "synchronous() with schedule.sampling=uniform or cyclic"
            )
        asked = math.ceil(self.cohort.size)
        if schedule.needed(asked) < self.ring.honest * asked - 1e-9:
            raise ScheduleError(
                f"{title} needs the shares of {self.ring.honest:.3g} of the cohort and the quorum is "
                f"{schedule.needed(asked)} of {asked}: raise schedule.quorum, or lower honest"
            )


def _tensor(leaf: Any) -> Any:
    return leaf.numbers if isinstance(leaf, Column) else leaf


@dataclass(frozen=True)
class FromRing:
    """Read a sum of words as the numbers that it stands for, in float64 and rounded once."""

    ring: Ring
    grants: ClassVar[Label] = Label.DP

    def __call__(self, total: Any) -> Any:
        """Return the sum."""
        return tree.replace_leaves(total, [self._read(leaf) for _, leaf in tree.leaves(total)])

    def _read(self, leaf: tree.Flat) -> Any:
        assert isinstance(leaf.schema, coded.Coded)
        steps = leaf.buffer.to(torch.int64)
        signed = torch.where(steps > HALF_RING, steps - 2**32, steps)
        numbers = (signed.double() / self.ring.scale).to(leaf.schema.origin.dtype)
        restored = coded.restored(numbers, leaf.schema)
        return restored if isinstance(restored, tree.Flat) else restored[0]


def site_dp_distributed(
    clip: float = 1.0, noise_multiplier: float | None = None, num_params: int | None = None,
    cohort: float | None = None, honest: float = 2 / 3, only: Names | None = ("delta",),
    exact: Names = ("metrics",), drop: Names = (), weights: str | None = None, epsilon: float | None = None,
    delta: float = 1e-5, rounds: int | None = None, max_noise: float = 10.0, source: Source | None = None,
) -> Pass:  # fmt: skip
    """As `site_dp`, with noise that sites add in shares of integers; needs a secure sum.

    `num_params` numbers, or fewer, are an update: rounding costs sqrt(num_params) / 2 steps of sensitivity.
    `honest` is the fraction of a cohort that is honest and delivers, at most the secure sum's threshold: its
    shares alone are the noise that `noise_multiplier` says, all shares together are more.
    Unit: site; adjacency: add/remove; noise by the sites; trusted: nobody, if that fraction is honest.
    Raises: SecurityConflict where sums are not masked; ValueError where the ring is too small; as `site_dp`.
    Source: Agarwal, Kairouz, Liu, The Skellam mechanism for differentially private federated learning,
    NeurIPS 2021. Deviation: rounding to the nearest integer with its worst case, no rotation of the vector.
    """
    terms = Terms(
        who="site_dp_distributed", clip=clip, cohort=cohort, noise_multiplier=noise_multiplier,
        epsilon=epsilon, delta=delta, rounds=rounds, max_noise=max_noise, only=only, exact=exact, drop=drop,
        weights=weights,
    )  # fmt: skip
    ring, mechanism = _calibrated(terms, num_params, honest)

    def noisy_sum(x: Value, name: str, site: Site) -> Value:
        share = Share(ring=ring, mechanism=mechanism, cohort=terms.asked, source=source)
        return fr.apply(FromRing(ring), fr.sum(fr.map(share, x), name=name))

    def told(name: str) -> str:
        return (
            f"{name}: a site adds at most {clip:g} (L2) and a share of Skellam noise; {honest:.3g} of the "
            f"shares make a release with multiplier {mechanism.noise_multiplier:.4g}"
        )

    return protected(terms, noisy_sum, told, f"nobody, if {honest:.3g} of a cohort are honest and deliver")


def _calibrated(terms: Terms, num_params: int | None, honest: float) -> tuple[Ring, Mechanism]:
    """Return the ring and the release. An epsilon is met with the noise of a Gaussian and a little more."""
    noise_multiplier = terms.noise
    while True:
        ring = _ring(terms, noise_multiplier, num_params, honest)
        mechanism = terms.mechanism(
            kind="skellam", noise_multiplier=noise_multiplier, noise_by="sites", trusted="nobody",
            variance=ring.variance, l2=ring.l2, l1=math.sqrt(ring.size) * ring.l2,
        )  # fmt: skip
        if terms.epsilon is None or terms.rounds is None or terms.only is None:
            return ring, mechanism
        if accountant.epsilon({mechanism: terms.rounds * len(terms.only)}, terms.delta) <= terms.epsilon:
            return ring, mechanism
        noise_multiplier *= STEP


def _ring(terms: Terms, noise_multiplier: float, num_params: int | None, honest: float) -> Ring:
    """Return the ring. Raises ValueError where it is too small for the sites and the noise."""
    if isinstance(terms.clip, Mapping) or not 0 < honest <= 1:
        raise ValueError(f"{terms.who}: give one clip for all names, and honest={honest} in (0, 1]")
    if not is_whole(num_params, 1) or num_params is None:
        raise ValueError(f"{terms.who}: num_params={num_params}: give the number of numbers in an update")
    ring = Ring(bound=terms.clip, size=num_params, num_sites=math.ceil(terms.asked.size),
                noise_multiplier=noise_multiplier, honest=honest)  # fmt: skip
    if ring.largest < 1 or math.sqrt(ring.share_variance) < LEAST_STD:
        raise ValueError(
            f"{terms.who}: {ring.num_sites} sites with this noise leave each number {max(ring.largest, 0)} "
            f"steps of the ring, and a share of the noise needs {LEAST_STD:g}: fewer sites or a smaller model"
        )
    return ring
