"""Placement: where the sites of a simulation on Ray run, chosen by what their rounds cost.

A round through actors costs milliseconds of Ray whatever is computed in it, in the packs and in the
aggregator. Rounds that compute less than that are done sooner, and with a fraction of the CPU, where no call
leaves the process. So the packs say what they have worked (`Contribution.work_s`), and where that is little
the aggregator makes the same hosts in its own process: `Aggregator.run_round` asks, `Region.move` does it.
"""

import statistics
from collections import deque

from fedray.errors import ConfigError

PLACEMENTS = ("auto", "actors")
SMALL_ROUND_S = 0.020  # work of all packs together, below which Ray's own share is more than half, measured
MEASURED_ROUNDS = 3  # the first of a run opens data and fills caches: a median leaves it out


def check(placement: str) -> str:
    """Return the placement. Raises ConfigError where there is no such one."""
    if placement not in PLACEMENTS:
        raise ConfigError(f"placement={placement!r}: choose one of {', '.join(PLACEMENTS)}")
    return placement


class Work:
    """What the last counted rounds have cost at the sites."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=MEASURED_ROUNDS)

    def take(self, seconds: float) -> None:
        """Take a counted round."""
        self._seconds.append(seconds)

    @property
    def is_small(self) -> bool:
        """Tell whether enough rounds were measured, and half of them were small."""
        is_known = len(self._seconds) == MEASURED_ROUNDS
        return is_known and statistics.median(self._seconds) < SMALL_ROUND_S
