"""Heartbeats: is a host that has not answered yet at work, or gone? And which errors of Ray mean what.

Ray notices a node behind a cut link after minutes, where it is told to bear one (see docs/faults.md), so
fedray looks by itself. Hosts answer `pulse` beside their work. A pulse is sent only where an answer is waited
for longer than a beat, so that short rounds send none.
"""

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions as ray_errors

START_S = 300.0  # until a process has given its first sign of life
CLOSE_S = 10.0  # for an aggregator that is asked to end; one in the middle of a round is then ended by Ray
FETCH_S = 600.0  # a downlink or an answer on its way; Ray itself gives a fetch up after ten minutes
REFUSED_S = 5.0  # that connections are refused until the process counts as gone
MOST_BEATS_S = 5.0  # between two pulses
BEATS = 12  # in the patience

# "may or may not have been executed": the same call, under the same number, is asked again at the same actor
UNSURE = (
    ray_errors.ActorUnavailableError,
    ray_errors.ObjectLostError,
    ray_errors.GetTimeoutError,
    ray_errors.RpcError,
)
GONE = (
    ray_errors.RayActorError,
    ray_errors.NodeDiedError,
    ray_errors.WorkerCrashedError,
    ray_errors.OutOfMemoryError,
    ray_errors.OwnerDiedError,
)


def is_unsure(error: Exception) -> bool:
    """Tell whether a call may have been executed although its answer is an error of Ray."""
    return isinstance(error, UNSURE) and not isinstance(error, ray_errors.OwnerDiedError)


def is_refused(error: Exception) -> bool:
    """Tell whether a machine answers that nobody listens where an actor's process did: that has ended, and it
    can be long until Ray says so, or for ever where a cut link has lost the news.
    """
    return isinstance(error, ray_errors.ActorUnavailableError) and "Connection refused" in str(error)


def beat_of(patience_s: float) -> float:
    """Return the seconds between two pulses."""
    return min(MOST_BEATS_S, patience_s / BEATS)


def cause_of(error: Exception) -> BaseException:
    """Return what the remote function raised, with Ray's wrapping removed."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


@dataclass(slots=True)
class _Pulse:
    ticket: Any
    silent_since: float


class Pulses:
    """The signs of life of some actors, by name. Silence counts over several waits, until one is heard."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s, self.beat_s = patience_s, beat_of(patience_s)
        self._asked: dict[str, _Pulse] = {}
        self._starting: dict[str, float] = {}  # not heard yet, and how long they may take

    def starts(self, name: str, within_s: float = START_S) -> None:
        """Take a new process for a name."""
        self._asked.pop(name, None)
        self._starting[name] = within_s

    def heard(self, name: str) -> None:
        """Note that an actor has answered something."""
        if self._asked or self._starting:
            self._asked.pop(name, None)
            self._starting.pop(name, None)

    def is_within_patience(self, name: str, actor: Any, *words: Any) -> bool:
        """Look for a sign of life, ask for the next one, and tell whether the silence can still be borne."""
        now = time.monotonic()
        asked = self._asked.get(name)
        if asked is None:
            self._asked[name] = _Pulse(actor.pulse.remote(*words), now)
            return True
        ready, _ = ray.wait([asked.ticket], timeout=0)
        if ready:
            has_answered = answered(ready[0])
            asked.ticket = actor.pulse.remote(*words)
            if has_answered:
                asked.silent_since = now
                self._starting.pop(name, None)
        return now - asked.silent_since <= self._starting.get(name, self.patience_s)


def answered(ticket: Any) -> bool:
    """Tell whether a pulse that has come in is a sign of life, and not an error of Ray."""
    try:
        ray.get(ticket, timeout=FETCH_S)
    except ray_errors.RayTaskError:
        return True  # it ran, and so its process lives
    except ray_errors.RayError:
        return False
    return True
