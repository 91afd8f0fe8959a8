"""What a host says in the log of a run, and what it keeps to itself.

Only our own words and classes of errors leave a host: a message or a traceback may hold a patient's value. A
full traceback goes to a file on the host's own disk, readable by its user alone, and the log names the file.
"""

import logging
import os
import re
import stat
import tempfile
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedray.runtime.host import StageCall
from fedray.runtime.interpret import place_of
from fedray.runtime.observed import Note, Observed, Span, clock, note_of

FOLDER = "FEDRAY_TRACEBACKS"  # environment variable: where files of tracebacks are, on a host
MAX_WRITTEN = 20  # tracebacks of one host in one run; more of them say the same
MAX_NOTES = 500  # that wait for the next answer, the newest


def folder() -> Path:
    """Return this machine's folder of tracebacks: what FEDRAY_TRACEBACKS names, else one in the temporary
    folder.
    """
    given = os.environ.get(FOLDER)
    return Path(given) if given else Path(tempfile.gettempdir()) / f"fedray-tracebacks-{os.getuid()}"


class Times:
    """When a host computed a stage, and when each group of its sites was done, by its own clock."""

    def __init__(self, host: str) -> None:
        self.host, self.began = host, 0.0
        self.groups: list[tuple[float, tuple[str, ...]]] = []

    def start(self) -> None:
        """Begin a stage."""
        self.began, self.groups = clock(), []

    def group(self, sites: Sequence[str]) -> None:
        """Note that a group is done."""
        self.groups.append((clock(), tuple(sites)))

    def told(self, call: StageCall) -> dict[str, Any]:
        """Return what an answer says: the groups' spans end to end, and the seconds of all of it."""
        ended, at, spans = clock(), self.began, []
        for number, (stamp, sites) in enumerate(self.groups, start=1):
            until = ended if number == len(self.groups) else stamp
            spans.append(Span(self.host, "compute", at, until, call.round, call.stage, sites))
            at = until
        whole = Span(self.host, "compute", self.began, ended, call.round, call.stage)
        return {"spans": tuple(spans) or (whole,), "work_s": ended - self.began}


class Tracebacks:
    """Write the tracebacks of one host in one run; none where the run has no name."""

    def __init__(self, run: str, host: str) -> None:
        self.name = f"{re.sub(r'[^A-Za-z0-9._~-]', '_', f'{run}-{host}')}.txt" if run else ""
        self.host, self.written = host, 0
        self.notes: list[Note] = []

    def write(self, error: BaseException | None, call: StageCall) -> None:
        """Write an error of a stage down, and a line for the log that names the file."""
        if error is None or not self.name or self.written >= MAX_WRITTEN:
            return
        self.written += 1
        kind, where = type(error).__name__, place_of(error)
        head = f"round {call.round}, stage {call.stage}"
        told = f"first error of the stage at {where}" if where else "first error of the stage"
        name = self.name if _append(folder(), self.name, head, error) else ""
        if not name:
            told += "; its traceback could not be written here"
        facts = {"kind": kind, "traceback": name}
        self.notes.append(Note(clock(), "ERROR", self.host, told, call.round, call.stage, **facts))

    def take(self) -> tuple[Note, ...]:
        """Return the lines since the last time, and forget them."""
        found, self.notes = tuple(self.notes), []
        return found


def _append(place: Path, name: str, head: str, error: BaseException) -> bool:
    """Append a traceback to a file of this user alone; tell whether it could be written."""
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False  # somebody else's folder of this name
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with os.fdopen(os.open(place / name, flags, 0o600), "w") as file:
            file.write(f"{head}\n{''.join(traceback.format_exception(error))}\n")
    except OSError:
        return False
    return True


class NoteHandler(logging.Handler):
    """Collect what fedray logs in a process of its own, until its next answer takes it along.

    Of an exception only the class goes along. Warnings are still printed there.
    """

    def __init__(self, host: str, level: int = logging.INFO) -> None:
        super().__init__(level)
        self.host = host
        self.notes: deque[Note] = deque(maxlen=MAX_NOTES)

    def attach(self) -> "NoteHandler":
        """Listen to the loggers of fedray in this process."""
        logger = logging.getLogger("fedray")
        logger.addHandler(self)
        if not logger.isEnabledFor(self.level):
            logger.setLevel(self.level)
        return self

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        self.notes.append(note_of(record, self.host))
        if record.levelno >= logging.WARNING and logging.lastResort is not None:
            logging.lastResort.handle(record)

    def take(self) -> tuple[Note, ...]:
        """Return the lines since the last time, and forget them."""
        found = tuple(self.notes)
        self.notes.clear()
        return found

    def onto(self, answer: Any) -> Any:
        """Put the lines of an aggregator's process onto a round's record, or what was seen after it."""
        seen = getattr(answer, "observed", answer)
        if not isinstance(seen, Observed) or not self.notes:
            return answer
        own = tuple(note._replace(source=self.host) for note in self.take())
        seen = replace(seen, notes=(*seen.notes, *own))
        return seen if isinstance(answer, Observed) else replace(answer, observed=seen)
