"""How a region starts a lost host again, and what it tells it before it is asked as if nothing had happened.

A new process is told the plans, its sites' saved state, then every call since, which gives equal bits. That
may take longer than a round can wait, or there may be no place for the process yet: the round goes on
without its sites, and the next one looks again.
"""

import logging
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedray.errors import CheckpointError, DataError, HostError
from fedray.runtime.children import HOST_LOST, Asked, HostLost
from fedray.runtime.transport import Lost

if TYPE_CHECKING:
    from fedray.runtime.region import Region

log = logging.getLogger(__name__)
MAX_RESTARTS = 5  # of one host in one request
GLANCE_S = 0.05  # for a host that was lost in an earlier request: has it come back?
LOOK_S = 0.5  # between two looks whether nodes have come that are waited for


def revive(region: "Region", name: str, seconds: float | None) -> bool:
    """Start a host that was lost, or go on with one that was started again; tell whether it is up.

    `seconds` is how long that may take; None: as long as it gives signs of life.
    """
    limit = None if seconds is None else time.monotonic() + seconds
    if region.children[name].is_up:
        _start_again(region, name)
    for _ in range(MAX_RESTARTS):
        try:
            return _is_told(region, name, limit)
        except (HostError, DataError, CheckpointError) as error:
            log.warning("host %s was started again and cannot be set up: %s", name, error)
            _start_again(region, name)
    return False


def _start_again(region: "Region", name: str) -> None:
    child = region.children[name]
    region.restarts += 1
    child.starts += 1
    child.is_up = child.is_there = False
    child.telling = None
    setup = (told(region, asked, child.keeps) for asked in region.setup)
    child.to_tell = deque([*setup, *child.journal, *child.stages])
    region.transport.restart(name)


def told(region: "Region", asked: Asked, keeps: bool = True) -> Asked:
    """Return a call of the set-up as a host that starts again is told it: with what its sites have saved, if
    they keep anything.
    """
    method, arguments = asked
    is_start = method == "load" and arguments[0].is_start
    restore = region.restore if keeps else None
    return (method, (replace(arguments[0], restore=restore),)) if is_start else asked


def _is_told(region: "Region", name: str, limit: float | None) -> bool:
    """Tell a host what it has to know; return whether all was done in time. Raises HostLost where it dies."""
    child = region.children[name]
    child.is_there = child.is_there or region.transport.is_there(name, _left(limit))
    while child.is_there and child.to_tell:
        method, arguments = child.to_tell[0]
        child.telling = child.telling or region.submit(name, method, *arguments)
        answer = next(iter(region.transport.wait([child.telling], _left(limit))), None)
        if answer is None:
            return False
        if isinstance(answer[1], Lost):
            raise HostLost(f"host {name} was lost ({answer[1].reason}) in {method}")
        child.telling = None
        child.to_tell.popleft()
    child.is_up = child.is_there
    return child.is_up


def _left(limit: float | None) -> float | None:
    return None if limit is None else max(0.0, limit - time.monotonic())


def wait_for(region: "Region", num_sites: int, seconds: float) -> None:
    """Wait until hosts that hold so many sites answer; also for nodes that have not come yet."""
    limit, answered = time.monotonic() + seconds, 0
    tickets = [region.submit(name, "hello") for name, child in region.children.items()
               if child.is_up or revive(region, name, GLANCE_S)]  # fmt: skip
    for _, answer in region.transport.wait(tickets, seconds):
        answered += 0 if isinstance(answer, Lost) else len(answer)
        if answered >= num_sites:
            return
    while time.monotonic() < limit:
        time.sleep(min(LOOK_S, max(0.0, limit - time.monotonic())))
        if (answered := len(region.hello())) >= num_sites:
            return
    raise HostError(
        f"{answered} of {len(region.sites)} sites answered within {seconds:.0f} s and schedule.wait_for "
        f"asks for {num_sites}: start the missing ones, raise schedule.wait_s, or lower schedule.wait_for"
    )


def without(region: "Region", name: str, method: str) -> Any:
    """Return what stands for the answer of a host that is lost. Raises HostError where it is needed."""
    child = region.children[name]
    if method == "save":  # a host that never held state lacks none
        return Lost(name, HOST_LOST) if region.stateful and child.keeps else None
    if method == "reset":
        return False
    is_away = method == "hello" and not region.transport.has_place(name)
    if method in ("prepare", "load") or (is_away and all(asked != method for asked, _ in child.to_tell)):
        child.to_tell.append(told(region, region.setup[-1], child.keeps))
    if is_away:
        return {}
    if method in ("prepare", "load"):
        return None
    raise HostError(
        f"host {name} was lost in {method} and could not be started again: see its log for why, or the "
        "nodes of the cluster for one that it may run on"
    )


def reset(region: "Region") -> bool:
    """Make every host as new, in its own process: no plan, no state, data to be opened again.

    Tell whether all are there.
    """
    if not region.transport.can_restart:
        return False
    region.forget_all()
    return all(answer is not False for answer in region.call_all("reset").values())
