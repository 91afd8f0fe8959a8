"""What must hold after a schedule: the run against one that nothing happened to, in this process.

Where all sites came back, that is the undisturbed run; else it is the run in which exactly the sites that the
records name were lost in their rounds. Server and sites are compared bit by bit.
"""

import collections
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors.torch import load

import fedray as fr
from experiments.faults import gates, study
from experiments.faults.kinds import LOSES_SITES, Schedule

RESUMED_WITHIN_S = 30.0  # after Ray is back
NOBODY_DIES = ("cut_5s", "cut_60s", "cut_one_way", "delay", "duplicate_frames", "duplicate_calls",
               "disk_full")  # fmt: skip
Lost = frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to, but that some sites were lost in some rounds."""

    sha256: str
    servers: tuple[str | None, ...]
    counted: tuple[int, ...]
    status: tuple[str, ...]
    sites: str  # of what the sites keep, see `kept_by_sites`


@lru_cache(maxsize=256)
def undisturbed(name: str, rounds: int, lost: Lost = frozenset()) -> Undisturbed:
    """Train in this process."""
    regions = {region: [site for site, host in study.HOMES.items() if host.startswith(region)]
               for region in ("eu", "us")}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        with fr.simulate(study.hospitals(), regions=regions) as federation:
            result = study.train(federation, name, rounds, folder, lost=lost)
        servers = tuple(record.hashes.get("server") for record in result.metrics)
        return Undisturbed(
            sha256=result.params_sha256,
            servers=servers,
            counted=tuple(record.counted for record in result.metrics),
            status=tuple(record.status for record in result.metrics),
            sites=kept_by_sites(Path(folder), rounds - 1),
        )


def kept_by_sites(folder: Path, round: int) -> str:
    """Return a digest of what every site keeps, as it is in a checkpoint; "" where none keeps anything."""
    kept: dict[str, str] = {}
    for path in folder.glob(f"sites-{round}-*.json"):
        body = json.loads(path.read_text())["body"]
        tensors = load(path.with_suffix(".safetensors").read_bytes()) if body["tensors"] else {}
        for slot, site, told in body["state"]:
            found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
            for key in sorted(tensors):
                if key == f"{slot}/{site}" or key.startswith(f"{slot}/{site}."):
                    found.update(tensors[key].numpy().tobytes())
            kept[f"{slot}/{site}"] = found.hexdigest()
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest() if kept else ""


@dataclass(frozen=True)
class Course:
    """What was seen of a run: the events of its drivers, one list each, and its folders."""

    drivers: Sequence[Sequence[dict[str, Any]]]
    marks: Path  # the folder of the gates
    checkpoints: Path
    num_actors: int  # when it was over
    resumed_s: float | None = None  # after Ray was back, where the head was killed

    @property
    def events(self) -> Iterator[dict[str, Any]]:
        """All events in their order."""
        return (event for events in self.drivers for event in events)

    def rounds(self) -> dict[int, list[dict[str, Any]]]:
        """Return what was told of each round; one may be told twice, by two drivers."""
        found: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
        for event in self.events:
            if event["event"] == "round":
                found[event["round"]].append(event)
        return found

    def lost(self) -> Lost:
        """Return which sites were lost in which rounds, as the records say."""
        return frozenset((site, number) for number, told in self.rounds().items()
                         for site, _ in told[-1]["lost"])  # fmt: skip


def same_bits(course: Course, name: str, rounds: int) -> Iterator[str]:
    """Yield what is not as in the run that nothing happened to."""
    told, lost = course.rounds(), course.lost()
    if sorted(told) != list(range(rounds)):
        yield f"rounds {sorted(set(range(rounds)) ^ set(told))} of {rounds} were not told"
        return
    expected = undisturbed(name, rounds, lost)
    ends = [event for event in course.events if event["event"] == "end"]
    if [end["sha256"] for end in ends] != [expected.sha256]:
        yield f"the last parameters differ from those of the run with {len(lost)} losses: {ends}"
    for number in range(rounds):
        for each in told[number]:
            found = each["server"], each["counted"], each["status"]
            wanted = expected.servers[number], expected.counted[number], expected.status[number]
            if found != wanted:
                yield f"round {number} came to {found} instead of {wanted}, lost: {each['lost']}"
    if (kept := kept_by_sites(course.checkpoints, rounds - 1)) != expected.sites:
        yield f"what sites keep differs: {kept[:12]} instead of {expected.sites[:12]}"


def sound_ledger(course: Course, is_whole: bool, rounds: int) -> Iterator[str]:
    """Yield what is wrong with the ledger of rounds."""
    path = course.checkpoints / "rounds-ledger.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    starts = [number for number, entry in enumerate(entries) if "ledger" in entry]
    lines = [entry for entry in entries[starts[-1] if starts else 0 :] if "round" in entry]
    last = {entry["round"]: entry for entry in lines}
    if is_whole and sorted(last) != list(range(rounds)):
        yield f"the ledger has rounds {sorted(last)}"
    told = course.rounds()
    for number, entry in last.items():
        if number in told and entry["hashes"].get("server") != told[number][-1]["server"]:
            yield f"round {number} has other bits in the ledger than were told"
    seen = collections.Counter((entry["round"], entry["attempt"], json.dumps(entry["hashes"], sort_keys=True))
                               for entry in lines)  # fmt: skip
    yield from (f"round {key[0]} is in the ledger {count} times" for key, count in seen.items() if count > 1)


def trained_once(folder: Path) -> Iterator[str]:
    """Yield who was trained twice in a round although no process died."""
    trained = collections.Counter((mark["who"], mark["round"]) for mark in gates.marks(folder)
                                  if mark["point"] == "train")  # fmt: skip
    yield from (f"{site} was trained {times} times in round {number}"
                for (site, number), times in trained.items() if times > 1)  # fmt: skip


def slowness() -> float:
    """Return how many times longer processors take now than on an idle machine, at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def violations(schedule: Schedule, course: Course, rounds: int, num_actors: int) -> Iterable[str]:
    """Yield every invariant that a schedule has broken."""
    yield from same_bits(course, schedule.algorithm, rounds)
    yield from sound_ledger(course, schedule.kind != "disk_full", rounds)
    lost = course.lost()
    if lost and schedule.kind not in LOSES_SITES and schedule.deadline_s is None:
        yield f"sites were lost and need not have been: {sorted(lost)}"
    if schedule.kind in NOBODY_DIES:
        yield from trained_once(course.marks)
        if len(course.drivers) > 1:
            yield f"{len(course.drivers)} drivers were needed"
    if course.num_actors > num_actors:
        yield f"{course.num_actors} processes of the run are there, {num_actors} belong to it"
    if course.resumed_s is not None and course.resumed_s > RESUMED_WITHIN_S * slowness():
        yield f"resumed {course.resumed_s:.1f} s after Ray was back, at a load of {os.getloadavg()[0]:.1f}"

