"""A sweep: a list of overrides per trial, run in one session, resumable, with one writer of its book.

A trial is named by the overrides that vary and known by the hash of all of them. The book `trials.jsonl`
holds one line per finished trial; whoever goes on with a sweep reads it and runs what is missing.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from fedray.config_help import unreadable
from fedray.errors import ConfigError, FedrayError

NAME_LENGTH = 80  # characters of a run directory's name that are still read at a glance

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
    status: str  # "done", "failed" or "interrupted"
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def grid(words: Sequence[str]) -> list[Trial]:
    """Return the trials of a grid: every combination of `a=1,2` and `b=range(3)`, the last varying fastest.

    Raises ConfigError with every word that cannot be read.
    """
    parser = OverridesParser.create()
    axes: list[list[str]] = []
    sweeps, problems = set(), []
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            problems.append(unreadable(word, str(error)))
            continue
        if not override.is_sweep_override():
            axes.append([word])
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            sweeps.update(axes[-1])
        else:
            problems.append(f"{word}: a sweep needs values one by one. Fix: {word.split('=')[0]}=0.1,0.2,0.5")
    if problems:
        raise ConfigError(problems)
    return [Trial(combination, tuple(text for text in combination if text in sweeps))
            for combination in itertools.product(*axes)]


def listed(lines: Iterable[str]) -> list[Trial]:
    """Return the trials of a list: one line of overrides each; empty lines and `#` lines are left out."""
    kept = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [trial for words in kept for trial in grid(words)]


class Book:
    """The lines of `trials.jsonl`. Only the driver of a sweep writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> dict[str, Line]:
        """Return the last line of each trial."""
        if not self.path.exists():
            return {}
        read = [json.loads(text) for text in self.path.read_text().splitlines() if text.strip()]
        return {entry["trial"]: Line(**{**entry, "overrides": tuple(entry["overrides"])}) for entry in read}

    def add(self, line: Line) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(line)) + "\n")

    def missing(self, trials: Sequence[Trial], retry_failed: bool) -> list[Trial]:
        """Return the trials that have not finished; failed ones only where they are to be tried again."""
        lines = self.lines()
        closed = {"done"} if retry_failed else {"done", "failed"}
        return [trial for trial in trials if trial.id not in lines or lines[trial.id].status not in closed]


def run_all(trials: Sequence[Trial], book: Book, run_trial: RunTrial,
            fail_fast: bool = False) -> Iterator[Line]:
    """Run trials one after the other, write each down when it ends, and yield its line.

    A trial that fails is written down and the next one starts, unless `fail_fast`; Ctrl-C ends the sweep.
    """
    for trial in trials:
        started = time.monotonic()
        try:
            outcome = run_trial(trial)
            line = line_of(trial, time.monotonic() - started, outcome)
        except FedrayError as error:
            line = line_of(trial, time.monotonic() - started, {"status": "failed", "error": str(error)})
        book.add(line)
        yield line
        if line.status == "interrupted" or (fail_fast and line.status == "failed"):
            return


def line_of(trial: Trial, seconds: float, outcome: dict[str, Any]) -> Line:
    """Return the book's line for what a trial came to."""
    return Line(trial=trial.id, name=trial.name, overrides=trial.overrides, status=outcome["status"],
                seconds=round(seconds, 3), metrics=outcome.get("metrics", {}), error=outcome.get("error", ""))
