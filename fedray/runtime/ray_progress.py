"""What an aggregator in another process is doing now, as far as it says so at once.

It answers beside its work, as it gives signs of life. Nobody waits for it longer than a moment: a call that
is not answered by then is looked for the next time, and none is sent meanwhile.
"""

from typing import Any

import ray
from ray import exceptions as ray_errors

from fedray.runtime.observed import clock

MOMENT_S = 0.2  # between two machines a call takes some milliseconds; the status is written once a second


class Progress:
    """Ask an actor's `progress`; {} where it does not answer at once."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._ticket: Any = None

    def __call__(self) -> dict[str, Any]:
        """Return what the aggregator says, in times of this machine's clock."""
        if not ray.is_initialized():
            return {}
        try:
            if self._ticket is None:
                self._ticket = self._actor.progress.remote()
            if not ray.wait([self._ticket], timeout=MOMENT_S)[0]:
                return {}
            ticket, self._ticket = self._ticket, None
            return by_this_clock(ray.get(ticket, timeout=MOMENT_S))
        except ray_errors.RayError:  # whoever waits for a round finds out what it is
            self._ticket = None
            return {}


def by_this_clock(told: dict[str, Any]) -> dict[str, Any]:
    """Return an answer with its times moved by how much the other clock is behind."""
    if not told:
        return {}
    behind = clock() - told["time"]
    hosts = [{**host, **_moved(host, behind, "since", "seen")} for host in told["hosts"]]
    return {**told, **_moved(told, behind, "time", "since"), "hosts": hosts}


def _moved(told: dict[str, Any], behind: float, *names: str) -> dict[str, Any]:
    return {name: told[name] + behind for name in names if told[name] is not None}
