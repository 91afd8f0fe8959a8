"""Faults on purpose: seeded schedules of faults on a real Ray cluster, each judged; or hours of random ones.

    python -m experiments.chaos --count 200 [--seed 1]     one schedule after the other
    python -m experiments.chaos --each                     one of each kind
    python -m experiments.chaos --seed 1 --only 17         one schedule again
    python -m experiments.chaos --hours 1                  one run under random faults, looked at for leaks

Needs root: the cluster runs on test hosts (experiments/testbed), four network namespaces with links between
their regions. A schedule kills, cuts, delays, duplicates or fills at one point of one round, which is held
until the fault was seen; one whose fault was not seen there does not count and is said. Of
one that breaks what must hold, the marks and the driver's log are copied to chaos-failures/. See
experiments/faults for the kinds, the points and what must hold. Exit code 1 where anything did not hold.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.faults import kinds
from experiments.faults.endless import endless
from experiments.faults.field import Field
from experiments.faults.one import Outcome, play, warm_up
from experiments.testbed import why_not


def schedules(given: argparse.Namespace) -> Iterable[kinds.Schedule]:
    """Yield what is to be played."""
    if given.only:
        yield from (kinds.draw(given.seed, number) for number in given.only)
    elif given.each:
        yield from kinds.one_of_each(given.seed)
    else:
        number = given.first
        while True:  # until enough have counted
            yield kinds.draw(given.seed, number)
            number += 1


def say(outcome: Outcome) -> None:
    """Print a line, and the replay of what did not hold."""
    print(f"{outcome.word:6} {outcome.seconds:6.1f} s  {outcome.schedule.told}: {outcome.seen}", flush=True)
    for problem in outcome.problems:
        print(f"       {problem}", flush=True)
    if outcome.problems:
        print(f"       again: {outcome.schedule.replay}", flush=True)


def run(field: Field, given: argparse.Namespace) -> list[Outcome]:
    """Play schedules until enough have counted."""
    found: list[Outcome] = []
    warm_up(field)
    for schedule in schedules(given):
        found.append(play(field, schedule))
        say(found[-1])
        if not (given.only or given.each) and sum(each.counts for each in found) >= given.count:
            break
    return found


def summary(found: list[Outcome], seconds: float) -> dict[str, Any]:
    """Return the figures of a run of schedules."""
    counted = [each for each in found if each.counts]
    return {
        "counted": len(counted),
        "missed": len(found) - len(counted),
        "failed": sum(bool(each.problems) for each in found),
        "kinds": Counter(each.schedule.kind for each in counted),
        "points": Counter(each.schedule.point for each in counted),
        "with_losses": sum(each.losses > 0 for each in counted),
        "seconds": round(seconds, 1),
        "longest_resume_s": max((each.resumed_s or 0.0 for each in found), default=0.0),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Play, print, and tell how it went."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first schedule")
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--only", type=int, nargs="*", default=[])
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--out", default="", help="a file for the figures, as JSON")
    given = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    logging.getLogger("fedray").setLevel(logging.ERROR)  # of the runs that are compared with, here
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # hosts and folders go with us
    began = time.monotonic()
    with Field(given.seed) as field:
        if given.hours:
            told, is_sound = endless(field, given.seed, 3600 * given.hours)
        else:
            found = run(field, given)
            told = summary(found, time.monotonic() - began)
            is_sound = not told["failed"] and told["counted"] > 0
            told |= {"schedules": [asdict(each) for each in found]} if given.out else {}
    if given.out:
        Path(given.out).write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps({name: value for name, value in told.items() if name != "schedules"}))
    sys.exit(0 if is_sound else 1)


if __name__ == "__main__":
    main()
