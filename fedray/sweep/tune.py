"""`fedray sweep --tune N`: Optuna proposes trials and ASHA stops the poor ones, through Ray Tune.

What is optimised is a figure of validation rows, reported at each evaluation; test rows are read once, by
trials that end by themselves, and neither Optuna nor ASHA sees them. The book is the truth: a sweep that goes
on hands its finished trials to Optuna and asks for the rest. Needs the extra `tune`.
"""

import argparse
import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from fedray import config
from fedray.config import Composed
from fedray.data.site import Dataset
from fedray.errors import ConfigError, FedrayError
from fedray.runtime.learnt import Learnt
from fedray.runtime.ray_transport import start_ray
from fedray.sweep.job import IN_PROCESS, Order, close_run, numbers
from fedray.sweep.kept import data_key, end_keepers, from_keepers, start_keepers
from fedray.sweep.space import read
from fedray.sweep.trials import DONE, FAILED, STOPPED, Book, Line, Trial, guarded, line_of
from fedray.sweep.tune_space import Space

REDUCTION = 3  # of three trials that reach a rung, one goes on: Li et al., ASHA, MLSys 2020, use 3 or 4
ROUND, OUTCOME, RUN, VALID = "round", "outcome", "run", "valid"
LOST = "the process of the trial ended before it did"
QUIET = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}


class Failed(FedrayError):
    """A trial failed; the text is what the book says of it."""


@dataclass(frozen=True)
class Given:
    """The data set of a sweep for configurations that ask for it; others make their own."""

    key: str
    data: Dataset

    def __call__(self, tree: Mapping[str, Any], make: Callable[[], Dataset]) -> Dataset:
        """Return the data of a configuration."""
        return self.data if data_key(tree) == self.key else make()

    def shared(self, transform: Any) -> Any:
        """Return the transform: a tuned trial is alone in its process."""
        return transform

    def once(self, question: Any, ask: Callable[[], Any]) -> Any:
        """Ask."""
        return ask()

    @property
    def learnt(self) -> Learnt:
        """Nothing yet."""
        return Learnt()


@dataclass(frozen=True)
class Study:
    """What the process of a tuned trial needs: how to compose it, and the data that keepers hold."""

    space: Space
    folder: Path
    work_dir: str
    metric: str
    config_dir: str | None
    allow: tuple[str, ...]
    data: Given

    def __call__(self, point: Mapping[str, Any]) -> None:
        """Train at a point, tell Tune each validation, and at last what it came to."""
        os.chdir(self.work_dir)
        trial = self.space.trial(point)
        composed = config.compose_run([*trial.overrides, IN_PROCESS], self.config_dir, self.allow)
        run_dir = self.folder / f"{trial.name}~{tune.get_context().get_trial_id()[-5:]}"
        order = Order(trial, Composed(composed.config, run_dir, composed.overrides))
        reporter = Reporter(self.metric, run_dir.name)
        outcome = guarded(lambda given: given.run(self.data, reporter), order)
        outcome.setdefault(RUN, run_dir.name)
        if outcome["status"] == FAILED:
            tune.report({self.metric: math.nan, OUTCOME: outcome})  # without a round: no rule looks at it
            raise Failed(outcome["error"])
        tune.report({**reporter.last, OUTCOME: outcome})


@dataclass
class Reporter:
    """A tracker that tells Tune each evaluation of validation rows; Tune may end the trial there."""

    metric: str
    run: str
    last: dict[str, Any] = field(default_factory=dict)

    def start(self, plan: Any, facts: Mapping[str, Any]) -> None:
        """Take the plan; there is nothing to tell."""

    def round(self, record: Any) -> None:
        """Take a round; there is nothing to tell."""

    def evaluation(self, record: Any) -> None:
        """Tell an evaluation of validation rows. Raises ConfigError where it has no such metric."""
        if record.split != "valid":
            return
        found = numbers(record.metrics)
        if self.metric not in found:
            raise ConfigError(f"--metric {self.metric}: validation rows give {', '.join(sorted(found))}. "
                              f"Fix: --metric {min(found, default='loss')}")
        self.last = {self.metric: found[self.metric], ROUND: record.round + 1, VALID: found,
                     RUN: self.run}
        tune.report(self.last)

    def finish(self, result: Any) -> None:
        """Take the result; `Study` tells it."""


def train(point: Mapping[str, Any], study: Study) -> None:
    """Run one trial; Tune calls it, in a process that it uses again."""
    study(point)


class Note(tune.Callback):
    """Write a line into the book when a trial ends; it runs in the driver, the only writer."""

    def __init__(self, space: Space, book: Book, tell: Callable[[Line], None]) -> None:
        self._space, self._book, self._tell = space, book, tell

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Note a trial that ended, or that ASHA has ended."""
        last = trial.last_result
        given_up = {"status": STOPPED, RUN: last.get(RUN, ""), VALID: last.get(VALID, {}),
                    "error": f"stopped early after round {last.get(ROUND, 0)}: others did better there"}
        self._write(trial, last.get(OUTCOME) or given_up)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Note a trial that failed, or whose process is gone."""
        lost = {"status": FAILED, RUN: trial.last_result.get(RUN, ""), "error": LOST}
        self._write(trial, trial.last_result.get(OUTCOME) or lost)

    def _write(self, trial: Any, outcome: dict[str, Any]) -> None:
        seconds = float(trial.last_result.get("time_total_s", 0.0))
        line = line_of(self._space.trial(trial.config), seconds, outcome)
        self._book.add(line)
        self._tell(line)


def run_tuned(plan: Any, book: Book, flags: argparse.Namespace, tell: Callable[[Line], None]) -> None:
    """Run what is missing of a tuned sweep; write each trial down, and tell it, when it ends."""
    space = Space(read(plan.tune["words"]))
    closed = {DONE, STOPPED} if flags.retry_failed else {DONE, STOPPED, FAILED}
    lines = [line for line in book.all() if line.status in closed]  # Optuna may propose a point again
    left = plan.tune["count"] - len(lines)
    if left < 1:
        return
    start_ray("local")
    with _data(plan, flags) as (given, rounds), _quiet(), _signals_given_back():
        study = Study(space, plan.folder.resolve(), os.getcwd(), plan.metric, plan.config_dir,
                      tuple(flags.allow), given)
        able = tune.with_resources(tune.with_parameters(train, study=study), {"cpu": 0.001})
        settings = tune.TuneConfig(search_alg=_search(space, plan, lines), scheduler=_asha(plan, rounds),
                                   num_samples=left, reuse_actors=True, max_concurrent_trials=flags.jobs)
        where = tune.RunConfig(name="tune", storage_path=str(plan.folder.resolve()), verbose=0,
                               callbacks=[Note(space, book, tell)])
        tune.Tuner(able, tune_config=settings, run_config=where).fit()
    for line in book.lines().values():
        if line.status in (STOPPED, FAILED) and line.run:
            status = "interrupted" if line.status == STOPPED else "failed"
            close_run(plan.folder / line.run, status, line.error.split("\n")[0])


def _search(space: Space, plan: Any, lines: list[Line]) -> OptunaSearch:
    """Return Optuna's sampler, told what earlier trials came to."""
    known = [(space.point(Trial(line.overrides)), line.valid[plan.metric]) for line in lines
             if plan.metric in line.valid]
    return OptunaSearch(space.distributions(), metric=plan.metric, mode=plan.mode,
                        seed=plan.tune["seed"] + len(lines),  # going on must not propose the first ones again
                        points_to_evaluate=[point for point, _ in known] or None,
                        evaluated_rewards=[value for _, value in known] or None)


def _asha(plan: Any, rounds: int) -> ASHAScheduler:
    """Return the rule that ends trials; its last rung lies below the last round: the best are tested."""
    return ASHAScheduler(time_attr=ROUND, metric=plan.metric, mode=plan.mode, max_t=rounds + 1,
                         grace_period=max(1, rounds // REDUCTION ** 2), reduction_factor=REDUCTION)


@contextlib.contextmanager
def _data(plan: Any, flags: argparse.Namespace) -> Iterator[tuple[Given, int]]:
    """Open the data of the first configuration in keepers; yield it and the rounds of a trial."""
    from fedray.sweep.tune_space import corners
    words = [*corners(plan.tune["words"])[0].overrides, IN_PROCESS]
    composed = config.compose_run(words, plan.config_dir, flags.allow)
    experiment = config.build(composed.config)
    keepers = start_keepers(experiment.data)
    try:
        yield Given(data_key(experiment.tree), from_keepers(experiment.data, keepers)), experiment.rounds
    finally:
        end_keepers(keepers)


@contextlib.contextmanager
def _signals_given_back() -> Iterator[None]:
    """Undo what Tune leaves behind: a handler of Ctrl-C that outlives the sweep and swallows it once."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # one that Python did not set cannot be set by it
                    signal.signal(number, handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune from writing logs and tables of its own; the book and our lines say what it would."""
    before = {name: os.environ.get(name) for name in QUIET}
    loggers = [logging.getLogger(name) for name in ("ray.tune", "optuna")]
    levels = [logger.level for logger in loggers]
    os.environ.update(QUIET)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # Tune prints a traceback where a trial fails
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
