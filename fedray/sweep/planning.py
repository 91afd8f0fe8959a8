"""Which trials a sweep has: composed and checked before its directory is made. Start reading at `plan`."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedray import config
from fedray.config import Composed
from fedray.errors import ConfigError
from fedray.sweep import summary
from fedray.sweep.job import IN_PROCESS
from fedray.sweep.space import drawn, grid, listed
from fedray.sweep.trials import Book, Trial


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep is to do, as `sweep.json` keeps it."""

    folder: Path
    trials: list[Trial]
    metric: str
    mode: str
    config_dir: str | None = None
    tune: dict[str, Any] | None = None  # of a tuned sweep, whose trials are found while it runs
    composed: dict[str, Composed] = field(default_factory=dict)

    def write(self) -> None:
        """Write `sweep.json`."""
        entries = [{"overrides": trial.overrides, "varying": trial.varying} for trial in self.trials]
        told = {"trials": entries, "metric": self.metric, "mode": self.mode, "config_dir": self.config_dir,
                "tune": self.tune}
        (self.folder / "sweep.json").write_text(json.dumps(told, indent=1))


def plan(flags: argparse.Namespace, overrides: Sequence[str], folder: Path | None = None) -> Plan:
    """Return the sweep, its directory made only once every trial is composed and checked.

    `folder` is where it goes, if not below `runs_dir`. Raises ConfigError where a sweep is there already.
    """
    if flags.resume is not None:
        return _resumed(flags)
    checked = trials_of(flags, overrides)
    trials = checked if flags.tune is None else []
    composed = check(checked, flags)
    first = composed[0].config
    metric = flags.metric or str(first.evaluate.get("metric", "auroc"))
    mode = flags.mode or summary.default_mode(metric)
    tuned = None
    if flags.tune is not None:
        from fedray.sweep.tune_space import refuse
        refuse(composed, metric)
        tuned = {"words": expanded(overrides), "count": flags.tune, "seed": flags.random_seed}
    made = Plan(folder=_made(folder, first), trials=trials, metric=metric, mode=mode,
                config_dir=flags.config_dir, tune=tuned,
                composed={trial.id: each for trial, each in zip(trials, composed, strict=False)})
    made.write()
    return made


def _made(folder: Path | None, first: Any) -> Path:
    """Make the sweep's directory. Raises ConfigError where it holds a sweep."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = folder or Path(first.runs_dir) / f"{stamp}-sweep-{first.name}"
    if (path / "sweep.json").exists():
        raise ConfigError(f"{path} holds a sweep already. Fix: fedray sweep --resume {path}")
    path.mkdir(parents=True, exist_ok=folder is not None)
    return path


def _resumed(flags: argparse.Namespace) -> Plan:
    folder = Path(flags.resume)
    if not (folder / "sweep.json").is_file():
        raise ConfigError(f"--resume {folder}: there is no sweep. "
                          "Fix: name a directory that holds sweep.json")
    saved = json.loads((folder / "sweep.json").read_text())
    flags.config_dir = flags.config_dir or saved.get("config_dir")
    trials = [Trial(tuple(entry["overrides"]), tuple(entry["varying"])) for entry in saved["trials"]]
    missing = Book(folder / "trials.jsonl").missing(trials, flags.retry_failed)
    composed = check(missing, flags)
    metric = flags.metric or saved.get("metric") or "auroc"
    return Plan(folder=folder, trials=trials, metric=metric, config_dir=flags.config_dir,
                tune=saved.get("tune"), mode=flags.mode or saved.get("mode") or summary.default_mode(metric),
                composed={trial.id: each for trial, each in zip(missing, composed, strict=True)})


def trials_of(flags: argparse.Namespace, overrides: Sequence[str]) -> list[Trial]:
    """Return the trials of a command line; of a tuned sweep those that try its bounds and values."""
    words = expanded(overrides)
    if flags.random is not None:
        return drawn(words, flags.random, flags.random_seed)
    if flags.tune is not None:
        from fedray.sweep.tune_space import corners
        return corners(words)
    if flags.list is None:
        return grid(words)
    if not Path(flags.list).is_file():
        raise ConfigError(f"--list {flags.list}: there is no such file. "
                          "Fix: name a file with one line per trial")
    lines = Path(flags.list).read_text().splitlines()
    return [Trial((*words, *trial.overrides), trial.overrides) for trial in listed(lines)]


def expanded(overrides: Sequence[str]) -> list[str]:
    """Return the words with `sweep=NAME` replaced by what conf/sweep/NAME.yaml holds."""
    words: list[str] = []
    for word in overrides:
        words += _named_grid(word.removeprefix("sweep=")) if word.startswith("sweep=") else [word]
    return words


def _named_grid(name: str) -> list[str]:
    folder = config.conf_folder() / "sweep"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ConfigError(f"sweep={name}: there is no such grid, only {known}. "
                          f"Fix: sweep={known.split(', ')[0]}")
    return [str(word) for word in yaml.safe_load(path.read_text())["overrides"]]


def check(trials: Sequence[Trial], flags: argparse.Namespace) -> list[Composed]:
    """Compose and check every trial. Raises ConfigError with the problems of all."""
    problems: dict[str, None] = {}
    composed = []
    more = [IN_PROCESS] if flags.jobs > 1 or flags.tune is not None else []
    for trial in trials:
        try:
            composed.append(config.compose_run([*trial.overrides, *more], flags.config_dir, flags.allow))
            config.check(composed[-1].config)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))
    return composed
