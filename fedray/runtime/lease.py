"""Who drives a run: one driver at a time, for as long as it gives signs of life."""

import os
import platform
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from fedray.errors import HostError


class Taken(HostError):
    """Another driver has the run."""


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver, and how people find it."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    title: str = field(default_factory=lambda: f"process {os.getpid()} on {platform.node()}")


class Lease:
    """The driver of a run; another one is refused until its signs of life have ended."""

    def __init__(self, run: str, lapse_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.run, self.lapse_s, self._clock = run, lapse_s, clock
        self.holder: Driver | None = None
        self._heard = clock()

    @property
    def silent_s(self) -> float:
        """Seconds since the last sign of life of a driver, or since the start."""
        return self._clock() - self._heard

    @property
    def is_alive(self) -> bool:
        """Whether a driver holds the run and was heard within the length of the lease."""
        return self.holder is not None and self.silent_s <= self.lapse_s

    def take(self, driver: Driver) -> None:
        """Let a driver take the run. Raises Taken, which names the other, where that is alive."""
        holder = self.holder
        if holder is not None and holder.id != driver.id and self.is_alive:
            raise Taken(
                f"the run {self.run} is driven by {holder.title}, which gave a sign of life "
                f"{self.silent_s:.1f} s ago. Fix: end that one; {self.lapse_s:g} s later another may go on"
            )
        self.holder, self._heard = driver, self._clock()

    def renew(self, driver_id: str) -> None:
        """Take a sign of life; one of a driver that does not hold the run changes nothing."""
        if self.holder is not None and self.holder.id == driver_id:
            self._heard = self._clock()

    def check(self, driver_id: str) -> None:
        """Raise Taken where a driver does not hold the run any more."""
        if self.holder is None or self.holder.id != driver_id:
            by = self.holder.title if self.holder is not None else "nobody"
            raise Taken(
                f"the run {self.run} is driven by {by} now, which took it after this driver had given no "
                f"sign of life for {self.lapse_s:g} s: this one stops here"
            )
