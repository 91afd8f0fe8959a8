"""`fedray run -m`, `python experiments/run.py -m`: Hydra's own multirun, by its basic sweeper and launcher.

Hydra makes the jobs and runs them one after the other in this process, on one Ray and one data load. Around
it is what it lacks: every job is checked before the first one runs, a job that fails costs itself alone, and
the directory can be gone on with by `fedray sweep --resume`. `hydra.sweep.dir` and `hydra.sweep.subdir` hold.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fedray import config
from fedray.config import Composed
from fedray.config_help import shorten
from fedray.errors import ConfigError
from fedray.sweep import commands, planning
from fedray.sweep.job import Jobs, Order
from fedray.sweep.kept import Kept
from fedray.sweep.trials import INTERRUPTED, Book, guarded, line_of

BASIC = ("hydra/sweeper=basic", "hydra/launcher=basic")
OURS = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra.job.chdir=false")


def run(words: Sequence[str]) -> int:
    """Run every combination and return the exit code of `fedray sweep`."""
    given = [word for word in words if word.startswith(("hydra.", "hydra/")) and word not in BASIC]
    _refuse(given)
    flags, overrides = commands.parse([word for word in words if word not in (*given, *BASIC)])
    folder = next((word.partition("=")[2] for word in given if word.startswith("hydra.sweep.dir=")), None)
    plan = planning.plan(flags, overrides, Path(folder).resolve() if folder is not None else None)
    plan = replace(plan, folder=plan.folder.resolve())
    book = Book(plan.folder / "trials.jsonl")
    say = print if not flags.json else commands.nothing
    quiet = ["hydra/hydra_logging=none"] if flags.json else []
    lines = [*planning.expanded(overrides), *given, *OURS, *quiet, f"hydra.sweep.dir='{plan.folder}'"]
    is_stopped = False
    with book.claim(), contextlib.closing(Kept()) as kept:
        named = any(word.startswith("hydra.sweep.subdir=") for word in given)
        try:
            _through_hydra(lines, flags.config_dir, _Task(plan, book, kept, say, named))
        except KeyboardInterrupt:
            is_stopped = True
        return commands.end(book, plan, flags.json, is_stopped)


def _refuse(given: Sequence[str]) -> None:
    """Raise ConfigError for sweepers and launchers that are not Hydra's own basic ones."""
    if any(word.startswith(("hydra/sweeper", "hydra/launcher", "hydra.sweeper", "hydra.launcher"))
           for word in given):
        raise ConfigError("-m runs Hydra's basic sweeper and launcher; others are not used. "
                          "Fix: fedray sweep --jobs N, --random N or --tune N")


class _Task:
    """The function that Hydra calls for each job: train, and write the line of the trial."""

    def __init__(self, plan: planning.Plan, book: Book, kept: Kept, say: Any, is_named: bool) -> None:
        self._plan, self._book, self._kept, self._say = plan, book, kept, say
        self._is_named = is_named  # whether the user gave hydra.sweep.subdir
        self._jobs = Jobs(plan.folder, plan.composed)

    def __call__(self, settings: DictConfig) -> None:
        """Run a job. Raises KeyboardInterrupt after a trial that was interrupted: no further job starts."""
        job = HydraConfig.get()
        trial = self._plan.trials[job.job.num]
        with contextlib.suppress(OSError):
            Path(job.runtime.output_dir).rmdir()  # Hydra made it, empty; a run directory must be new
        order = self._jobs.order(trial)
        run_dir = Path(job.runtime.output_dir) if self._is_named else order.composed.run_dir
        started = time.monotonic()
        composed = Composed(_resolved(settings, order.composed), run_dir, order.composed.overrides)
        outcome = guarded(lambda given: given.run(self._kept), Order(trial, composed))
        line = line_of(trial, time.monotonic() - started, outcome)
        self._book.add(line)
        self._say(commands.shown(line), flush=True)
        if line.status == INTERRUPTED:
            raise KeyboardInterrupt


def _resolved(settings: DictConfig, checked: Composed) -> DictConfig:
    """Return Hydra's configuration of a job as `config.compose` would: resolved, with what is allowed."""
    OmegaConf.set_readonly(settings, False)
    settings.allow = checked.config.allow
    OmegaConf.resolve(settings)
    return settings


def _through_hydra(lines: Sequence[str], config_dir: str | None, task: Any) -> None:
    """Run Hydra's main on a command line of its own. Raises ConfigError where Hydra refuses it."""
    def work(settings: DictConfig) -> None:
        task(settings)  # Hydra asks for a plain function

    config.register()
    flags = ["--multirun", *(["--config-dir", str(Path(config_dir).resolve())] if config_dir else [])]
    with _argv(["fedray run", *flags, *lines]):
        try:
            folder = str(config.conf_folder())
            hydra.main(version_base="1.3", config_path=folder, config_name="config")(work)()
        except config.BROKEN as error:
            raise ConfigError(shorten(str(error))) from None


@contextlib.contextmanager
def _argv(words: list[str]) -> Iterator[None]:
    """Let Hydra read these words, and raise instead of printing and leaving the process."""
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = words, "1"
    try:
        yield
    finally:
        sys.argv = before[0]
        if before[1] is None:
            os.environ.pop("HYDRA_FULL_ERROR")
        else:
            os.environ["HYDRA_FULL_ERROR"] = before[1]
