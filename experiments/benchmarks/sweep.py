"""What does a sweep of 32 trials (8 learning rates, 4 seeds) cost against the same trials one by one?

    python experiments/benchmarks/sweep.py [--pairs 5] [--trials 32] [--rounds 50] [--processes]
    python experiments/benchmarks/sweep.py --workload w1 --pairs 3 --trials 8 --rounds 5

`w2`: the logistic model of W2 (64 features, zero start) over its first 200 sites of 100 training rows and 50
of its test rows each. `w1`: the network of W1 (64-128-64-1, started by the trial's seed) over its 200 sites
and 180,591 training rows. Batches of 32, one epoch, all sites in every round, default tracker and checkpoint.
CPU (user and system) of the whole process tree:

- `one_by_one`: the trials in one process, start-up excluded (imports, configurations, data, a first trial)
- `stacked`: the same, trials together as one program (what `fedray sweep` does in one process)
- `sweep`: `fedray sweep --jobs 2`, start-up excluded in the same way; `cpu_with_start` includes it
- `processes` (with `--processes`): a `fedray run` for each, start-up included

Modes are interleaved, `--pairs` times. Nothing is evaluated: a trial is training, its files and checkpoint.
The last line is JSON: medians, ratios to `one_by_one`, and the largest difference of a parameter.
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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

FEATURES, SITES, ROWS, TEST_ROWS = 64, 200, 100, 50
RATES = {"w2": (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0),
         "w1": (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15)}
PARTS = {"w2": ("data._target_=sweep.hospitals", "model=logistic"),
         "w1": ("data._target_=sweep.skewed_hospitals", "model=mlp", "model.hidden=[128,64]")}
JOBS = 2
MODES = ("one_by_one", "stacked", "sweep", "processes")
TOLERANCE = 1e-5  # of a parameter, between the first layer's product for one trial and for several


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


def skewed_hospitals() -> Any:
    """Return the sites of W1 and their training rows: which site a test row is of is not kept."""
    import torch
    import workloads

    from fedray.data.site import Dataset, SiteData
    drawn = workloads.draw_w1()
    x, y = (torch.from_numpy(drawn[name]) for name in ("x", "y"))
    ends = drawn["offsets"].tolist()
    sites = {}
    for site, (begin, end) in enumerate(pairwise(ends)):
        columns = {"x": x[begin:end].clone(), "y": y[begin:end].clone()}
        sites[f"site{site:03}"] = Open(SiteData(columns, {"train": torch.arange(end - begin)}))
    return Dataset(sites, name="w1", features=tuple(f"x{place}" for place in range(FEATURES)))


class Open:
    """Answer with a site."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __call__(self) -> Any:
        """Return it."""
        return self.data


def words(workload: str, rounds: int) -> list[str]:
    """Return what all trials share."""
    return ["experiment=none", "runtime=in_process", "report=none", *PARTS[workload], "evaluate=none",
            "local.batch_size=32", f"rounds={rounds}"]


def trials(workload: str, count: int, rounds: int) -> list[Any]:
    """Return the trials, learning rate by learning rate."""
    from fedray.sweep.space import grid
    rates = RATES[workload]
    told, seeds = ",".join(map(str, rates)), -(-count // len(rates))
    return grid([*words(workload, rounds), f"local.lr={told}", f"seed=range({seeds})"])[:count]


def tree_cpu() -> float:
    """Return the CPU seconds of this process and of all its descendants that live."""
    total = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def in_session(mode: str, workload: str, count: int, rounds: int, folder: Path) -> dict[str, float]:
    """Run the trials of a session in this process; return CPU with and without its start, and the time."""
    from fedray import config
    from fedray.sweep.job import Jobs
    from fedray.sweep.trials import Book
    def jobs_of(chosen: list[Any], place: Path) -> Any:
        place.mkdir(exist_ok=True)
        composed = {trial.id: config.compose_run(trial.overrides, allow=["sweep"]) for trial in chosen}
        return Jobs(place, composed)

    first, chosen = trials(workload, JOBS, 1), trials(workload, count, rounds)
    first_jobs, jobs = jobs_of(first, folder / "first"), jobs_of(chosen, folder)
    session = {"one_by_one": one_by_one, "sweep": side_by_side, "stacked": stacked}[mode]
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
def stacked(book: Any) -> Any:
    """Yield how trials are run as one program."""
    from fedray.sweep.kept import Kept
    from fedray.sweep.together import run_together
    kept = Kept()

    def run(chosen: list[Any], jobs: Any) -> list[Any]:
        orders = {trial.id: jobs.order(trial) for trial in chosen}
        prepared = lambda trial: lambda: orders[trial.id].run(kept)  # noqa: E731
        return list(run_together(chosen, jobs.settings(chosen), book, prepared))
    yield run


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
        for trial in trials(args.workload, args.trials, args.rounds):
            command = [sys.executable, "-m", "fedray", "run", "--json", "--allow", "sweep", *trial.overrides,
                       f"hydra.run.dir='{folder / trial.name}'"]
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"fedray run ended with exit code {process.returncode}")
            total += usage.ru_utime + usage.ru_stime
        return {"cpu_with_start": total, "wall": time.perf_counter() - started}
    command = [sys.executable, __file__, "--mode", mode, "--workload", args.workload, "--trials",
               str(args.trials), "--rounds", str(args.rounds), "--folder", str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def results(folder: Path, chosen: list[Any]) -> list[dict[str, Any]]:
    """Return each trial's parameters."""
    from safetensors.torch import load_file
    return [load_file(folder / trial.name / "model.safetensors") for trial in chosen]


def difference(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> float:
    """Return the largest difference of a parameter between two modes."""
    return max(float((one[name] - other[name]).abs().max())
               for one, other in zip(some, others, strict=True) for name in one)


def main() -> int:
    """Print the figures, JSON last; the exit code is 1 where modes give other results."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--workload", choices=tuple(PARTS), default="w2")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--modes", default=",".join(MODES), help="which, one_by_one the first")
    parser.add_argument("--processes", action="store_true", help="also a `fedray run` for each trial")
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        print(json.dumps(in_session(args.mode, args.workload, args.trials, args.rounds, args.folder)))
        return 0
    ask = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; python "
          f"{platform.python_version()}, torch {version('torch')}; commit {commit}; n {args.pairs}; "
          f"{args.trials} trials of {args.rounds} rounds of {args.workload}, {SITES} sites", flush=True)
    modes = [mode for mode in args.modes.split(",") if mode != "processes" or args.processes]
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in modes}
    apart: dict[str, float] = {}
    for _ in range(args.pairs):
        expected: list[dict[str, Any]] = []
        for mode, runs in found.items():
            with tempfile.TemporaryDirectory() as place:
                runs.append(measure(mode, args, Path(place)))
                params = results(Path(place), trials(args.workload, args.trials, args.rounds))
            expected = expected or params
            apart[mode] = max(apart.get(mode, 0.0), difference(params, expected))
            figures = "  ".join(f"{name} {value:.1f} s" for name, value in runs[-1].items())
            print(f"{mode:<12}{figures}", flush=True)
    print(json.dumps({"workload": args.workload, **told(found, apart)}))
    return 0 if max(apart.values()) <= TOLERANCE else 1


def told(found: dict[str, list[dict[str, float]]], apart: dict[str, float]) -> dict[str, Any]:
    """Return medians, ratios to the trials one by one (below 1 a mode is cheaper), and differences."""
    median = {f"{mode}.{name}": round(statistics.median(run[name] for run in runs), 3)
              for mode, runs in found.items() for name in runs[0]}
    ratios = {key: round(value / median[f"one_by_one.{key.split('.')[1]}"], 3)
              for key, value in median.items()}
    return {"benchmark": "sweep", "medians_s": median, "ratio_to_one_by_one": ratios,
            "largest_difference_of_a_parameter": apart}


if __name__ == "__main__":
    raise SystemExit(main())
