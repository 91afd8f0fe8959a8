"""`fedray sweep` and `fedray run -m`: compose and check every trial first, then run them."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fedray import config
from fedray.errors import ConfigError
from fedray.sweep.trials import Book, Line, Trial, grid, listed, run_all

SHOWN = ("auroc", "accuracy", "loss", "brier")  # the others are in the book


def run(words: Sequence[str]) -> int:
    """Run a sweep and return its exit code: 0 all done, 1 some failed, 130 interrupted."""
    flags, overrides = _parse(words)
    folder, trials = _plan(flags, overrides)
    book = Book(folder / "trials.jsonl")
    missing = book.missing(trials, flags.retry_failed)
    job = Job(folder, flags.config_dir, tuple(flags.allow), in_process=flags.jobs > 1)
    if not flags.json:
        print(f"{folder}: {len(trials)} trials, {len(trials) - len(missing)} of them finished already")
    if flags.jobs > 1:
        from fedray.sweep.parallel import run_parallel
        lines = run_parallel(missing, book, job, flags.jobs)
    else:
        lines = run_all(missing, book, job, flags.fail_fast)
    for line in lines:
        if not flags.json:
            print(_shown(line), flush=True)
    return _end(book, trials, folder, flags.json)


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="fedray sweep", allow_abbrev=False,
                                     description="Train once per combination: fedray sweep local.lr=0.1,0.3 "
                                     "'seed=range(5)'; sweep=NAME takes the grid conf/sweep/NAME.yaml")
    parser.add_argument("--list", metavar="FILE", help="one line of overrides per trial")
    parser.add_argument("--resume", metavar="DIR", help="go on with the sweep in this directory")
    parser.add_argument("--retry-failed", action="store_true", help="with --resume: run failed trials again")
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first failed trial")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials at a time, one process each")
    parser.add_argument("--allow", action="append", default=[], metavar="PACKAGE",
                        help="let `_target_` name code of this package")
    parser.add_argument("--config-dir", "-cd", help="look for further groups and presets in this folder")
    parser.add_argument("--json", action="store_true", help="print the finished trials as JSON")
    flags, overrides = parser.parse_known_args(list(words))
    unknown = [word for word in overrides if word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if any(word.startswith(("hydra/sweeper", "hydra/launcher")) for word in overrides):
        raise ConfigError("sweeps run in fedray's own driver, which can resume; Hydra's sweepers and "
                          "launchers are not used. Fix: fedray sweep --jobs N")
    return flags, overrides


def _plan(flags: argparse.Namespace, overrides: Sequence[str]) -> tuple[Path, list[Trial]]:
    """Return the sweep's directory, made only once every trial is composed and checked, and its trials."""
    if flags.resume is not None:
        folder = Path(flags.resume)
        if not (folder / "sweep.json").is_file():
            raise ConfigError(f"--resume {folder}: there is no sweep. "
                              "Fix: name a directory that holds sweep.json")
        saved = json.loads((folder / "sweep.json").read_text())["trials"]
        return folder, [Trial(tuple(entry["overrides"]), tuple(entry["varying"])) for entry in saved]
    trials = _trials(flags, overrides)
    first = _check(trials, flags)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(first.config.runs_dir) / f"{stamp}-sweep-{first.config.name}"
    folder.mkdir(parents=True)
    entries = [{"overrides": trial.overrides, "varying": trial.varying} for trial in trials]
    (folder / "sweep.json").write_text(json.dumps({"trials": entries}, indent=1))
    return folder, trials


def _trials(flags: argparse.Namespace, overrides: Sequence[str]) -> list[Trial]:
    words: list[str] = []
    for word in overrides:
        words += _named_grid(word.removeprefix("sweep=")) if word.startswith("sweep=") else [word]
    if flags.list is None:
        return grid(words)
    if not Path(flags.list).is_file():
        raise ConfigError(f"--list {flags.list}: there is no such file. "
                          "Fix: name a file with one line per trial")
    lines = Path(flags.list).read_text().splitlines()
    return [Trial((*words, *trial.overrides), trial.overrides) for trial in listed(lines)]


def _named_grid(name: str) -> list[str]:
    folder = config.conf_folder() / "sweep"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ConfigError(f"sweep={name}: there is no such grid, only {known}. "
                          f"Fix: sweep={known.split(', ')[0]}")
    return [str(word) for word in yaml.safe_load(path.read_text())["overrides"]]


def _check(trials: Sequence[Trial], flags: argparse.Namespace) -> config.Composed:
    """Compose and check every trial; return the first. Raises ConfigError with the problems of all."""
    problems: dict[str, None] = {}
    composed = []
    for trial in trials:
        try:
            composed.append(config.compose_run(trial.overrides, flags.config_dir, flags.allow))
            config.check(composed[-1].config)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))
    return composed[0]


@dataclass(frozen=True)
class Job:
    """Run one trial in its own directory below the sweep's and say what it came to."""

    folder: Path
    config_dir: str | None
    allow: tuple[str, ...]
    in_process: bool

    def __call__(self, trial: Trial) -> dict[str, Any]:
        """Train; a second attempt of a trial replaces the directory of the first."""
        from fedray.experiment import start
        overrides = [*trial.overrides, *(["runtime=in_process"] if self.in_process else [])]
        composed = config.compose_run(overrides, self.config_dir, self.allow)
        config.check(composed.config)
        attempt = sum(path.name.startswith(trial.name) for path in self.folder.iterdir() if path.is_dir())
        name = trial.name if attempt == 0 else f"{trial.name}~{attempt + 1}"
        outcome = start(replace(composed, run_dir=self.folder / name), live=False)
        status = "interrupted" if outcome.stopped == "interrupted" else "done"
        return {"status": status, "metrics": outcome.metrics}


def _shown(line: Line) -> str:
    figures = "  ".join(f"{name} {line.metrics[name]:.4f}" for name in SHOWN if name in line.metrics)
    return f"{line.status:<12}{line.seconds:8.1f} s  {line.name}  {figures or line.error.split(chr(10))[0]}"


def _end(book: Book, trials: Sequence[Trial], folder: Path, as_json: bool) -> int:
    lines = [line for trial_id, line in book.lines().items() if trial_id in {trial.id for trial in trials}]
    if as_json:
        print(json.dumps([asdict(line) for line in lines]))
    failed = [line for line in lines if line.status == "failed"]
    if any(line.status == "interrupted" for line in lines) or len(lines) < len(trials):
        print(f"stopped; go on with: fedray sweep --resume {folder}", file=sys.stderr)
        return 130 if any(line.status == "interrupted" for line in lines) else 1
    if failed:
        print(f"{len(failed)} trials failed; again with: fedray sweep --resume {folder} --retry-failed",
              file=sys.stderr)
    return 1 if failed else 0
