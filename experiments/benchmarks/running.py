"""Start a measured program, read its lines, and read its processes' clocks at the first and last round."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import PeakMemory, ProcessTree, end_descendants

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT_S = 1800.0
QUIET = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0",
         "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "FLWR_TELEMETRY_ENABLED": "0",
         "PYTHONUNBUFFERED": "1"}


class SystemFailed(RuntimeError):
    """A measured program ended without all its rounds."""


@dataclass(frozen=True, kw_only=True)
class System:
    """A program to measure: its name in tables, its module in `systems`, the interpreter, further words."""

    name: str
    module: str
    python: str = sys.executable
    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run of a system came to. Rounds after the first are steady."""

    cpu_per_round: float
    wall_per_round: float
    peak_mb: float
    peak_uss_mb: float
    first_round_wall_s: float  # from the start of the program to the end of its first round
    first_round_cpu_s: float
    rest_cpu_s: float  # after the last round: the last checkpoint, the end of Ray, saving the weights
    versions: dict[str, str]
    weights: dict[str, np.ndarray]
    left_behind: int


def environment(system: System) -> dict[str, str]:
    """Return the environment of a program: one thread, no telemetry, our modules to import."""
    paths = [str(HERE)] if system.python != sys.executable else [str(HERE), str(ROOT)]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    return {**kept, **QUIET, "PYTHONPATH": os.pathsep.join(paths)}


def run(system: System, data: Path, rounds: int) -> Run:
    """Run a system once. Raises SystemFailed with the end of what it said."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        out, log = Path(folder) / "weights.npz", Path(folder) / "log.txt"
        start = [system.python, "-m", "systems", system.module]
        words = [*start, str(data), str(rounds), str(out), *system.words]
        tree = ProcessTree()
        base = tree.cpu_s()
        with log.open("wb") as said:
            began = time.perf_counter()
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                                       env=environment(system), cwd=folder, text=True)
            try:
                found = _follow(process, tree, rounds, began)
            finally:
                found_left = _end(process, tree)
        if found is None or process.returncode != 0 or not out.exists():
            raise SystemFailed(f"{system.name} ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        with np.load(out) as file:
            weights = {name: file[name] for name in file.files}
    return _summary(found, base, rounds, weights, found_left)


@dataclass
class _Followed:
    """What was read and measured while a program ran."""

    seconds: list[float]
    cpu: list[float]  # at the end of the first and the last round, and at the end of the program
    first_wall: float
    most: int
    most_uss: int
    versions: dict[str, str]


def _follow(process: subprocess.Popen[str], tree: ProcessTree, rounds: int, began: float) -> _Followed | None:
    found = _Followed([], [], 0.0, 0, 0, {})
    peak = PeakMemory(tree)
    peak.start()
    try:
        assert process.stdout is not None and process.stdin is not None
        for line in process.stdout:
            told: dict[str, Any] = json.loads(line)
            if "round" not in told:
                found.versions = {"python": told["python"], **told["versions"]}
                continue
            found.seconds.append(told["seconds"])
            if told["round"] in (0, rounds - 1):
                found.cpu.append(tree.cpu_s())
                found.first_wall = found.first_wall or time.perf_counter() - began
                peak.look()
                process.stdin.write("on\n")
                process.stdin.flush()
            if time.perf_counter() - began > LIMIT_S:
                return None
        found.cpu.append(tree.cpu_s())  # the program has closed its output; it may still be ending
    finally:
        peak.stop()
    found.most, found.most_uss = peak.most, peak.most_uss
    return found if len(found.seconds) == rounds else None


def _end(process: subprocess.Popen[str], tree: ProcessTree) -> int:
    """Wait for the program, end what it left behind, and return how many processes that were."""
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    return end_descendants(tree)


def _summary(found: _Followed, base: float, rounds: int, weights: dict[str, np.ndarray], left: int) -> Run:
    steady = max(1, rounds - 1)
    return Run(cpu_per_round=(found.cpu[1] - found.cpu[0]) / steady,
               wall_per_round=sum(found.seconds[1:]) / steady,
               peak_mb=found.most / 1e6, peak_uss_mb=found.most_uss / 1e6,
               first_round_wall_s=found.first_wall, first_round_cpu_s=found.cpu[0] - base,
               rest_cpu_s=found.cpu[-1] - found.cpu[1], versions=found.versions, weights=weights,
               left_behind=left)
