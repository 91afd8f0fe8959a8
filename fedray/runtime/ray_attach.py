"""The driver's side of an aggregator that stands by itself: it attaches, and rebuilds what has died.

A call that may or may not have been executed is asked again under its number. Where the aggregator's process
was started again, empty, it is made what it was: the same hosts and set-up, the last checkpoint, and the
rounds since, run again without telling anybody. Then the call that failed is asked again, and whoever asked
for it has noticed nothing but the time. Rounds that draw from the system's entropy are never run again under
the same name: the attempt is lost, and another is charged.
"""

import contextlib
import hashlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray
from ray import exceptions as ray_errors

from fedray.errors import AttemptLost, HostError
from fedray.runtime.federation import HostSpec
from fedray.runtime.history import History
from fedray.runtime.lease import Driver, Taken
from fedray.runtime.place import Place
from fedray.runtime.ray_actors import with_control
from fedray.runtime.ray_faults import CLOSE_S, FETCH_S, START_S, Pulses, beat_of, cause_of
from fedray.runtime.ray_progress import Progress
from fedray.runtime.ray_standing import NAMESPACE, WITHOUT, Attached, Emptied, StandingActor, name_of

log = logging.getLogger(__name__)
LAPSE_BEATS, LEAST_LAPSE_S = 3, 5.0  # of silence until another driver may take a run
ABANDONED_S = 24 * 3600.0  # without a driver until an aggregator ends itself
RESTING_S, MOST_RESTING_S = 0.2, 2.0
MAX_REBUILDS = 5  # for one call
AGAIN_S = 60.0  # at least: Ray starts it again, and says nothing meanwhile


class AttachedAggregator:
    """The driver's handle: every method is a call, answers come back or errors are raised."""

    is_standing = True

    def __init__(
        self,
        specs: Sequence[HostSpec],
        regions: Mapping[str, str],
        run: str = "",
        abandoned_s: float = ABANDONED_S,
        place: Place | None = None,
    ) -> None:
        self._place = place  # of the aggregator; None is anywhere
        self._specs, self._regions, self._run = list(specs), dict(regions), run
        self._driver, self._numbers = Driver(), itertools.count(1)
        self._layout = layout_of(specs)
        self._patience_s = min(spec.patience_s for spec in specs)
        self._pulses = Pulses(max(self._patience_s, AGAIN_S))
        self._pulses.starts("aggregator")
        self._history, self._asked_again = History(), 0
        self._actor = self._started(abandoned_s)
        self._life, self._progress = "", Progress(self._actor)
        self._beats = _Beats(self._actor, self._driver.id, beat_of(self._patience_s))
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    @property
    def lapse_s(self) -> float:
        """Seconds of silence of a driver after which another may take its run."""
        return max(LEAST_LAPSE_S, LAPSE_BEATS * beat_of(self._patience_s))

    def _started(self, abandoned_s: float) -> Any:
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0}
        options |= self._place.options if self._place else {}
        if self._run:
            options |= {"name": name_of(self._run), "namespace": NAMESPACE, "lifetime": "detached",
                        "get_if_exists": True}  # fmt: skip
        return with_control(StandingActor).options(**options).remote(self._run, self.lapse_s, abandoned_s)

    def _build(self) -> None:
        """Take the run, and let the aggregator make its hosts."""
        for _ in range(MAX_REBUILDS):
            found = self._attached()
            if found.layout:
                log.info("the aggregator of %s is alive: this driver goes on with it", self._run)
            self._life = found.life
            arguments = self._driver.id, self._life, self._specs, self._regions, self._layout
            with contextlib.suppress(Emptied):  # it has died meanwhile
                self._get(partial(self._actor.build.remote, *arguments))
                return
        raise HostError(self._gone("dies as soon as it has hosts"))

    def _attached(self) -> Attached:
        """Take the run; one whose driver was killed a moment ago is free when its lease has lapsed."""
        limit = time.monotonic() + self.lapse_s + beat_of(self._patience_s)
        while True:
            try:
                found: Attached = self._get(lambda: self._actor.attach.remote(self._driver))
            except Taken:
                if time.monotonic() > limit:
                    raise
                time.sleep(RESTING_S)
            else:
                return found

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *args: self._call(method, *args)

    def _call(self, method: str, *args: Any) -> Any:
        for _ in range(MAX_REBUILDS):
            try:
                answer = self._ask(method, *args)
            except Emptied:
                self._rebuild()
                if self._history.is_one_shot(method, args):
                    raise AttemptLost(*self._history.told(method, args)) from None
            else:
                self._history.note(method, args, answer)
                return answer
        raise HostError(
            f"the aggregator of {self._run or WITHOUT} died {MAX_REBUILDS} times in {method}: see its log "
            "for why, then go on with `fedray resume`, or fit(..., resume=True)"
        )

    def _ask(self, method: str, *args: Any) -> Any:
        life, number = self._life, f"{self._driver.id}.{next(self._numbers)}"
        return self._get(lambda: self._actor.call.remote(self._driver.id, life, number, method, *args))

    def _rebuild(self) -> None:
        """Make an empty aggregator what the one before it was."""
        log.warning("the aggregator's process has died and was started again: it is rebuilt")
        started = time.monotonic()
        for _ in range(MAX_REBUILDS):
            with contextlib.suppress(Emptied):  # it died again
                self._build()
                rounds = self._history.replay(self._ask)
                seconds = time.monotonic() - started
                log.warning("rebuilt in %.1f s, %d rounds run again", seconds, rounds)
                return
        raise HostError("the aggregator dies while it is rebuilt: see its log for why")

    def _get(self, submit: Callable[[], Any]) -> Any:
        """Return the answer of a call, asked again for as long as nobody can tell whether it was executed.

        Raises Emptied where the process is another one, HostError where it gives no sign of life.
        """
        unsure_since, resting = None, RESTING_S
        ticket = submit()
        while True:
            if not ray.wait([ticket], timeout=self._pulses.beat_s)[0]:
                if not self._pulses.is_within_patience("aggregator", self._actor, self._driver.id):
                    raise HostError(self._gone(f"gives no sign of life for {self._pulses.patience_s:g} s"))
                continue
            try:
                answer = ray.get(ticket, timeout=FETCH_S)
            except ray_errors.RayTaskError as error:
                cause = cause_of(error)
                if not isinstance(cause, ray_errors.RayError):
                    raise cause from None
                reason = type(cause).__name__
            except ray_errors.ActorDiedError as error:
                raise HostError(self._gone("has ended")) from error
            except ray_errors.RayError as error:
                reason = type(error).__name__
            else:
                self._pulses.heard("aggregator")
                return answer
            unsure_since = unsure_since or time.monotonic()
            if time.monotonic() - unsure_since > max(START_S, self._patience_s):
                raise HostError(self._gone(f"is not there ({reason})"))
            self._asked_again += 1
            time.sleep(resting)
            resting = min(MOST_RESTING_S, 2 * resting)
            ticket = submit()

    def _gone(self, why: str) -> str:
        return (
            f"the aggregator of {self._run or WITHOUT} {why}: go on with `fedray resume`, or "
            "fit(..., resume=True)"
        )

    def progress(self) -> dict[str, Any]:
        """Return what is being done now, {} where that is not said at once; another thread may ask."""
        return self._progress()

    def pids(self) -> dict[str, int]:
        """Return the process ids of the aggregator and its hosts."""
        found: dict[str, int] = self._get(self._actor.pids.remote)
        return found

    def nodes(self) -> dict[str, str]:
        """Return the id of the node that each host is on."""
        found: dict[str, str] = self._get(self._actor.nodes.remote)
        return found

    def asked_again(self) -> int:
        """Return how many calls were asked again because nobody could tell whether they had been executed."""
        found: int = self._get(self._actor.asked_again.remote)
        return self._asked_again + found

    def places(self) -> dict[str, str]:
        """Return the id of the node that each site is on; without those whose node is away."""
        found: dict[str, str] = self._get(self._actor.places.remote)
        return found

    def close(self) -> None:
        """End the aggregator and its hosts."""
        self._beats.stop()
        if not self._life:
            return  # this driver was refused
        ticket = self._actor.call.remote(self._driver.id, self._life, "close", "close")
        try:
            if ray.wait([ticket], timeout=CLOSE_S)[0]:
                ray.get(ticket, timeout=FETCH_S)
        except Taken:
            return  # it is another driver's now
        except (ray_errors.RayError, HostError) as error:
            log.info("the aggregator was gone before it was ended: %s", type(error).__name__)
        ray.kill(self._actor, no_restart=True)


def attached(
    run: str, place: Place | None = None
) -> Callable[[Sequence[HostSpec], Mapping[str, str], str], AttachedAggregator]:
    """Return how a federation on a cluster makes its aggregator; "" ends with the driver's job."""
    return lambda specs, regions, _: AttachedAggregator(specs, regions, run, place=place)


class _Beats:
    """Signs of life of this driver, from a thread: the driver may be busy with other things than the run."""

    def __init__(self, actor: Any, driver_id: str, every_s: float) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(actor, driver_id, every_s), daemon=True)
        self._thread.start()

    def _run(self, actor: Any, driver_id: str, every_s: float) -> None:
        while not self._stopped.wait(every_s) and ray.is_initialized():
            with contextlib.suppress(ray_errors.RayError):  # whoever waits for an answer finds that out
                ray.wait([actor.pulse.remote(driver_id)], timeout=every_s)

    def stop(self) -> None:
        """Send no more."""
        self._stopped.set()


def layout_of(specs: Sequence[HostSpec]) -> str:
    """Return a digest of which host has which sites."""

    def told(spec: HostSpec) -> str:
        below = ",".join(map(told, spec.children)) or ",".join(spec.sites)
        return f"{spec.name}({below};{spec.group_size};{spec.allow_empty};{spec.device};{spec.place})"

    return hashlib.sha256("|".join(map(told, specs)).encode()).hexdigest()[:16]
