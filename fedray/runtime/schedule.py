"""Schedules: who is asked in a round, and when a reduction is complete.

The cohort is a function of (seed, round) and the sites alone, so a resumed run asks the same sites.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from fedray.errors import ScheduleError
from fedray.rng import SERVER, Key
from fedray.runtime.discounts import Discount, check_ages, discount_of
from fedray.settings import is_number, is_whole

SAMPLINGS = ("uniform", "poisson", "weighted", "cyclic", "shuffled")
DROP, CARRY = "drop", "carry"  # what becomes of late work, or a discount
ON_FAILURE = ("retry", "skip", "raise")


class Choice(Protocol):
    """Who of the candidates is asked, by what they tell before the round: see `selection.py`."""

    @property
    def program(self) -> Any:
        """The algorithm that asks the candidates; its input are the parameters, its metrics {site: number}.

        What they tell leaves by its named reductions alone, which `egress` lists with those of the round.
        """

    def num_candidates(self, cohort: int, num_sites: int) -> int:
        """Return how many sites are candidates for a cohort."""

    def chosen(self, told: Mapping[str, float], cohort: int, key: Key) -> tuple[str, ...]:
        """Return who is asked, sorted by id; `key` decides between equal ones."""


class Learner(Protocol):
    """Who is asked, by what sites told in earlier rounds: see `oort.py`."""

    @property
    def slot(self) -> str:
        """Under which name the server remembers what it learnt: beside its state, committed with a round."""

    def watching(self, algorithm: Any) -> Any:
        """Return the algorithm whose sites also tell, by a named reduction, what the next cohorts need."""

    def pick(
        self, memory: Any, names: Sequence[str], cohort: int, key: Key, latency: "Latency | None"
    ) -> tuple[str, ...]:
        """Return who is asked, sorted by id, from the memory; None before the first round was counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Synchronous:
    """One cohort at a time; see `synchronous`."""

    cohort: float | int = 1.0
    sampling: str = "uniform"
    quorum: float = 0.8
    deadline_s: float | None = None
    on_failure: str = "retry"
    retries: int = 2
    wait_for: int = 0
    wait_s: float = 60.0
    choice: Choice | None = None
    learner: Learner | None = None
    late: Discount | None = None  # by how much late work counts, by its age; None drops it: see late.py
    among: frozenset[str] | None = None  # who takes part in the run, of all sites: see fedray/contribution

    def expected_cohort(self, num_sites: int) -> int:
        """Return the number of sites that a round asks (their expectation under poisson sampling)."""
        num_sites = num_sites if self.among is None else len(self.among)
        if isinstance(self.cohort, int):
            return self.cohort if self.among is None else min(self.cohort, num_sites)
        return max(1, math.floor(self.cohort * num_sites + 0.5))

    @property
    def attempts(self) -> int:
        """Return how often a round is tried."""
        return 1 + (self.retries if self.on_failure == "retry" else 0)

    def needed(self, num_asked: int) -> int:
        """Return how many of the asked sites must be counted."""
        return max(1, math.ceil(self.quorum * num_asked - 1e-9))

    def check_sites(self, num_sites: int) -> None:
        """Raise ScheduleError where the federation is too small."""
        if isinstance(self.cohort, int) and self.cohort > num_sites:
            raise ScheduleError(
                f"a cohort of {self.cohort} sites is asked for and there are {num_sites}: "
                f"set schedule.cohort to at most {num_sites}, or to a fraction such as 0.5"
            )
        if self.wait_for > num_sites:
            raise ScheduleError(
                f"schedule.wait_for={self.wait_for} and there are {num_sites} sites: "
                f"set it to at most {num_sites}"
            )

    def check(self, plan: Any, num_sites: int | None = None) -> None:
        """Raise ScheduleError where a function of the plan reckons with another schedule, or late work
        cannot be counted.
        """
        check_asked(plan, self, num_sites)
        if self.late is not None:
            check_ages(plan, self.late, "schedule.late", "late='drop'")
            if noisy := [node for node in plan.nodes if hasattr(node.fn, "mechanism")]:
                raise ScheduleError(
                    f"schedule.late counts sites of earlier rounds, and the noise at {noisy[0].where} of "
                    f"{plan.name} reckons with those of its own: use late='drop'"
                )

    def cohort_of(
        self, round: int, seed: int, sites: Sequence[str], sizes: Mapping[str, int]
    ) -> tuple[str, ...]:
        """Return the sites that round `round` asks, in a stated order: sorted by id, as `sites` are given.

        With a `choice` these are its candidates.
        """
        names = self._taking_part(sites)
        size = min(self.expected_cohort(len(names)), len(names))
        if self.choice is not None:
            size = self.choice.num_candidates(size, len(names))
        if self.sampling in ("cyclic", "shuffled"):
            return tuple(sorted({names[place] for place in self._in_turn(round, seed, len(names), size)}))
        if size == len(names) and self.sampling != "poisson":
            return tuple(names)
        generator = Key(seed, round, SERVER, "cohort").generator()
        if self.sampling == "poisson":
            draws = torch.rand(len(names), generator=generator, dtype=torch.float64)
            chosen = [
                name for name, draw in zip(names, draws.tolist(), strict=True) if draw < size / len(names)
            ]
            return tuple(chosen)
        if self.sampling == "weighted":
            weights = torch.tensor([float(sizes.get(name, 0)) for name in names], dtype=torch.float64)
            picked = torch.multinomial(weights, size, replacement=False, generator=generator)
        else:
            picked = torch.randperm(len(names), generator=generator)[:size]
        return tuple(sorted(names[index] for index in picked.tolist()))

    def candidates_of(
        self, round: int, seed: int, sites: Sequence[str], sizes: Mapping[str, int],
        memory: Mapping[str, Any], latency: "Latency | None",
    ) -> tuple[str, ...]:  # fmt: skip
        """Return whom the schedule draws, or picks by what the server has learnt of the sites.

        Nobody whom a pass has left out for this round is among them.
        """
        away = left_out(memory, round)
        sites = [site for site in sites if site not in away] if away else sites
        if self.learner is None:
            return self.cohort_of(round, seed, sites, sizes)
        names, slot = self._taking_part(sites), self.learner.slot
        size, key = self.expected_cohort(len(names)), Key(seed, round, SERVER, slot)
        return self.learner.pick(memory.get(slot), names, size, key, latency)

    def _taking_part(self, sites: Sequence[str]) -> Sequence[str]:
        return sites if self.among is None else [site for site in sites if site in self.among]

    def _in_turn(self, round: int, seed: int, num_sites: int, size: int) -> list[int]:
        """Return the places of the sites whose turn it is: pass after pass through all sites."""
        turns = [divmod(turn, num_sites) for turn in range(round * size, (round + 1) * size)]
        if self.sampling == "cyclic":
            return [place for _, place in turns]
        # the round of these keys is the number of the pass; the label keeps them apart from others
        keys = {done: Key(seed, done, SERVER, "order") for done, _ in turns}
        orders = {done: torch.randperm(num_sites, generator=key.generator()) for done, key in keys.items()}
        return [int(orders[done][place]) for done, place in turns]


def check_asked(plan: Any, schedule: Any, num_sites: int | None) -> None:
    """Let the functions of a plan judge whom a schedule asks: noise is made for a cohort, and may claim that
    sites were drawn by lot. `num_sites` is None before a federation is there.
    """
    for node in plan.nodes:
        if (check := getattr(node.fn, "check_run", None)) is not None:
            check(schedule, num_sites)


def left_out(memory: Mapping[str, Any], round: int) -> frozenset[str]:
    """Return the sites that are not asked in a round: a pass says until when, under `left_out` of its
    memory.
    """
    told = (kept.get("left_out") or {} for kept in memory.values() if isinstance(kept, Mapping))
    return frozenset(site for until in told for site, again in until.items() if again > round)


def synchronous(
    cohort: float | int = 1.0,
    sampling: str = "uniform",
    quorum: float = 0.8,
    deadline_s: float | None = None,
    on_failure: str = "retry",
    retries: int = 2,
    wait_for: int = 0,
    wait_s: float = 60.0,
    late: str | Discount = DROP,
) -> Synchronous:
    """Ask one cohort per round and wait for it.

    `cohort` is a fraction in (0, 1] if float, a number of sites if int. `sampling` is uniform, poisson,
    weighted (by rows), cyclic (in the order of ids) or shuffled (pass after pass through all sites, each in
    an order of its own; a site that ends one pass and begins the next is asked once). `quorum` is the
    fraction of the asked sites that must be counted, else the round is retried (with a new attempt, at most
    `retries` times), skipped or raised. `deadline_s` bounds each site stage. `wait_for` sites must answer
    within `wait_s` before the first round. `late` says what becomes of work that misses the deadline: `drop`
    ends it, `carry` counts it in the next round that begins, a discount ("polynomial 0.5", "hinge 10 4", a
    function of the age in rounds) counts it there times a factor. A site is not asked again before that. On
    real hosts a whole host is late; what was under way at a checkpoint is asked anew after a resume.
    Raises ScheduleError on values that cannot be meant.
    """
    schedule = Synchronous(
        late=_late(late, deadline_s),
        cohort=cohort,
        sampling=sampling,
        quorum=quorum,
        deadline_s=deadline_s,
        on_failure=on_failure,
        retries=retries,
        wait_for=wait_for,
        wait_s=wait_s,
    )
    if problems := _problems(schedule):
        raise ScheduleError("synchronous(): " + "; ".join(problems))
    return schedule


def _late(late: str | Discount, deadline_s: float | None) -> Discount | None:
    option = "synchronous(): late"
    if late == DROP:
        return None
    if deadline_s is None:
        raise ScheduleError(f"{option}={late!r} without a deadline: set schedule.deadline_s")
    return discount_of("constant" if late == CARRY else late, option)


def _problems(schedule: Synchronous) -> list[str]:
    cohort, quorum, deadline_s = schedule.cohort, schedule.quorum, schedule.deadline_s
    is_count = isinstance(cohort, int) and not isinstance(cohort, bool)
    is_fraction = isinstance(cohort, float) and 0 < cohort <= 1
    checks = {
        f"cohort={cohort!r}: give a fraction in (0, 1], or a whole number of sites": is_count or is_fraction,
        f"cohort={cohort}: ask at least 1 site": not is_count or cohort >= 1,
        f"sampling={schedule.sampling!r}: choose one of {', '.join(SAMPLINGS)}": schedule.sampling
        in SAMPLINGS,
        f"quorum={quorum!r}: give a fraction in (0, 1] of the sites asked": is_number(quorum)
        and 0 < quorum <= 1,
        f"on_failure={schedule.on_failure!r}: choose one of {', '.join(ON_FAILURE)}": schedule.on_failure
        in ON_FAILURE,
        f"deadline_s={deadline_s!r}: give seconds above 0, or none": deadline_s is None
        or (is_number(deadline_s) and deadline_s > 0),
        f"retries={schedule.retries!r}: give a whole number, 0 or more": is_whole(schedule.retries),
        f"wait_for={schedule.wait_for!r}: give a whole number, 0 or more": is_whole(schedule.wait_for),
        f"wait_s={schedule.wait_s!r}: give seconds above 0": is_number(schedule.wait_s)
        and schedule.wait_s > 0,
    }
    return [problem for problem, is_fine in checks.items() if not is_fine]


Latency = Callable[[str, int], float]  # (site, round) -> seconds of simulated time


@dataclass(frozen=True, slots=True)
class LognormalLatency:
    """Seconds per site and round: the site's own speed times a draw per round, both log-normal, by name
    only.
    """

    median_s: float = 1.0
    site_sigma: float = 0.5
    round_sigma: float = 0.2
    seed: int = 0

    def __call__(self, site: str, round: int) -> float:
        """Return the simulated seconds of one site in one round."""
        own = torch.randn((), generator=Key(self.seed, 0, site, "speed").generator(), dtype=torch.float64)
        now = torch.randn(
            (), generator=Key(self.seed, round, site, "latency").generator(), dtype=torch.float64
        )
        return self.median_s * math.exp(self.site_sigma * float(own) + self.round_sigma * float(now))
