"""The buffered schedule: sites work at their own pace, and the server steps whenever enough answers are in.

FedBuff and FedAsync are this schedule around an ordinary round. Who is asked, and what is under way, is in
`flights.py`; how contributions of several ages are added is in `totals.py`.
"""

import math
from dataclasses import dataclass
from typing import Any

from fedray.errors import ScheduleError
from fedray.runtime.discounts import FEDBUFF, Discount, check_ages, discount_of
from fedray.runtime.schedule import check_asked
from fedray.runtime.traces import Trace, read_trace
from fedray.settings import is_number, is_whole

SAMPLINGS = ("uniform", "weighted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffered:
    """Keep sites busy and step when a buffer is full; see `buffered`."""

    size: int = 10
    concurrency: int = 100
    discount: Discount = FEDBUFF
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
        check_asked(plan, self, num_sites)
        check_ages(plan, self.discount, "buffered()", "synchronous()")


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
