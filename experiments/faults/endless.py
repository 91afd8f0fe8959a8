"""One run under random faults for hours: it goes on, leaks nothing, and ends with the right bits.

Faults come at random times, one after the other, wherever the run is. In between, when all is quiet, what the
run holds is measured: processes, file descriptors, private memory, shared memory. What is flat at the end of
the hour as it was at its beginning does not leak.
"""

import json
import os
import random
import shutil
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from experiments.faults import gates, judge, kinds
from experiments.faults.field import HEAD, NUM_ACTORS, Ended, Field, Late, wait
from experiments.faults.injure import Missed, injure
from experiments.faults.one import Play

EVERY_S, PAUSE_S = 5.0, 0.4  # between checkpoints; after each round
GAPS_S = (2.0, 12.0)  # between two faults
QUIET_S = 8.0  # without a fault, before anything is measured
MEASURED_EVERY_S = 90.0
STALLED_S = 240.0  # without a round: the patience of 90 s, and a node that starts again
LEAST_FAULTS = 3  # however short the time
KEPT_FOLDERS, ALGORITHM = 6, "scaffold"
MIB = 2**20
RARE = {"cut_60s": 0.2, "kill_head": 0.4}  # they last; the others have the weight 1
GROWTH = {"actors": 0.0, "descriptors": 0.05, "actor_mib": 0.10, "ray_mib": 0.15, "shared_mib": 0.25}
LEAST_GROWTH = {"actors": 0, "descriptors": 20, "actor_mib": 40, "ray_mib": 120, "shared_mib": 8}


@dataclass(frozen=True)
class Held:
    """What the run and its Ray hold, when all is quiet."""

    at_s: float
    round: int
    actors: int
    descriptors: int  # of the run's processes
    actor_mib: float  # private memory of the run's processes
    ray_mib: float  # of Ray's own
    shared_mib: float  # in /dev/shm of all hosts
    driver_mib: float


def measure(field: Field, began: float, round: int) -> Held:
    """Measure."""
    actors = field.actors()
    others = [pid for host in field.hosts for pid in host.pids("/site-packages/ray/") if pid not in actors]
    driver = list(field.hosts[HEAD].pids("experiments.faults.driver"))
    shared = 0
    for host in field.hosts:
        found = os.statvfs(host.path("/dev/shm"))
        shared += (found.f_blocks - found.f_bfree) * found.f_frsize
    return Held(
        at_s=time.monotonic() - began,
        round=round,
        actors=len(actors),
        descriptors=sum(map(_descriptors, actors)),
        actor_mib=_private(actors),
        ray_mib=_private(others),
        shared_mib=shared / MIB,
        driver_mib=_private(driver),
    )


def _descriptors(pid: int) -> int:
    with suppress(psutil.Error):
        return int(psutil.Process(pid).num_fds())
    return 0


def _private(pids: Sequence[int]) -> float:
    total = 0
    for pid in pids:
        with suppress(psutil.Error):
            total += psutil.Process(pid).memory_full_info().uss
    return total / MIB


def leaks(found: Sequence[Held]) -> list[str]:
    """Return what has grown from the first third of the measurements to the last."""
    third = len(found) // 3
    if not third:
        return []
    grown = []
    for name, share in GROWTH.items():
        before = statistics.median(getattr(each, name) for each in found[:third])
        after = statistics.median(getattr(each, name) for each in found[-third:])
        if after - before > max(LEAST_GROWTH[name], share * before):
            grown.append(f"{name} grew from {before:.0f} to {after:.0f}")
    return grown


class _Endless:
    def __init__(self, field: Field, seed: int) -> None:
        self.field, self.draws, self.seed = field, random.Random(f"endless/{seed}"), seed
        schedule = kinds.Schedule(seed=seed, number=-1, kind="endless", algorithm=ALGORITHM, every_s=EVERY_S,
                                  pause_s=PAUSE_S)  # fmt: skip
        self.folders = [self._folder(0)]
        self.play = Play(field, schedule, self.folders[0], field.disk / "endless", rounds=10**7,
                         most_drivers=10**6)  # fmt: skip
        self.done: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.problems: list[str] = []

    def _folder(self, number: int) -> Path:
        folder = self.field.folder / f"endless{number}"
        folder.mkdir()
        gates.ask(self.field.folder, folder)
        return folder

    def fault(self, number: int) -> None:
        """Do one fault and undo it."""
        weights = [RARE.get(kind, 1.0) for kind in kinds.KINDS]
        kind = self.draws.choices(kinds.KINDS, weights)[0]
        drawn = kinds.draw(self.seed, kinds.KINDS.index(kind) + len(kinds.KINDS) * number)
        for folder in self.folders:
            self.field.learn(folder)
        self.folders.append(self._folder(number))
        for old in self.folders[:-KEPT_FOLDERS]:
            shutil.rmtree(old)
        self.folders = self.folders[-KEPT_FOLDERS:]
        if kind == "duplicate_calls":
            self.done[kind] += self._twice()
            return
        try:
            seen = injure(self.field, drawn, self.folders[-1])
        except Missed as error:
            print(f"{number} {kind} of {drawn.target}: missed ({error})", flush=True)
            self.missed[kind] += 1
            self.field.heal()
            return
        print(f"{number} {kind} of {drawn.target}, round {self.round()}: {seen.what}", flush=True)
        self.done[kind] += 1
        self.go_on(seen.lasts_s)
        seen.heal()

    def _twice(self) -> int:
        """Let the calls of a round to come be sent twice; tell whether they were."""
        folder, number = self.folders[-1], self.round() + 10
        gates.ask(self.field.folder, folder, twice_in=number)
        limit = time.monotonic() + QUIET_S
        while self.round() <= number and time.monotonic() < limit:
            self.go_on(0.1)
        return any(mark["point"] == "twice" for mark in gates.marks(folder))

    def round(self) -> int:
        """Return the last round that was told."""
        told = [event["round"] for event in self.play.events() if event["event"] == "round"]
        if not told and self.play.drivers:
            told = [event["round"] for event in self.play.drivers[-1] if event["event"] == "round"]
        return told[-1] if told else -1

    def go_on(self, seconds: float) -> None:
        """Let the run go on for some seconds; a driver that was killed is followed by another."""
        limit = time.monotonic() + seconds
        while True:
            self.play.has_ended()
            if time.monotonic() >= limit:
                return
            time.sleep(0.1)

    def settle(self) -> None:
        """Wait until rounds come again. Raises Late where they do not."""
        before, limit = self.round(), time.monotonic() + STALLED_S
        while self.round() in (before, -1):
            self.go_on(0.2)
            if time.monotonic() > limit:
                raise Late(f"no round after {before} for {STALLED_S:g} s")

    def end(self) -> int:
        """Let the run end after its round, as Ctrl-C does; return the number of rounds."""
        self.settle()
        self.field.hosts[HEAD].kill("experiments.faults.driver", number=signal.SIGINT)
        wait(self.play.has_ended, STALLED_S, "the end of the run", 0.1)
        return self.round() + 1


def endless(field: Field, seed: int, seconds: float) -> tuple[dict[str, Any], bool]:
    """Run under faults for some seconds; return the figures, and whether all held."""
    one, began = _Endless(field, seed), time.monotonic()
    one.play.start(is_resumed=False)
    wait(lambda: one.round() >= 0, 120.0, "the first round", 0.1)
    found, number, measured_at, rounds = [measure(field, began, one.round())], 0, began, 0
    try:
        while time.monotonic() - began < seconds or one.done.total() < LEAST_FAULTS:
            number += 1
            one.fault(number)
            one.settle()
            one.go_on(one.draws.uniform(*GAPS_S))
            if time.monotonic() - measured_at > MEASURED_EVERY_S:
                one.go_on(QUIET_S)
                found.append(measure(field, began, one.round()))
                measured_at = time.monotonic()
                print(json.dumps(vars(found[-1])), flush=True)
        rounds = one.end()
    except (Ended, Late) as error:
        one.problems.append(f"{type(error).__name__}: {error}")
    else:
        course = one.play.course()
        one.problems += judge.same_bits(course, ALGORITHM, rounds)
        one.problems += judge.sound_ledger(course, not one.done["disk_full"], rounds)
        if course.num_actors > NUM_ACTORS:
            one.problems.append(f"{course.num_actors} processes at the end")
    killed = one.done["kill_driver"] + one.done["kill_head"]
    if len(one.play.drivers) != killed:
        one.problems.append(f"{len(one.play.drivers)} drivers have ended, {killed} were killed")
    one.problems += leaks(found)
    for problem in one.problems:
        print(f"FAILED {problem}", flush=True)
    told = {"seconds": round(time.monotonic() - began), "rounds": rounds, "faults": one.done,
            "missed": one.missed, "losses": len(one.play.course().lost()) if rounds else None,
            "problems": one.problems, "measured": [vars(each) for each in found]}  # fmt: skip
    return told, not one.problems
