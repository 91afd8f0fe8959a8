"""A sweep: a list of overrides per trial, run in one session, resumable, with one writer of its book.

A trial is named by the overrides that vary and known by the hash of all of them. The book `trials.jsonl`
holds one line per finished trial; whoever goes on with a sweep reads it and runs what is missing.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError, FedrayError

NAME_LENGTH = 80  # characters of a run directory's name that are still read at a glance
DONE, FAILED, INTERRUPTED, STOPPED = "done", "failed", "interrupted", "stopped"

RunTrial = Callable[["Trial"], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration of a sweep."""

    overrides: tuple[str, ...]
    varying: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Hash of the overrides; their order does not matter."""
        return hashlib.sha256("\n".join(sorted(self.overrides)).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Name of the trial's run directory: its overrides, cut at 80 characters with the hash behind."""
        text = ",".join(self.varying or self.overrides) or "defaults"
        safe = "".join(letter if letter.isalnum() or letter in "=,._-+" else "_" for letter in text)
        return safe if len(safe) <= NAME_LENGTH else f"{safe[:NAME_LENGTH - 13]}-{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What the book says of a finished trial."""

    trial: str
    name: str
    overrides: tuple[str, ...]
    status: str  # "done", "failed", "interrupted", or "stopped" where a tuned sweep gave the trial up
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)  # of the test rows
    valid: dict[str, Any] = field(default_factory=dict)  # of the last validation
    varying: tuple[str, ...] = ()
    run: str = ""  # its run directory, beside the book
    error: str = ""


class Book:
    """The lines of `trials.jsonl`. Only the driver of a sweep writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Be its only writer inside the block. Raises ConfigError where another process is."""
        with self.path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another process is running the sweep in {self.path.parent}. "
                                  "Fix: wait for it, or end it first") from None
            yield

    def all(self) -> list[Line]:
        """Return every line in order; one that a kill cut off is left out."""
        if not self.path.exists():
            return []
        whole = self.path.read_text().split("\n")[:-1]
        read = [json.loads(text) for text in whole if text.strip()]
        tuples = [{name: tuple(entry.get(name, ())) for name in ("overrides", "varying")} for entry in read]
        return [Line(**{**entry, **more}) for entry, more in zip(read, tuples, strict=True)]

    def lines(self) -> dict[str, Line]:
        """Return the last line of each trial."""
        return {line.trial: line for line in self.all()}

    def add(self, line: Line) -> None:
        """Append one line, in the place of one that a kill cut off."""
        with self.path.open("ab") as file:
            size = file.tell()
            if size:
                file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
            file.write(json.dumps(asdict(line)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def missing(self, trials: Sequence[Trial], retry_failed: bool) -> list[Trial]:
        """Return the trials that have not finished; failed ones only where they are to be tried again."""
        lines = self.lines()
        closed = {DONE, STOPPED} if retry_failed else {DONE, STOPPED, FAILED}
        return [trial for trial in trials if trial.id not in lines or lines[trial.id].status not in closed]


def run_all(trials: Sequence[Trial], book: Book, run_trial: RunTrial,
            fail_fast: bool = False) -> Iterator[Line]:
    """Run trials one after the other, write each down when it ends, and yield its line.

    A trial that fails is written down and the next one starts, unless `fail_fast`; Ctrl-C ends the sweep.
    """
    for trial in trials:
        started = time.monotonic()
        outcome = guarded(run_trial, trial)
        line = line_of(trial, time.monotonic() - started, outcome)
        book.add(line)
        yield line
        if line.status == INTERRUPTED or (fail_fast and line.status == FAILED):
            return


def guarded(run_trial: Callable[[Any], dict[str, Any]], given: Any) -> dict[str, Any]:
    """Run a trial; an error of any kind becomes its outcome, so that it costs this trial alone."""
    try:
        return run_trial(given)
    except Exception as error:  # noqa: BLE001 (becomes the line of this trial; all others go on)
        return {"status": FAILED, "error": told(error)}


def told(error: Exception) -> str:
    """Say what an error is: ours in full, of others the class and the line of code, never a value."""
    if isinstance(error, FedrayError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}; the run's own STATUS says more"


def line_of(trial: Trial, seconds: float, outcome: dict[str, Any]) -> Line:
    """Return the book's line for what a trial came to."""
    return Line(trial=trial.id, name=trial.name, overrides=trial.overrides, varying=trial.varying,
                seconds=round(seconds, 3), **outcome)
