"""Play one schedule: start its run, hold it at its point, do the fault, see it through, and judge."""

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.faults import gates, judge, study
from experiments.faults.field import NUM_ACTORS, STARTS_WITHIN_S, Driver, Ended, Field, Late, wait
from experiments.faults.injure import Missed, Seen, injure, twice
from experiments.faults.kinds import NEVER_S, ROUNDS, Schedule
from fedray.runtime.federation import PATIENCE_S

MOST_DRIVERS = 4
LIMIT_S = 60.0 + PATIENCE_S  # of a run with its fault, and more where many processes start again
CUT_TWICE = 2.0  # TCP tries again after at most as long as it was cut off
MORE_S = {"kill_raylet": 60.0, "kill_head": 90.0, "kill_region": 30.0, "kill_aggregator": 30.0, "delay": 30.0}
TIDY_WITHIN_S = 30.0
BACK = "back"  # the file that says that the node of a killed raylet is: sites that are away save no state


@dataclass(frozen=True)
class Outcome:
    """How a schedule went; one that was missed does not count."""

    schedule: Schedule
    seen: str
    problems: Sequence[str] = ()
    seconds: float = 0.0
    is_missed: bool = False
    losses: int = 0
    resumed_s: float | None = None

    @property
    def word(self) -> str:
        """The outcome in one word."""
        return "FAILED" if self.problems else "missed" if self.is_missed else "held"

    @property
    def counts(self) -> bool:
        """Tell whether the fault was seen inside its point."""
        return not self.is_missed


@dataclass
class Play:
    """A run under way, with the drivers that it has had."""

    on: Field
    schedule: Schedule
    marks: Path
    checkpoints: Path
    drivers: list[list[dict[str, Any]]] = field(default_factory=list)
    driver: Driver | None = None
    first_event: int = 0
    back_at: float | None = None  # when Ray was there again
    rounds: int = ROUNDS
    most_drivers: int = MOST_DRIVERS

    def start(self, is_resumed: bool) -> None:
        """Give the run to a driver."""
        waits_for = str(self.marks / BACK) if self.schedule.kind == "kill_raylet" else ""
        asked = {"name": self.schedule.algorithm, "rounds": self.rounds, "folder": str(self.checkpoints),
                 "every_s": self.schedule.every_s, "deadline_s": self.schedule.deadline_s,
                 "is_resumed": is_resumed, "is_opened": self.schedule.point == "open",
                 "pause_s": self.schedule.pause_s, "waits_for": waits_for}  # fmt: skip
        self.driver = self.on.driver()
        self.first_event = len(self.driver.events)
        self.driver.tell(asked)

    def events(self) -> list[dict[str, Any]]:
        """Return what the driver of now has told of this run."""
        assert self.driver is not None
        return self.driver.events[self.first_event :]

    def has_ended(self) -> bool:
        """Tell whether the run is over; go on with another driver where the one of now has ended.

        Raises Ended where too many have.
        """
        assert self.driver is not None
        if any(event["event"] == "end" for event in self.events()):
            return True
        if not self.driver.has_ended:
            return False
        self.drivers.append(self.events())
        if len(self.drivers) >= self.most_drivers:
            raise Ended(f"{len(self.drivers)} drivers have ended; the last said: {self.driver.said()}")
        self.start(is_resumed=True)
        return False

    def held(self) -> bool:
        """Tell whether somebody waits at the gate."""
        assert self.driver is not None
        if self.driver.has_ended:
            raise Ended(f"the driver has ended before the fault: {self.driver.said()}")
        return any(mark.get("is_held") for mark in gates.marks(self.marks))

    def is_inside(self, seen: Seen) -> bool:
        """Tell whether nobody had left the point when the fault was seen."""
        left = [mark for mark in gates.marks(self.marks) if mark["point"] == "left " + self.schedule.point]
        return all(mark["at"] > seen.at for mark in left)

    def course(self) -> judge.Course:
        """Return what was seen of the run, now that it is over."""
        drivers = [*self.drivers, self.events()]
        return judge.Course(drivers, self.marks, self.checkpoints, _tidied(self.on), self.resumed_s())

    def resumed_s(self) -> float | None:
        """Return how long after Ray was back the run went on."""
        if self.back_at is None:
            return None
        later: list[float] = [event["at"] for event in self.events() if event["event"] in ("round", "end")]
        return min(later) - self.back_at


def play(field: Field, schedule: Schedule) -> Outcome:
    """Play a schedule."""
    began = time.monotonic()
    one = Play(field, schedule, field.folder / f"run{schedule.number}", field.disk / f"run{schedule.number}")
    one.marks.mkdir()
    seen = Seen(0.0, "not seen")
    problems: list[str] = []
    is_missed = False
    try:
        seen = _through(one)
    except Missed as error:
        is_missed, seen = True, Seen(0.0, str(error))
    except (Ended, Late) as error:
        problems.append(f"{type(error).__name__}: {error}")
    losses, resumed_s = 0, None
    if not problems and not is_missed:
        course = one.course()
        problems += judge.violations(schedule, course, ROUNDS, NUM_ACTORS)
        losses, resumed_s = len(course.lost()), course.resumed_s
    gates.forget(field.folder)
    field.learn(one.marks)
    if problems or is_missed:
        field.heal()
        field.end_driver()  # the next schedule begins with a new federation
    if problems:
        kept = Path.cwd() / "chaos-failures" / f"{schedule.seed}-{schedule.number}"
        shutil.copytree(one.marks, kept, dirs_exist_ok=True)
        shutil.copy(field.folder / "driver.log", kept)
    shutil.rmtree(one.marks)
    shutil.rmtree(one.checkpoints, ignore_errors=True)
    took = time.monotonic() - began
    return Outcome(schedule, seen.what, tuple(problems), took, is_missed, losses, resumed_s)


def _through(one: Play) -> Seen:
    """See a run through with its fault. Raises Missed, Ended and Late."""
    schedule = one.schedule
    limit_s = (LIMIT_S + MORE_S.get(schedule.kind, 0.0)) * judge.slowness() + CUT_TWICE * schedule.seconds
    twice_in = max(0, schedule.round) if schedule.kind == "duplicate_calls" else None
    gates.ask(one.on.folder, one.marks, schedule.point, schedule.round, schedule.who, twice_in)
    with ThreadPoolExecutor(1) as healer:
        try:
            one.start(is_resumed=False)
            wait(one.held, STARTS_WITHIN_S, f"the point {schedule.point} of {schedule.who}", 0.02)
            seen = injure(one.on, schedule, one.marks)
            is_inside = one.is_inside(seen)
            (one.marks / "open").touch()
            healed = healer.submit(_heal_later, one, seen)
            if schedule.kind == "kill_head":
                healed.result()
                one.back_at = time.time()
            wait(one.has_ended, limit_s, "the end of the run", 0.02)
            healed.result()
        finally:
            (one.marks / "open").touch()
    if not is_inside:
        raise Missed(f"{seen.what}, when {schedule.who} had left {schedule.point}")
    if schedule.kind == "duplicate_calls" and not twice(one.marks):
        raise Missed("no call was sent twice")
    return seen


def _heal_later(one: Play, seen: Seen) -> None:
    time.sleep(max(0.0, seen.at + seen.lasts_s - time.time()))
    seen.heal()
    (one.marks / BACK).touch()


def _tidied(field: Field) -> int:
    """Return how many processes the run has, once those that were given up have had time to end."""
    limit = time.monotonic() + TIDY_WITHIN_S
    while (count := len(field.actors())) > NUM_ACTORS and time.monotonic() < limit:
        time.sleep(0.2)
    return count


def warm_up(field: Field) -> None:
    """Train once without a fault: every process is known then. Raises Late and AssertionError."""
    for number, name in enumerate(study.ALGORITHMS, 1):
        schedule = Schedule(seed=0, number=-number, kind="nothing", algorithm=name, every_s=NEVER_S)
        one = Play(field, schedule, field.folder / f"warm{number}", field.disk / f"warm{number}")
        one.marks.mkdir()
        gates.ask(field.folder, one.marks)
        one.start(is_resumed=False)
        wait(one.has_ended, STARTS_WITHIN_S, "the end of a run without a fault", 0.05)
        field.learn(one.marks)
        problems = list(judge.violations(schedule, one.course(), ROUNDS, NUM_ACTORS))
        if problems:
            raise AssertionError(f"{name} without any fault: {problems}")
        shutil.rmtree(one.checkpoints)
