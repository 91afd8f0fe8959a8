"""`fedray sweep`: compose and check every trial first, then run them; start reading at `run`.

A sweep's directory holds `sweep.json` (what is to be done), `trials.jsonl` (what is done), `summary.json` and
`summary.csv`, and one run directory per trial.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedray import config
from fedray.config import Composed
from fedray.errors import ConfigError
from fedray.sweep import summary
from fedray.sweep.job import IN_PROCESS, Jobs
from fedray.sweep.space import drawn, grid, listed
from fedray.sweep.trials import FAILED, INTERRUPTED, Book, Line, Trial, run_all

EPILOG = """\
  fedray sweep local.lr=0.1,0.3 'seed=range(5)'                    every combination
  fedray sweep --random 20 'local.lr=tag(log, interval(0.01,1))'   twenty draws
  fedray sweep --tune 40 'local.lr=tag(log, interval(0.01,1))'     Optuna and ASHA: the extra `tune`
  fedray sweep sweep=lr_mu                                         the grid conf/sweep/lr_mu.yaml"""


def run(words: Sequence[str]) -> int:
    """Run a sweep and return its exit code: 0 all done, 1 some failed, 130 interrupted."""
    flags, overrides = _parse(words)
    plan = _plan(flags, overrides)
    book = Book(plan.folder / "trials.jsonl")
    say = print if not flags.json else lambda *_, **__: None
    with book.claim():
        is_stopped = False
        try:
            for line in _lines(plan, book, flags, say):
                say(_shown(line), flush=True)
        except KeyboardInterrupt:
            is_stopped = True
        return _end(book, plan, flags.json, is_stopped)


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


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="fedray sweep", allow_abbrev=False, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description="Train once per configuration, in one session.")
    parser.add_argument("--list", metavar="FILE", help="one line of overrides per trial")
    parser.add_argument("--random", type=int, metavar="N",
                        help="draw N configurations out of intervals and choices")
    parser.add_argument("--random-seed", type=int, default=0, metavar="S", help="of --random and --tune; 0")
    parser.add_argument("--tune", type=int, metavar="N",
                        help="let Optuna propose N trials and ASHA stop poor ones")
    parser.add_argument("--metric",
                        help="on validation rows, what the best trial is chosen by; evaluate.metric")
    parser.add_argument("--mode", choices=("min", "max"), help="whether the metric is to be small or large")
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
    _refuse(flags, overrides)
    return flags, overrides


def _refuse(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Raise ConfigError with all that does not go together."""
    problems = []
    if any(word.startswith(("hydra/sweeper", "hydra/launcher")) for word in overrides):
        problems.append("sweeps run in fedray's own driver, which can resume; Hydra's sweepers and "
                        "launchers are not used. Fix: fedray sweep --jobs N")
    chosen = [name for name in ("list", "random", "tune") if getattr(flags, name) is not None]
    if len(chosen) > 1:
        problems.append(f"--{chosen[0]} and --{chosen[1]} both say which trials there are. "
                        "Fix: keep one of them")
    if flags.resume is not None and (chosen or overrides):
        problems.append("--resume goes on with the trials that sweep.json names, and takes no others. "
                        f"Fix: fedray sweep --resume {flags.resume}")
    for name in ("random", "tune", "jobs"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            problems.append(f"--{name} {value}: give 1 or more. Fix: --{name} 2")
    if problems:
        raise ConfigError(problems)


def _plan(flags: argparse.Namespace, overrides: Sequence[str]) -> Plan:
    """Return the sweep, its directory made only once every trial is composed and checked."""
    if flags.resume is not None:
        return _resumed(flags)
    if flags.tune is not None:
        from fedray.sweep.tune_space import corners
        trials, checked = [], corners(_expanded(overrides))
    else:
        trials = checked = _trials(flags, overrides)
    composed = _check(checked, flags)
    first = composed[0].config
    metric = flags.metric or str(first.evaluate.get("metric", "auroc"))
    mode = flags.mode or summary.default_mode(metric)
    tuned = None
    if flags.tune is not None:
        from fedray.sweep.tune_space import refuse
        refuse(composed, metric)
        tuned = {"words": _expanded(overrides), "count": flags.tune, "seed": flags.random_seed}
    folder = Path(first.runs_dir) / f"{time.strftime('%Y%m%d-%H%M%S')}-sweep-{first.name}"
    folder.mkdir(parents=True)
    plan = Plan(folder=folder, trials=trials, metric=metric, mode=mode, config_dir=flags.config_dir,
                tune=tuned, composed={trial.id: each for trial, each in zip(trials, composed, strict=False)})
    plan.write()
    return plan


def _resumed(flags: argparse.Namespace) -> Plan:
    folder = Path(flags.resume)
    if not (folder / "sweep.json").is_file():
        raise ConfigError(f"--resume {folder}: there is no sweep. "
                          "Fix: name a directory that holds sweep.json")
    saved = json.loads((folder / "sweep.json").read_text())
    flags.config_dir = flags.config_dir or saved.get("config_dir")
    trials = [Trial(tuple(entry["overrides"]), tuple(entry["varying"])) for entry in saved["trials"]]
    missing = Book(folder / "trials.jsonl").missing(trials, flags.retry_failed)
    composed = _check(missing, flags)
    metric = flags.metric or saved.get("metric") or "auroc"
    return Plan(folder=folder, trials=trials, metric=metric, config_dir=flags.config_dir,
                tune=saved.get("tune"), mode=flags.mode or saved.get("mode") or summary.default_mode(metric),
                composed={trial.id: each for trial, each in zip(missing, composed, strict=True)})


def _trials(flags: argparse.Namespace, overrides: Sequence[str]) -> list[Trial]:
    words = _expanded(overrides)
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


def _expanded(overrides: Sequence[str]) -> list[str]:
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


def _check(trials: Sequence[Trial], flags: argparse.Namespace) -> list[Composed]:
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


def _lines(plan: Plan, book: Book, flags: argparse.Namespace, say: Any) -> Iterator[Line]:
    """Run what is missing and yield the lines as trials end."""
    if plan.tune is not None:
        from fedray.sweep.tune import run_tuned
        run_tuned(plan, book, flags, lambda line: say(_shown(line), flush=True))
        return
    missing = book.missing(plan.trials, flags.retry_failed)
    finished = len(plan.trials) - len(missing)
    say(f"{plan.folder}: {len(plan.trials)} trials, {finished} of them finished already")
    jobs = Jobs(plan.folder, plan.composed)
    missing = jobs.in_order_of_data(missing)
    if flags.jobs > 1:
        from fedray.sweep.parallel import run_parallel
        yield from run_parallel(missing, book, jobs, flags.jobs, flags.fail_fast)
    elif missing:
        from fedray.sweep.kept import Kept
        with contextlib.closing(Kept()) as kept:
            yield from run_all(missing, book, lambda trial: jobs.order(trial).run(kept), flags.fail_fast)


def _shown(line: Line) -> str:
    figures = "  ".join(f"{name} {line.metrics[name]:.4f}" for name in summary.SHOWN if name in line.metrics)
    return f"{line.status:<12}{line.seconds:8.1f} s  {line.name}  {figures or line.error.split(chr(10))[0]}"


def _end(book: Book, plan: Plan, as_json: bool, is_stopped: bool) -> int:
    """Sum up what the book holds, say how to go on, and return the exit code."""
    written = book.lines()
    wanted = list(written) if plan.tune is not None else [trial.id for trial in plan.trials]
    lines = [written[trial_id] for trial_id in wanted if trial_id in written]
    found = summary.rows(lines)
    summary.write(plan.folder, found, plan.metric, plan.mode)
    if as_json:
        print(json.dumps([asdict(line) for line in lines]))
    elif lines:
        print("\n".join(["", *summary.table(found, plan.metric, plan.mode), f"in {plan.folder}"]))
    count = plan.tune["count"] if plan.tune is not None else len(plan.trials)
    is_stopped = is_stopped or any(line.status == INTERRUPTED for line in lines)
    if is_stopped or len(lines) < count:
        print(f"stopped; go on with: fedray sweep --resume {plan.folder}", file=sys.stderr)
        return 130 if is_stopped else 1
    failed = sum(line.status == FAILED for line in lines)
    if failed:
        print(f"{failed} trials failed; again with: fedray sweep --resume {plan.folder} --retry-failed",
              file=sys.stderr)
    return 1 if failed else 0
