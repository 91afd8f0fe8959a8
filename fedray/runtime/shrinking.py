"""Shrinking: a host that memory has taken down comes back with half of its sites computed together.

The kernel kills without a word, so two losses in one and the same call are taken for it; what Ray's own
monitor has killed says so, and one is enough. Results have equal bits in groups of every size. A host whose
sites' data alone are too much dies at any size: give its sites more packs, or more machines.
"""

import logging
from collections.abc import Sequence
from typing import Any

from fedray.runtime.federation import HostSpec
from fedray.runtime.host import StageCall

logger = logging.getLogger(__name__)
MEMORY = "killed for memory"  # why a host was lost, where Ray says so
SAID_BY_RAY = "running low on memory"  # of its monitor
NAMED = 5  # sites in a message
Stage = tuple[str, int, int, int]


def why(error: BaseException) -> str:
    """Return why a host was lost, in a few words."""
    is_memory = type(error).__name__ == "OutOfMemoryError" or SAID_BY_RAY in str(error)
    return MEMORY if is_memory else type(error).__name__


class Shrinking:
    """How the hosts of a transport start again."""

    def __init__(self, specs: Sequence[HostSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._lost_in: dict[str, Stage] = {}

    def spec_of(self, host: str) -> HostSpec:
        """Return how to start a host."""
        return self._specs[host]

    def lost(self, host: str, call: Any, reason: str) -> None:
        """Take the loss of a host that was asked `call`, for a reason as `why` gives it."""
        if not isinstance(call, StageCall):
            return
        stage = (call.plan, call.round, call.attempt, call.stage)
        is_again = self._lost_in.get(host) == stage
        self._lost_in[host] = stage
        if not is_again and reason != MEMORY:
            return
        spec = self._specs[host] = self._specs[host].smaller()
        sites = spec.all_sites
        told = f"{', '.join(sites[:NAMED])}{', ...' * (len(sites) > NAMED)}"
        cause = reason if reason == MEMORY else f"lost twice in one call ({reason}), perhaps for memory"
        logger.warning(
            "round %d, stage %d: host %s was %s; its %d sites (%s) are asked again, at most 1/%d of a group "
            "together",
            *(call.round, call.stage, host, cause, len(sites), told, 2**spec.halvings),
        )
