"""`fedray report`, `fedray diff` and `fedray clean`: what can be done with runs that are over."""

import argparse
import difflib
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError

MADE_BY_FEDRAY = re.compile(r"\d{8}-\d{6}-.+")
QUIET_S = 24 * 3600.0  # a run that says `running` and wrote nothing for a day has been killed


def add_parser(subparsers: Any) -> None:
    """Add the three commands to argparse's subparsers."""
    report = subparsers.add_parser("report", help="write report.html of a run again")
    report.add_argument(
        "run", nargs="?", default="runs/latest", help="directory of a run, runs/latest by default"
    )
    report.add_argument(
        "--attacks", metavar="FILE", help="show a table of the attack bench (bench.py --report) in the page"
    )
    report.add_argument("--json", action="store_true", help="print the file's name as JSON")
    diff = subparsers.add_parser(
        "diff",
        help="name the first round and value in which two runs differ",
        description="Exit code 0: the same bits. 1: they differ.",
    )
    diff.add_argument("a", help="directory of a run")
    diff.add_argument(
        "b", nargs="?", default="runs/latest", help="directory of another, runs/latest by default"
    )
    diff.add_argument("--json", action="store_true", help="print the comparison as JSON")
    clean = subparsers.add_parser("clean", help="remove older runs after asking")
    clean.add_argument("--keep", type=int, default=10, metavar="N", help="how many of the newest stay (10)")
    clean.add_argument("--runs", default="runs", metavar="FOLDER", help="folder that holds the runs (runs)")
    clean.add_argument("--yes", action="store_true", help="do not ask")
    clean.add_argument("--json", action="store_true", help="print what was removed as JSON")


def run(args: argparse.Namespace) -> int:
    """Run one of the three commands and return the exit code."""
    return {"report": _report, "diff": _diff, "clean": _clean}[args.command](args)


def find(text: str) -> Path:
    """Return the directory of a run that was named by its path or by its name inside `runs/`.

    Raises ConfigError where there is none, with the nearest name.
    """
    for path in (Path(text), Path("runs") / text):
        if (path / "config.yaml").is_file():
            return path
    names = [folder.name for folder in runs_in(Path("runs"))]
    close = difflib.get_close_matches(Path(text).name, names, n=1, cutoff=0.3)
    fix = f"runs/{close[0]}" if close else "runs/latest, after `fedray run`"
    raise ConfigError(f"{text}: there is no run of this name. Fix: {fix}")


def _report(args: argparse.Namespace) -> int:
    from fedray.report import attacks, page

    run = find(args.run)
    if args.attacks is not None:
        attacks.add(run, args.attacks)
    target = page.write(run)
    print(json.dumps({"report": str(target)}) if args.json else f"open {target}")
    return 0


def _diff(args: argparse.Namespace) -> int:
    from fedray.report import diff

    a, b = find(args.a), find(args.b)
    found = diff.compare(a, b)
    if args.json:
        print(json.dumps({**asdict(found), "is_same": found.is_same}, default=str))
    else:
        print("\n".join(diff.tell(found, str(a), str(b))))
    return 0 if found.is_same else 1


def runs_in(folder: Path) -> list[Path]:
    """Return the runs and sweeps of a folder, oldest first; anything that fedray has not made is left out."""
    if not folder.is_dir():
        return []
    return sorted(
        (
            path
            for path in folder.iterdir()
            if path.is_dir()
            and not path.is_symlink()
            and MADE_BY_FEDRAY.fullmatch(path.name)
            and any((path / name).exists() for name in ("config.yaml", "sweep.json"))
        ),
        key=lambda path: path.name,
    )


def _is_running(path: Path) -> bool:
    states = [path / "STATUS", *path.glob("*/STATUS")]
    return any(
        state.exists() and state.read_text().startswith("running") and _is_fresh(state.parent)
        for state in states
    )


def _is_fresh(path: Path) -> bool:
    return time.time() - max(file.stat().st_mtime for file in [path, *path.iterdir()]) < QUIET_S


def _clean(args: argparse.Namespace) -> int:
    if args.keep < 0:
        raise ConfigError(f"--keep {args.keep}: a number of runs is 0 or more. Fix: --keep 10")
    folder = Path(args.runs)
    found = runs_in(folder)
    old = [path for path in found[: len(found) - args.keep] if not _is_running(path)]
    if not old:
        print(
            "[]"
            if args.json
            else f"nothing to remove: {len(found)} runs in {args.runs}, the newest {args.keep} stay"
        )
        return 0
    if not args.yes and not _agrees(old):
        print("nothing removed")
        return 0
    for path in old:
        shutil.rmtree(path)
    latest = folder / "latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
    print(json.dumps([path.name for path in old]) if args.json else f"removed {_counted(old)}")
    return 0


def _counted(runs: Sequence[Path]) -> str:
    return "1 run" if len(runs) == 1 else f"{len(runs)} runs"


def _agrees(old: Sequence[Path]) -> bool:
    """Show what would go and ask; without a terminal the answer is no."""
    total = sum(file.stat().st_size for path in old for file in path.rglob("*") if file.is_file())
    print(f"{_counted(old)}, {total / 1e6:.1f} MB:", file=sys.stderr)
    for path in old[:5]:
        print(f"  {path}", file=sys.stderr)
    if len(old) > 5:
        print(f"  ... up to {old[-1]}", file=sys.stderr)
    if not sys.stdin.isatty():
        print("there is no terminal to ask on; --yes removes them", file=sys.stderr)
        return False
    print("remove them? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
