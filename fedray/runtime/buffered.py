"""The buffered schedule: sites work at their own pace, and the server steps whenever enough answers are in.

FedBuff and FedAsync are this schedule around an ordinary round. Who is asked, and what is under way, is in
`flights.py`; how contributions of several ages are added is in `totals.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedray.core.graph import Node, Op, Placement
from fedray.errors import ScheduleError
from fedray.runtime.schedule import check_asked
from fedray.runtime.traces import Trace, read_trace
from fedray.settings import is_number, is_whole

Discount = Callable[[int], float]  # age in server rounds -> factor of a contribution
SAMPLINGS = ("uniform", "weighted")
TRIED_AGES = 4  # at which a discount is tried before a run


@dataclass(frozen=True)
class Constant:
    """Count every contribution in full."""

    def __call__(self, age: int) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Polynomial:
    """(1 + age)^-a: Xie et al. 2019, section 5; with a = 1/2 that of Nguyen et al. 2022."""

    a: float = 0.5

    def __call__(self, age: int) -> float:
        """Return the factor at an age."""
        return float((1.0 + age) ** -self.a)


@dataclass(frozen=True)
class Hinge:
    """1 up to the age b, then 1 / (a (age - b) + 1): Xie et al. 2019, section 5."""

    a: float = 10.0
    b: float = 4.0

    def __call__(self, age: int) -> float:
        """Return the factor at an age."""
        return 1.0 if age <= self.b else 1.0 / (self.a * (age - self.b) + 1.0)


NAMED: dict[str, Callable[..., Discount]] = {
    "constant": Constant, "polynomial": Polynomial, "hinge": Hinge,
}  # fmt: skip


def discount_of(given: str | Discount) -> Discount:
    """Return a discount by its name and numbers ("polynomial 0.5", "hinge 10 4"); a function as it is.

    Raises ScheduleError where there is no such one, or it gives no number in [0, 1] at small ages.
    """
    if not isinstance(given, str) and not callable(given):
        raise ScheduleError(f"buffered(): discount={given!r}: give a name or a function of the age")
    found = _named(given) if isinstance(given, str) else given
    factors = [found(age) for age in range(TRIED_AGES)]
    if not all(isinstance(each, (int, float)) and 0.0 <= each <= 1.0 for each in factors):
        raise ScheduleError(
            f"buffered(): discount={given!r} gives {factors} at ages 0 to {TRIED_AGES - 1}: a discount is a "
            "number in [0, 1]"
        )
    return found


def _named(text: str) -> Discount:
    try:
        name, *numbers = text.split()
        return NAMED[name](*map(float, numbers))
    except (KeyError, ValueError, TypeError) as error:
        raise ScheduleError(
            f"buffered(): discount={text!r}: choose 'constant', 'polynomial A' or 'hinge A B', or give a "
            "function of the age"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffered:
    """Keep sites busy and step when a buffer is full; see `buffered`."""

    size: int = 10
    concurrency: int = 100
    discount: Discount = Polynomial()
    sampling: str = "uniform"
    quorum: float = 0.5
    deadline_s: float | None = None
    trace: Trace | None = None
    wait_for: int = 0
    wait_s: float = 60.0

    def expected_cohort(self, num_sites: int) -> int:
        """Return the number of contributions of a server step."""
        return self.size

    @property
    def shows_one_site(self) -> bool:
        """Tell whether every sum is the value of one site."""
        return self.size == 1

    @property
    def most_failures(self) -> int:
        """Sites that may fail between two server steps."""
        return math.floor(self.concurrency * (1.0 - self.quorum) + 1e-9)

    def check_sites(self, num_sites: int) -> None:
        """Raise ScheduleError where a buffer could never be full."""
        if self.size > num_sites:
            raise ScheduleError(
                f"buffered(size={self.size}) and there are {num_sites} sites, each of which is in a buffer "
                f"once: set schedule.size to at most {num_sites}"
            )

    def check(self, plan: Any, num_sites: int | None = None) -> None:
        """Raise ScheduleError where a plan cannot be run with answers of several ages."""
        for node in plan.nodes:
            if node.op is Op.REDUCE and node.params.get("masked"):
                raise ScheduleError(
                    f"buffered() scales each contribution by its age and asks sites at different times, and "
                    f"{node.name!r} ({node.where}) of {plan.name} is masked among sites that agreed on keys "
                    "before they trained: drop the secure sum, or use synchronous()"
                )
        self._check_stages(plan)
        check_asked(plan, self, num_sites)
        if plan.needs_all:
            raise ScheduleError(
                f"buffered() does not wait for all sites, and {plan.name} needs them all: use synchronous()"
            )
        if plan.every or plan.is_by_region:
            raise ScheduleError(
                f"buffered() takes sites as they come, and {plan.name} goes by regions or has rounds of "
                "several kinds: use synchronous()"
            )
        if any(getattr(node.fn, "is_followed", False) for node in plan.nodes):
            raise ScheduleError(
                f"buffered() has sites on several versions of the model, and {plan.name} sends changes from "
                "one version to the next: use quantised_broadcast, or synchronous()"
            )
        if plan.fold != "exact":
            raise ScheduleError(f"buffered() adds up exactly, and {plan.name} has fold='fast': leave it out")
        for node in plan.nodes:
            is_gather = node.op is Op.REDUCE and node.params["kind"] == "gather"
            if is_gather and not isinstance(self.discount, Constant):
                raise ScheduleError(
                    f"buffered() scales sums by their age, and {node.name!r} ({node.where}) of {plan.name} "
                    "is gathered: use sum() or mean(), discount='constant', or synchronous()"
                )
        for (placement, slot), index in plan.outputs.items():
            if placement is Placement.SERVER and slot not in ("state", "metrics"):
                self._check_memory(plan, slot, plan.nodes[index])

    def _check_stages(self, plan: Any) -> None:
        if plan.site_stages == [1]:
            return
        later = [node for node, at in zip(plan.nodes, plan.stage, strict=True)
                 if at > 1 and at % 2 and node.placement is Placement.SITES]  # fmt: skip
        where = f" (its second begins at {later[0].where})" if later else ""
        raise ScheduleError(
            f"buffered() needs a round with one site stage; {plan.name} has {plan.site_stages}{where}: "
            "use an algorithm and passes of one exchange, or synchronous()"
        )

    def _check_memory(self, plan: Any, slot: str, node: Node) -> None:
        """Refuse passes whose server counts what sites have sent, where it is scaled on the way."""
        if not isinstance(self.discount, Constant) or _is_sent(plan, slot):
            raise ScheduleError(
                f"buffered(): the pass that keeps {slot!r} at the server ({node.where}) reckons with "
                f"contributions in full and of this round; in {plan.name} they are older and scaled: drop "
                "it, or use synchronous()"
            )


def _is_sent(plan: Any, slot: str) -> bool:
    """Tell whether the sites get what a pass keeps at the server: theirs is older than the server's."""
    reached: set[int] = set()
    for index, node in enumerate(plan.nodes):
        is_it = node.op is Op.INPUT and node.placement is Placement.SERVER and node.params["slot"] == slot
        if is_it or reached.intersection(plan.args[index]):
            if node.op in (Op.BROADCAST, Op.SCATTER):
                return True
            reached.add(index)
    return False


def buffered(
    size: int = 10,
    concurrency: int = 100,
    discount: str | Discount = "polynomial 0.5",
    sampling: str = "uniform",
    quorum: float = 0.5,
    deadline_s: float | None = None,
    trace: Trace | str | None = None,
    wait_for: int = 0,
    wait_s: float = 60.0,
) -> Buffered:
    """Keep `concurrency` sites busy; step when `size` contributions are in, each scaled by its age.

    The age is the number of server steps since the site was asked; `discount` is a function of it,
    "constant", "polynomial A" or "hinge A B". A sum is of scaled values, a mean is divided by the scaled
    weights, `fr.count` is the number of contributions. A site is in a buffer once: it is asked again of the
    next version. `sampling` is uniform or weighted (by rows) among the idle ones.
    In process time is simulated: by `simulate(latency=...)`, or a `trace` of who is there and how fast; else
    every answer takes one second. Answers of one instant are taken in the order of asking, all of them
    before anyone is asked again. On Ray answers are taken as they come, so that two runs differ.
    A site that fails or needs longer than `deadline_s` is left out, and another one is asked; more than
    `concurrency` x (1 - `quorum`) failures between two steps are a QuorumError.
    Source: Nguyen et al., Federated learning with buffered asynchronous aggregation, AISTATS 2022; with a
    size of 1 Xie et al., 2019. Raises ScheduleError on values that cannot be meant.
    """
    schedule = Buffered(
        size=size,
        concurrency=concurrency,
        discount=discount_of(discount),
        sampling=sampling,
        quorum=quorum,
        deadline_s=deadline_s,
        trace=read_trace(trace) if isinstance(trace, str) else trace,
        wait_for=wait_for,
        wait_s=wait_s,
    )
    if problems := _problems(schedule):
        raise ScheduleError("buffered(): " + "; ".join(problems))
    return schedule


def _problems(schedule: Buffered) -> list[str]:
    size, busy, limit = schedule.size, schedule.concurrency, schedule.deadline_s
    checks = {
        f"size={size!r}: give a whole number of contributions, at least 1": is_whole(size, 1),
        f"concurrency={busy!r}: give a whole number of sites, at least 1": is_whole(busy, 1),
        f"sampling={schedule.sampling!r}: choose one of {', '.join(SAMPLINGS)}": schedule.sampling
        in SAMPLINGS,
        f"quorum={schedule.quorum!r}: give a fraction in (0, 1]": is_number(schedule.quorum)
        and 0 < schedule.quorum <= 1,
        f"deadline_s={limit!r}: give seconds above 0, or none": limit is None
        or (is_number(limit) and limit > 0),
        f"wait_for={schedule.wait_for!r}: give a whole number, 0 or more": is_whole(schedule.wait_for),
        f"wait_s={schedule.wait_s!r}: give seconds above 0": is_number(schedule.wait_s)
        and schedule.wait_s > 0,
    }
    return [problem for problem, is_fine in checks.items() if not is_fine]
