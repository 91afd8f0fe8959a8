"""One function a fault: it does it, sees that it has happened, and returns what undoes it.

Each raises Missed where the fault cannot be seen: its schedule does not count then.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.faults import gates
from experiments.faults.field import FAR, HEAD, Field, Late, is_gone, wait
from experiments.faults.kinds import Schedule

SEEN_WITHIN_S, GONE_WITHIN_S = 8.0, 10.0
BACK_WITHIN_S = 300.0  # on a busy machine Ray gives a start up after 30 s, and the service tries again
SLOW_S = 1.0  # each way, of a delayed link
DOUBLED = 0.3  # share of frames
CLOSED_PORT = 9  # where nothing listens: the answer is a refusal, after one round trip
ROUND_TRIP = (
    "import socket, sys, time; t = time.monotonic(); s = socket.socket(); s.settimeout(20); "
    "s.connect_ex((sys.argv[1], int(sys.argv[2]))); print(time.monotonic() - t)"
)


class Missed(Exception):
    """The fault was not seen, or not inside its point."""


@dataclass(frozen=True)
class Seen:
    """A fault that was seen: when, and in words; `heal` undoes it, `lasts_s` after it was done."""

    at: float
    what: str
    heal: Callable[[], None] = lambda: None
    lasts_s: float = 0.0


def injure(field: Field, schedule: Schedule, folder: Path) -> Seen:
    """Do a schedule's fault, and see it."""
    try:
        return _WAYS[schedule.kind](field, schedule, folder)
    except Late as error:
        raise Missed(str(error)) from error


def _killed(pid: int, name: str) -> Seen:
    os.kill(pid, signal.SIGKILL)
    wait(lambda: is_gone(pid), GONE_WITHIN_S, f"the end of {name}")
    return Seen(time.time(), f"process {pid} ({name}) is gone")


def kill_process(field: Field, schedule: Schedule, folder: Path) -> Seen:
    """Kill an actor's process: a pack, a region, the aggregator."""
    field.learn(folder)
    return _killed(field.pid(schedule.target), schedule.target)


def kill_driver(field: Field, schedule: Schedule, folder: Path) -> Seen:
    """Kill the driver."""
    pids = list(field.hosts[HEAD].pids("experiments.faults.driver"))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait(lambda: all(map(is_gone, pids)), GONE_WITHIN_S, "the end of the driver")
    return Seen(time.time(), f"the driver, process {pids}, is gone")


def kill_raylet(field: Field, schedule: Schedule, folder: Path) -> Seen:
    """Kill the raylet of a node, and with it all that is on the node; a service starts it again."""
    before, what = _known(field), f"the raylet of {schedule.target}"
    pids = field.cluster.kill(schedule.target, "raylet")
    wait(lambda: pids and all(map(is_gone, pids)), GONE_WITHIN_S, f"the end of {what}")

    def heal() -> None:
        _back(field, schedule.target, before)

    return Seen(time.time(), f"{what}, process {pids}, is gone", heal)


def _known(field: Field) -> list[str]:
    return [node["id"] for node in field.cluster.known_nodes()]


def _back(field: Field, name: str, before: list[str]) -> None:
    """Wait until a host has a node that is none of those before. Raises Late."""
    try:
        field.cluster.wait_for_another(name, before, BACK_WITHIN_S)
    except RuntimeError as error:
        raise Late(f"a node on {name}: {error}") from error


def kill_head(field: Field, schedule: Schedule, folder: Path) -> Seen:
    """Kill all on the head but Redis: GCS, raylet, aggregator, driver. To heal is to start it again."""
    before, pids = _known(field), field.cluster.kill_head()
    driver = list(field.hosts[HEAD].pids("experiments.faults.driver"))
    for pid in driver:
        os.kill(pid, signal.SIGKILL)
    wait(lambda: all(map(is_gone, pids + driver)), GONE_WITHIN_S, "the end of all on the head")

    def heal() -> None:
        field.cluster.start_head()
        _back(field, HEAD, before)

    return Seen(time.time(), f"{len(pids)} processes of Ray on the head are gone, and the driver", heal)


def cut(field: Field, schedule: Schedule, folder: Path) -> Seen:
    """Cut the link of a region, in one direction or both, for a time."""
    link = field.link(schedule.target)
    ways = ["out", "in"] if schedule.way == "both" else [schedule.way]
    before = {way: link.traffic(way).cut_bytes for way in ways}
    link.cut(schedule.way)
    wait(lambda: any(link.traffic(way).cut_bytes > before[way] for way in ways), SEEN_WITHIN_S,
         f"a frame that the cut of {schedule.target} drops", 0.05)  # fmt: skip
    dropped = {way: link.traffic(way).cut_bytes - before[way] for way in ways}
    return Seen(time.time(), f"the cut has dropped {dropped} bytes", link.heal, schedule.seconds)


def delay(field: Field, schedule: Schedule, folder: Path) -> Seen:
    """Let every frame on the link of a region take a second, each way, for a time."""
    link = field.link(schedule.target)
    link.set(latency_s=SLOW_S)
    host = next(host for host in field.hosts if host.region == schedule.target)
    words = (sys.executable, "-c", ROUND_TRIP, host.address, str(CLOSED_PORT))
    took = float(field.hosts[HEAD].run(*words))
    if took < 2 * SLOW_S:
        raise Missed(f"a round trip took {took:.2f} s")
    return Seen(time.time(), f"a round trip took {took:.2f} s", lambda: link.set(latency_s=FAR["latency_s"]),
                schedule.seconds)  # fmt: skip


def duplicate_frames(field: Field, schedule: Schedule, folder: Path) -> Seen:
    """Deliver three frames of ten twice on the link of a region, for a time."""
    link = field.link(schedule.target)

    def doubled() -> int:
        return int(link.traffic("out").doubled_frames + link.traffic("in").doubled_frames)

    before = doubled()
    link.set(doubled=DOUBLED)
    wait(lambda: doubled() > before, SEEN_WITHIN_S, "a frame that is delivered twice", 0.05)
    return Seen(time.time(), f"{doubled() - before} frames came twice", lambda: link.set(doubled=0.0),
                schedule.seconds)  # fmt: skip


def duplicate_calls(field: Field, schedule: Schedule, folder: Path) -> Seen:
    """Send every call of a round twice, as if a network had; seen when the round is over: see judge.py."""
    return Seen(time.time(), "every call of the round is sent twice")


def disk_full(field: Field, schedule: Schedule, folder: Path) -> Seen:
    """Fill the disk that the checkpoints are on, for a time."""
    filler = field.disk / "filler"

    def heal() -> None:
        filler.unlink()

    try:
        with filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**20))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    what = f"the disk took {filler.stat().st_size >> 20} MiB and is full"
    return Seen(time.time(), what, heal, schedule.seconds)


def twice(folder: Path) -> int:
    """Return how many calls were sent twice."""
    return sum(mark["point"] == "twice" for mark in gates.marks(folder))


_WAYS: dict[str, Callable[[Field, Schedule, Path], Seen]] = {
    "kill_site": kill_process,
    "kill_pack": kill_process,
    "kill_region": kill_process,
    "kill_aggregator": kill_process,
    "kill_driver": kill_driver,
    "kill_raylet": kill_raylet,
    "kill_head": kill_head,
    "cut_5s": cut,
    "cut_60s": cut,
    "cut_one_way": cut,
    "delay": delay,
    "duplicate_frames": duplicate_frames,
    "duplicate_calls": duplicate_calls,
    "disk_full": disk_full,
}
