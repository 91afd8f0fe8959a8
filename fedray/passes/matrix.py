"""Noise that is correlated over rounds: `site_dp_matrix`, for sites that take part every so many rounds.

What an algorithm uses is the sum of all updates so far, so noise of one round may be taken back in later ones.
With c = 1, 1/2, 3/8, ... (the square root of the sum) cut off after b terms and C the triangular matrix that
has them on its diagonals, the noise of the rounds is C^-1 z of independent normal z. A site that takes part k
times, b rounds or more apart, moves C x by at most sqrt(k) |c| clip bounds, since its columns do not meet; so
all rounds together are one Gaussian release.

With every site in every round b is 1, the matrix the identity, and nothing is gained.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedray import tree
from fedray.accounting import Mechanism
from fedray.core import trace as fr
from fedray.core.graph import Graph, Label, stages
from fedray.core.rewrite import Pass
from fedray.core.trace import Site
from fedray.core.value import Value
from fedray.errors import PassError, ScheduleError
from fedray.noise import Source
from fedray.passes.clipping import ClipByNorm, bound_of
from fedray.passes.privacy import Clips, check_clips, noisy
from fedray.passes.site_level import Cohort, Names, Taken, cohort_of, protected

LEAST_BANDS = 4  # fewer gain next to nothing: `bands=None` then takes independent noise


def toeplitz(bands: int) -> np.ndarray:
    """Return the first terms of the square root of the running sum: c_0 = 1, c_k = c_{k-1} (2k - 1) / 2k."""
    steps = np.arange(1, bands, dtype=np.float64)
    return np.concatenate([[1.0], np.cumprod((2 * steps - 1) / (2 * steps))])


def sensitivity(bands: int, participations: int) -> float:
    """Return how far one site moves C x, in clip bounds, where it takes part so often, `bands` rounds apart."""
    return math.sqrt(participations) * float(np.linalg.norm(toeplitz(bands)))


def error(bands: int, rounds: int) -> float:
    """Return the standard deviation of the noise in the sum of all updates so far, as the root of the mean
    square over the rounds, for z of variance 1.
    """
    c = np.zeros(rounds)
    c[: min(bands, rounds)] = toeplitz(min(bands, rounds))
    inverse = np.zeros(rounds)
    inverse[0] = 1.0
    for step in range(1, rounds):
        inverse[step] = -np.dot(c[1 : step + 1], inverse[step - 1 :: -1])
    squares = np.cumsum(np.cumsum(inverse) ** 2)  # of a row of A C^-1: prefix sums of the first column
    return float(np.sqrt(squares.mean()))


def participations_of(rounds: int, cohort: float, population: float) -> int:
    """Return how often a site takes part at most where all take turns."""
    return math.ceil(rounds * cohort / population - 1e-9)


@dataclass(frozen=True, kw_only=True)
class MatrixNoise:
    """Add a round's row of C^-1 z to a sum. The memory holds the last rows, and the number of rounds so far.

    w_t = z_t - c_1 w_{t-1} - ... - c_{b-1} w_{t-b+1}
    """

    std: float
    bands: int
    mechanism: Mechanism
    cohort: Cohort
    population: float
    source: Source | None = None
    one_shot: ClassVar[bool] = True
    grants: ClassVar[Label] = Label.DP

    def __call__(self, total: Any, memory: Any) -> dict[str, Any]:
        """Return the noisy sum and the memory. Raises PassError in a round that was not paid for."""
        blank = tree.zeros_like(total)
        memory = memory or {"rounds": 0, "last": {str(back): blank for back in range(1, self.bands)}}
        if memory["rounds"] >= self.mechanism.rounds:
            raise PassError(
                f"site_dp_matrix: its noise was made for {self.mechanism.rounds} rounds, and this is one more: "
                "give it the rounds of the whole run"
            )
        drawn, c = noisy(blank, self.std, self.source), toeplitz(self.bands)
        for back in range(1, self.bands):
            drawn = tree.sub(drawn, tree.scale(memory["last"][str(back)], float(c[back])))
        last = [drawn, *(memory["last"][str(back)] for back in range(1, self.bands))]
        kept = {str(back): last[back - 1] for back in range(1, self.bands)}
        return {"sum": tree.add(total, drawn), "memory": {"rounds": memory["rounds"] + 1, "last": kept}}

    def check_run(self, schedule: Any, num_sites: int | None) -> None:
        """Raise ScheduleError where the schedule does not keep a site's rounds as far apart as is claimed."""
        self.cohort.check(schedule, num_sites)
        title, sampling = self.cohort.title, getattr(schedule, "sampling", None)
        if self.cohort.size < self.population and sampling != "cyclic":
            raise ScheduleError(
                f"{title} reckons with sites that take turns, {self.population // self.cohort.size:g} rounds "
                f"between two of their own, and sampling={sampling!r} may ask a site earlier: use "
                "schedule.sampling=cyclic"
            )
        if getattr(schedule, "on_failure", "") == "skip":
            raise ScheduleError(
                f"{title}: a round that is skipped brings the rounds of a site closer together than its noise "
                "allows: use schedule.on_failure=retry or raise"
            )
        among = getattr(schedule, "among", None)
        num_sites = num_sites if among is None or num_sites is None else len(among)
        if num_sites is not None and num_sites != self.population:
            raise ScheduleError(
                f"{title} reckons with {self.population:g} sites that take turns and there are {num_sites}: "
                f"give the pass population={num_sites}"
            )


def site_dp_matrix(
    clip: Clips,
    noise_multiplier: float,
    rounds: int | None = None,
    cohort: float | None = None,
    population: float | None = None,
    bands: int | None = None,
    only: Names | None = ("delta",),
    exact: Names = ("metrics",),
    drop: Names = (),
    weights: str | None = None,
    delta: float = 1e-5,
    max_noise: float = 10.0,
    source: Source | None = None,
) -> Pass:
    """As `site_dp`, with noise that is partly taken back in later rounds; all rounds are ONE Gaussian release.

    The noise z of a round has standard deviation `noise_multiplier` x `clip` x sqrt(k) |c|: k participations
    of a site in `rounds`. Sites must take turns (schedule.sampling=cyclic), so that population / cohort rounds
    lie between two of a site; `bands` is at most that, None takes it where it is 4 or more, else 1, which is
    independent noise. The server's memory `matrix.<name>` holds bands - 1 vectors of the update's size.
    Unit, adjacency, trust, raises: as `site_dp`; ScheduleError where the schedule does not keep the distance.
    Source: the square root of Fichtenberger, Henzinger, Upadhyay, Constant matters, ICML 2023, cut off after b
    terms as in Kalinin, Lampert, Banded square root matrix factorization, NeurIPS 2024; k participations as
    in Choquette-Choo et al., (Amplified) banded matrix factorization, NeurIPS 2023, section 2.
    """
    title = f"site_dp_matrix({noise_multiplier:g})"
    check_clips(title, clip)
    asked = cohort_of(title, cohort, None, None)
    if rounds is None or rounds < 1 or population is None or population < asked.size:
        raise ValueError(f"{title}: rounds={rounds}, population={population}: give both for the whole run")
    apart = int(population // asked.size)
    bands = (apart if apart >= LEAST_BANDS else 1) if bands is None else bands
    if not 1 <= bands <= apart:
        raise ValueError(
            f"{title}: bands={bands}: {population:g} sites that take turns by {asked.size:g} have {apart} rounds "
            f"between two of their own: choose 1 to {apart}"
        )
    moved = sensitivity(bands, participations_of(rounds, asked.size, population))
    taken = Taken(title=title, only=only, exact=exact, drop=drop, weights=weights)
    mechanism = Mechanism(
        kind="matrix",
        noise_multiplier=noise_multiplier,
        unit="site",
        noise_by="server",
        trusted="server",
        delta=delta,
        divisor=asked.size,
        max_noise=max_noise,
        rounds=rounds,
        sensitivity=moved,
    )

    def noisy_sum(x: Value, name: str, site: Site) -> Value:
        slot, bound = f"matrix.{name}", bound_of(clip, name)
        fn = MatrixNoise(
            std=noise_multiplier * moved * bound, bands=bands, mechanism=mechanism, cohort=asked,
            population=population, source=source,
        )  # fmt: skip
        total = fr.sum(fr.map(ClipByNorm(bound), x), name=name)
        found = fr.apply(fn, total, site.server.slot(slot))
        site.server.store(slot, found["memory"])
        return found["sum"]

    def claim(name: str) -> str:
        return (f"{name}: a site adds at most {bound_of(clip, name):g} (L2) in a round; all {rounds} rounds "
                f"together are one Gaussian release with multiplier {noise_multiplier:g} (banded square root, "
                f"{bands} bands); unit: site; trusted: server")

    return _in_one_exchange(protected(taken, asked, noisy_sum, claim), title)


def _in_one_exchange(step: Pass, title: str) -> Pass:
    """Refuse rounds of several site stages: one that is tried again would release a row of noise twice."""

    def run(graph: Graph) -> Graph:
        result = step(graph)
        if any(at > 2 for at in stages(result.nodes).values()):
            raise PassError(
                f"{title}: {graph.name} exchanges more than once in a round, and a round that fails in between "
                "would use its noise twice: use site_dp"
            )
        return result

    run.__name__ = title
    return run
