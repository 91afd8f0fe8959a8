"""What a run's schedule keeps from round to round: flights of a buffered one, late work of one that waits."""

from collections.abc import Mapping

from fedray.runtime.buffered import Buffered
from fedray.runtime.flights import Flights
from fedray.runtime.late import LateWork
from fedray.runtime.region import Region
from fedray.runtime.schedule import Latency
from fedray.runtime.training import Training


def flights_of(
    training: Training,
    root: Region,
    latency: Latency | None,
    names: tuple[str, ...],
    sizes: Mapping[str, int],
) -> Flights | None:
    """Return the flights of a buffered run."""
    if not isinstance(training.schedule, Buffered):
        return None
    return Flights(
        schedule=training.schedule,
        root=root,
        latency=latency,
        run=training.run,
        plan=training.plan.digest,
        seed=training.seed,
        names=names,
        sizes=sizes,
    )


def late_of(training: Training, root: Region, latency: Latency | None) -> LateWork | None:
    """Return who takes late work; None where it is dropped."""
    schedule = training.schedule
    if isinstance(schedule, Buffered) or schedule.late is None:
        return None
    return LateWork(schedule.late, root, latency is not None)
