"""What does a sweep of 32 trials (8 learning rates, 4 seeds) cost against the same trials one by one?

    python experiments/benchmarks/sweep.py [--pairs 5] [--trials 32] [--rounds 50]

The logistic model of W2 (64 features, zero start) over its first 200 sites of 100 training rows and 50 of its
test rows each, batches of 32, one epoch, all sites in every round, default tracker and checkpoint, evaluated
once at the end. CPU (user and system) of the whole process tree:

- `one_by_one`: the trials in one process, start-up excluded (imports, configurations, data, a first trial)
- `processes`: a `fedray run` for each, start-up included
- `sweep`: `fedray sweep --jobs 2`, start-up excluded in the same way; `sweep_with_start` includes it

Modes are interleaved, `--pairs` times; results of each trial must have equal bits in all of them. The last
line is JSON: medians, and ratios to `one_by_one` and to `processes`.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

FEATURES, SITES, ROWS, TEST_ROWS = 64, 200, 100, 50
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
JOBS = 2


def hospitals() -> Any:
    """Return the sites of W2, drawn as performance.md says."""
    import torch

    from fedray.data.site import Dataset, SiteData
    rng = np.random.default_rng(2)
    x = rng.standard_normal((110_000, FEATURES))
    weights = rng.standard_normal(FEATURES) / 5
    y = rng.random(110_000) < 1 / (1 + np.exp(-x @ weights))
    splits = {"train": torch.arange(ROWS), "test": torch.arange(ROWS, ROWS + TEST_ROWS)}
    sites = {}
    for site in range(SITES):
        test = 100_000 + site * TEST_ROWS
        rows = np.r_[site * ROWS:(site + 1) * ROWS, test:test + TEST_ROWS]
        columns = {"x": torch.from_numpy(x[rows].astype(np.float32)),
                   "y": torch.from_numpy(y[rows].astype(np.float32))}
        sites[f"site{site:03}"] = Open(SiteData(columns, splits))
    return Dataset(sites, name="w2", features=tuple(f"x{place}" for place in range(FEATURES)))


class Open:
    """Answer with a site."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __call__(self) -> Any:
        """Return it."""
        return self.data


def words(rounds: int) -> list[str]:
    """Return what all trials share."""
    return ["experiment=none", "runtime=in_process", "report=none", "data._target_=sweep.hospitals",
            "model=logistic", "evaluate.valid=false", f"evaluate.every={rounds}", "local.batch_size=32",
            f"rounds={rounds}"]


def trials(count: int, rounds: int) -> list[Any]:
    """Return the trials, learning rate by learning rate."""
    from fedray.sweep.space import grid
    rates, seeds = ",".join(map(str, RATES)), -(-count // len(RATES))
    return grid([*words(rounds), f"local.lr={rates}", f"seed=range({seeds})"])[:count]


def tree_cpu() -> float:
    """Return the CPU seconds of this process and of all its descendants that live."""
    total = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def in_session(mode: str, count: int, rounds: int, folder: Path) -> dict[str, float]:
    """Run the trials of a session in this process; return CPU with and without its start, and the time."""
    from fedray import config
    from fedray.sweep.job import Jobs
    from fedray.sweep.trials import Book
    def jobs_of(chosen: list[Any], place: Path) -> Any:
        place.mkdir(exist_ok=True)
        composed = {trial.id: config.compose_run(trial.overrides, allow=["sweep"]) for trial in chosen}
        return Jobs(place, composed)

    first, chosen = trials(JOBS, 1), trials(count, rounds)
    first_jobs, jobs = jobs_of(first, folder / "first"), jobs_of(chosen, folder)
    # the mode of trials stacked into one program is a further entry here: see fedray/sweep/stacking.py
    session = {"one_by_one": one_by_one, "sweep": side_by_side}[mode]
    with session(Book(folder / "trials.jsonl")) as run:
        run(first, first_jobs)
        before, started = tree_cpu(), time.perf_counter()
        lines = run(chosen, jobs)
        whole = tree_cpu()
        found = {"cpu": whole - before, "cpu_with_start": whole, "wall": time.perf_counter() - started}
    failed = [line.error for line in lines if line.status != "done"]
    if failed:
        sys.exit(f"{mode}: {failed[0]}")
    return found


@contextlib.contextmanager
def one_by_one(book: Any) -> Any:
    """Yield how trials are run one after the other."""
    from fedray.sweep.kept import Kept
    from fedray.sweep.trials import run_all
    kept = Kept()
    yield lambda chosen, jobs: list(run_all(chosen, book, lambda trial: jobs.order(trial).run(kept)))


@contextlib.contextmanager
def side_by_side(book: Any) -> Any:
    """Yield how trials are run by workers."""
    from fedray.sweep.parallel import Crew, run_parallel
    with contextlib.closing(Crew()) as crew:
        yield lambda chosen, jobs: list(run_parallel(chosen, book, jobs, crew, JOBS))


def measure(mode: str, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run a mode in processes of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    if mode == "processes":
        total, started = 0.0, time.perf_counter()
        for trial in trials(args.trials, args.rounds):
            command = [sys.executable, "-m", "fedray", "run", "--json", "--allow", "sweep", *trial.overrides,
                       f"hydra.run.dir='{folder / trial.name}'"]
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"fedray run ended with exit code {process.returncode}")
            total += usage.ru_utime + usage.ru_stime
        return {"cpu_with_start": total, "wall": time.perf_counter() - started}
    command = [sys.executable, __file__, "--mode", mode, "--trials", str(args.trials), "--rounds",
               str(args.rounds), "--folder", str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def results(folder: Path, chosen: list[Any]) -> list[str]:
    """Return the hash of each trial's parameters."""
    files = [folder / trial.name / "result.json" for trial in chosen]
    return [json.loads(file.read_text())["params_sha256"] for file in files]


def main() -> int:
    """Print the figures, JSON last; the exit code is 1 where modes give other results."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        print(json.dumps(in_session(args.mode, args.trials, args.rounds, args.folder)))
        return 0
    ask = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; python "
          f"{platform.python_version()}, torch {version('torch')}; commit {commit}; n {args.pairs}; "
          f"{args.trials} trials of {args.rounds} rounds, {SITES} sites", flush=True)
    found: dict[str, list[dict[str, float]]] = {"one_by_one": [], "processes": [], "sweep": []}
    is_equal = True
    for _ in range(args.pairs):
        hashes = []
        for mode, runs in found.items():
            with tempfile.TemporaryDirectory() as place:
                runs.append(measure(mode, args, Path(place)))
                hashes.append(results(Path(place), trials(args.trials, args.rounds)))
            figures = "  ".join(f"{name} {value:.1f} s" for name, value in runs[-1].items())
            print(f"{mode:<12}{figures}", flush=True)
        is_equal = is_equal and all(other == hashes[0] for other in hashes)
    print(json.dumps(told(found, is_equal)))
    return 0 if is_equal else 1


def told(found: dict[str, list[dict[str, float]]], is_equal: bool) -> dict[str, Any]:
    """Return medians and ratios: below 1 the sweep is cheaper."""
    median = {f"{mode}.{name}": round(statistics.median(run[name] for run in runs), 3)
              for mode, runs in found.items() for name in runs[0]}
    pairs = [("cpu", "one_by_one"), ("cpu_with_start", "one_by_one"), ("cpu_with_start", "processes"),
             ("wall", "one_by_one"), ("wall", "processes")]
    ratios = {f"{name}_to_{mode}": median[f"sweep.{name}"] / median[f"{mode}.{name}"] for name, mode in pairs}
    return {"benchmark": "sweep", "equal_results": is_equal, "medians_s": median,
            "ratios": {name: round(value, 3) for name, value in ratios.items()}, "stacked": None}


if __name__ == "__main__":
    raise SystemExit(main())
