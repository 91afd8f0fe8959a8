"""`fedray sweep`: plan the trials, run what is missing of them, and sum up; start reading at `run`.

A sweep's directory holds `sweep.json` (what is to be done), `trials.jsonl` (what is done), `summary.json` and
`summary.csv`, and one run directory per trial.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fedray.errors import ConfigError
from fedray.sweep import summary
from fedray.sweep.job import Jobs
from fedray.sweep.planning import Plan, plan
from fedray.sweep.trials import FAILED, INTERRUPTED, Book, Line, run_all

EPILOG = """\
  fedray sweep local.lr=0.1,0.3 'seed=range(5)'                    every combination
  fedray sweep --random 20 'local.lr=tag(log, interval(0.01,1))'   twenty draws
  fedray sweep --tune 40 'local.lr=tag(log, interval(0.01,1))'     Optuna and ASHA: the extra `tune`
  fedray sweep sweep=lr_mu                                         the grid conf/sweep/lr_mu.yaml"""


def run(words: Sequence[str]) -> int:
    """Run a sweep and return its exit code: 0 all done, 1 some failed, 130 interrupted."""
    flags, overrides = parse(words)
    todo = plan(flags, overrides)
    book = Book(todo.folder / "trials.jsonl")
    say = print if not flags.json else nothing
    with book.claim():
        is_stopped = False
        try:
            for line in _lines(todo, book, flags, say):
                say(shown(line), flush=True)
        except KeyboardInterrupt:
            is_stopped = True
        return end(book, todo, flags.json, is_stopped)


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the flags and the overrides. Raises ConfigError with all that does not go together."""
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


def _lines(todo: Plan, book: Book, flags: argparse.Namespace, say: Any) -> Iterator[Line]:
    """Run what is missing and yield the lines as trials end."""
    if todo.tune is not None:
        from fedray.sweep.tune import run_tuned
        run_tuned(todo, book, flags, lambda line: say(shown(line), flush=True))
        return
    missing = book.missing(todo.trials, flags.retry_failed)
    finished = len(todo.trials) - len(missing)
    say(f"{todo.folder}: {len(todo.trials)} trials, {finished} of them finished already")
    jobs = Jobs(todo.folder, todo.composed)
    missing = jobs.in_order_of_data(missing)
    if flags.jobs > 1:
        from fedray.sweep.parallel import Crew, run_parallel
        with contextlib.closing(Crew()) as crew:
            yield from run_parallel(missing, book, jobs, crew, flags.jobs, flags.fail_fast)
    elif missing:
        from fedray.sweep.kept import Kept
        with contextlib.closing(Kept()) as kept:
            yield from run_all(missing, book, lambda trial: jobs.order(trial).run(kept), flags.fail_fast)


def shown(line: Line) -> str:
    """Return what a person reads of a line."""
    figures = "  ".join(f"{name} {line.metrics[name]:.4f}" for name in summary.SHOWN if name in line.metrics)
    return f"{line.status:<12}{line.seconds:8.1f} s  {line.name}  {figures or line.error.split(chr(10))[0]}"


def end(book: Book, todo: Plan, as_json: bool, is_stopped: bool) -> int:
    """Sum up what the book holds, say how to go on, and return the exit code."""
    written = book.lines()
    named = list(written) if todo.tune is not None else [trial.id for trial in todo.trials]
    lines = [written[trial_id] for trial_id in named if trial_id in written]
    found = summary.rows(lines)
    summary.write(todo.folder, found, todo.metric, todo.mode)
    if as_json:
        print(json.dumps([asdict(line) for line in lines]))
    elif lines:
        print("\n".join(["", *summary.table(found, todo.metric, todo.mode), f"in {todo.folder}"]))
    count, wanted = (len(book.all()), todo.tune["count"]) if todo.tune else (len(lines), len(todo.trials))
    is_stopped = is_stopped or any(line.status == INTERRUPTED for line in lines)
    if is_stopped or count < wanted:
        print(f"stopped; go on with: fedray sweep --resume {todo.folder}", file=sys.stderr)
        return 130 if is_stopped else 1
    failed = sum(line.status == FAILED for line in lines)
    if failed:
        print(f"{failed} trials failed; again with: fedray sweep --resume {todo.folder} --retry-failed",
              file=sys.stderr)
    return 1 if failed else 0


def nothing(*_: Any, **__: Any) -> None:
    """Say nothing, where JSON alone is asked for."""
