"""Noise that is correlated over rounds: `site_dp_matrix`, for sites that take part every so many rounds.

What an algorithm uses is the sum of all updates so far, so noise of one round may be taken back later.
With c = 1, 1/2, 3/8, ... (the square root of the sum) cut off after b terms and C the triangular matrix that
has them on its diagonals, the noise of the rounds is C^-1 z of independent normal z. A site that takes part k
times, b rounds or more apart, moves C x by at most sqrt(k) |c| clip bounds, since its columns do not meet; so
all rounds together are one Gaussian release.

With every site in every round b is 1, the matrix the identity, and nothing is gained.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fedray import tree
from fedray.accounting import Mechanism
from fedray.accounting.matrix import bands_of, sensitivity, square_root
from fedray.core import trace as fr
from fedray.core.graph import Graph, Label, stages
from fedray.core.rewrite import Pass
from fedray.core.trace import Site
from fedray.core.value import Value
from fedray.errors import PassError, ScheduleError
from fedray.noise import Source
from fedray.passes.clipping import ClipByNorm, Names
from fedray.passes.privacy import SERVER, noisy
from fedray.passes.site_level import Clips, Cohort, Terms, protected
from fedray.settings import is_whole


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
                f"site_dp_matrix: its noise was made for {self.mechanism.rounds} rounds, and this is one "
                "more: give it the rounds of the whole run"
            )
        drawn, c = noisy(blank, self.std, self.source), square_root(self.bands)
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
                f"{title}: a round that is skipped brings the rounds of a site closer together than its "
                "noise allows: use schedule.on_failure=retry or raise"
            )
        among = getattr(schedule, "among", None)
        num_sites = num_sites if among is None or num_sites is None else len(among)
        if num_sites is not None and num_sites != self.population:
            raise ScheduleError(
                f"{title} reckons with {self.population:g} sites that take turns and there are {num_sites}: "
                f"give the pass population={num_sites}"
            )


def site_dp_matrix(
    clip: Clips = 1.0, noise_multiplier: float | None = None, rounds: int | None = None,
    cohort: float | None = None, population: float | None = None, bands: int | None = None,
    only: Names | None = ("delta",), exact: Names = ("metrics",), drop: Names = (),
    weights: str | None = None, epsilon: float | None = None, delta: float = 1e-5, max_noise: float = 10.0,
    source: Source | None = None,
) -> Pass:  # fmt: skip
    """As `site_dp`, with noise that is partly taken back in later rounds; all rounds are ONE release.

    The noise z of a round has standard deviation `noise_multiplier` x `clip` x sqrt(k) |c|: k participations
    of a site in `rounds`. Sites must take turns (schedule.sampling=cyclic), population / cohort rounds from
    one turn to the next; `bands` is at most that, None takes it where it is 4 or more, else 1, which is
    independent noise. The server's memory `matrix.<name>` holds bands - 1 vectors of the update's size.
    Unit, adjacency, trust, raises: as `site_dp`; ScheduleError where the schedule does not keep the distance.
    Source: square root and bands of Kalinin, Lampert, Banded square root matrix factorization, NeurIPS 2024;
    participations of Choquette-Choo et al., (Amplified) banded matrix factorization, NeurIPS 2023, section 2.
    """
    terms = Terms(
        who="site_dp_matrix", clip=clip, cohort=cohort, noise_multiplier=noise_multiplier, epsilon=epsilon,
        delta=delta, rounds=rounds, max_noise=max_noise, only=only, exact=exact, drop=drop, weights=weights,
        population=population, releases=1,
    )  # fmt: skip
    turns = _turns(terms, bands)

    def noisy_sum(x: Value, name: str, site: Site) -> Value:
        slot, bound = f"matrix.{name}", terms.bound(name)
        fn = replace(turns, std=turns.std * bound, source=source)
        total = fr.sum(fr.map(ClipByNorm(bound), x), name=name)
        found = fr.apply(fn, total, site.server.slot(slot))
        site.server.store(slot, found["memory"])
        return found["sum"]

    def told(name: str) -> str:
        at_site = f"{name}: a site adds at most {terms.bound(name):g} (L2) in a round"
        return f"{at_site}; {rounds} rounds are one release with {terms.noise:.4g} ({turns.bands} bands)"

    return _in_one_exchange(protected(terms, noisy_sum, told, SERVER), terms.who)


def _turns(terms: Terms, bands: int | None) -> MatrixNoise:
    """Return the noise for a clip bound of 1. Raises ValueError where turns and bands do not go together."""
    size, population, rounds = terms.asked.size, terms.population, terms.rounds
    if rounds is None or population is None or population < size:
        raise ValueError(
            f"{terms.who}: rounds={rounds}, population={population}: give both, of the whole run"
        )
    apart = int(population // size)
    bands = bands_of(apart) if bands is None else bands
    if not is_whole(bands, 1) or bands > apart:
        raise ValueError(
            f"{terms.who}: bands={bands}: {population:g} sites that take turns by {size:g} do so every "
            f"{apart} rounds: choose 1 to {apart}"
        )
    moved = sensitivity(bands, participations_of(rounds, size, population))
    mechanism = terms.mechanism(kind="matrix", rounds=rounds, sensitivity=moved)
    return MatrixNoise(std=terms.noise * moved, bands=bands, mechanism=mechanism, cohort=terms.asked,
                       population=population)  # fmt: skip


def _in_one_exchange(step: Pass, title: str) -> Pass:
    """Refuse rounds of several site stages: one that is tried again would release a row of noise twice."""

    def run(graph: Graph) -> Graph:
        result = step(graph)
        if any(at > 2 for at in stages(result.nodes).values()):
            raise PassError(
                f"{title}: {graph.name} exchanges more than once in a round, and one that fails in between "
                "would use its noise twice: use site_dp"
            )
        return result

    run.__name__ = title
    run.named = getattr(step, "named", {})  # type: ignore[attr-defined]
    return run
