"""The observer of a run: a tracker that writes log.jsonl, status.json and timeline.jsonl while it goes on.

Files are the interface: `fedray status`, `fedray logs` and the page read them, also when this process is
gone. A thread writes the heartbeat once a second; it asks the aggregator what it is doing, and leaves it out
where one in another process does not say so at once.
"""

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedray.errors import LATE
from fedray.observe import log, status
from fedray.observe.trace import TimelineFile
from fedray.runtime.observed import Observed

BEAT_S = 1.0
Progress = Callable[[], Mapping[str, Any]]


class Observer:
    """Write what a run does; a context manager around `fit`, and one of its trackers.

    `progress` says what is being done this very moment. Without `beats` no thread is started, and what is
    written is as old as the last round: enough for the trials of a sweep.
    """

    def __init__(self, folder: Path, rounds: int, progress: Progress | None = None, *,
                 on_beat: Callable[[], None] | None = None, beats: bool = True) -> None:
        self.folder, self.rounds, self.progress, self.on_beat = folder, rounds, progress, on_beat
        started = status.started_at(os.getpid())
        self.facts: dict[str, Any] = {"format": 1, "pid": os.getpid(), "started": started,
                                      "machine": status.machine(), "rounds": rounds, "done": 0}
        self.seconds: deque[float] = deque(maxlen=status.RECENT)
        self.beats, self.is_over = beats, threading.Event()
        self.written = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.log, self.timeline = log.RunLog(self.folder), TimelineFile(self.folder)
        logger = logging.getLogger("fedray")
        self._level = logger.level
        logger.addHandler(self.log)
        if not logger.isEnabledFor(logging.INFO):
            logger.setLevel(logging.INFO)
        self._thread = threading.Thread(target=self._beat, name="fedray status", daemon=True)
        self.write()
        status.has_begun(self.folder)
        if self.beats:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.is_over.set()
        if self.beats:
            self._thread.join()
        logger = logging.getLogger("fedray")
        logger.removeHandler(self.log)
        logger.setLevel(self._level)
        if error is not None:
            self.log.ended_by(error)
        self.timeline.close()
        self.write()
        self.log.close()
        if self.log.lost:
            path = self.folder / log.FILE
            logger.warning("%d lines of %s found no room: the disk is full", self.log.lost, path)

    def start(self, plan: Any, facts: Mapping[str, Any]) -> None:
        """Take the number of sites and the first round."""
        first = int(facts.get("first_round", 0))
        self.facts |= {"plan": plan.name, "sites": facts.get("sites"), "where": facts.get("where"),
                       "first_round": first, "done": first}
        self.timeline.start(first)
        before = _sums(self.folder, first)
        self.facts |= {"bytes_up": before[0], "bytes_down": before[1]}
        self.log.say(f"{plan.name} on {facts.get('sites')} sites, rounds {first} to {self.rounds - 1}")
        self.write()  # who asks in the first second is told of this run, not of its start

    def round(self, record: Any) -> None:
        """Take a round."""
        kinds = Counter(failure.kind for failure in record.failures)
        self.facts |= {
            "done": record.round + 1,
            "bytes_up": self.facts["bytes_up"] + record.bytes_up,
            "bytes_down": self.facts["bytes_down"] + record.bytes_down,
            "last_round": {"round": record.round, "asked": record.asked, "counted": record.counted,
                           "late": kinds.pop(LATE, 0), "failed": dict(kinds), "seconds": record.seconds,
                           "waited_s": record.waited_s},
        }
        self.seconds.append(record.seconds)
        self.log.failures(record)
        if record.observed is not None:
            self.timeline.round(record.round, record.observed)
            for note in record.observed.notes:
                self.log.note(note)
        skipped = "" if record.status == "counted" else ", below quorum: skipped"
        told = f"{record.counted} of {record.asked} sites counted in {record.seconds:.3g} s{skipped}"
        self.log.say(told, record.round)
        self._write_if_due()

    def evaluation(self, record: Any) -> None:
        """Take an evaluation."""
        self.facts["evaluated"] = {"round": record.round, "split": record.split, "seconds": record.seconds}
        self.log.say(f"evaluation on {record.split} rows in {record.seconds:.3g} s", record.round)

    def saved(self, round: int) -> None:
        """Take that a checkpoint was written."""
        self.facts["checkpoint"] = {"round": round, "time": time.time()}
        self.log.say("checkpoint written", round)
        self._write_if_due()

    def observed(self, seen: Observed) -> None:
        """Take what hosts did after the last round."""
        self.timeline.rest(seen)
        for note in seen.notes:
            self.log.note(note)

    def finish(self, result: Any) -> None:
        """Take the result; its files say what it is."""
        self.log.say(f"ended: {result.stopped}")

    def _beat(self) -> None:
        while not self.is_over.wait(BEAT_S):
            self.write()
            if self.on_beat is not None:
                self.on_beat()

    def _write_if_due(self) -> None:
        if not self.beats and time.monotonic() - self.written >= BEAT_S:
            self.write()

    def write(self) -> None:
        """Write status.json by one rename; a full disk must not end a run for it."""
        told = self._told()
        with self._lock:
            self.written = time.monotonic()
            status.write(self.folder / status.FILE, told)

    def _told(self) -> dict[str, Any]:
        told = {**self.facts, "heartbeat": time.time()}
        seconds = list(self.seconds)
        if seconds:
            told["seconds_a_round"] = sum(seconds) / len(seconds)
            told["left_s"] = told["seconds_a_round"] * max(0, self.rounds - told["done"])
        if self.progress is not None and not self.is_over.is_set():
            now = dict(self.progress())  # nothing from an aggregator that does not answer at once
            told |= {"hosts": now.pop("hosts"), "doing": now} if now else {}
        told["last_error"] = self.log.last_error
        return told


def _sums(folder: Path, first: int) -> tuple[int, int]:
    """Return the bytes up and down of the rounds before a resume."""
    from fedray import track
    rows = [row for row in track.read(folder, "rounds") if row["round"] < first] if first else []
    return sum(row["bytes_up"] or 0 for row in rows), sum(row["bytes_down"] or 0 for row in rows)
