"""Start a measured program, read its lines, and read its processes' clocks at the first and last round."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import PeakMemory, ProcessTree, end_what_is_left

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT_S = 1800.0
OnLine = Callable[[dict[str, Any]], None]
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
    closing_cpu_s: float  # of fedray: from the last round to the end of `fit`, its last checkpoint in it
    versions: dict[str, str]
    weights: dict[str, np.ndarray]
    left_behind: int


def environment(system: System) -> dict[str, str]:
    """Return the environment of a program: one thread, no telemetry, our modules to import."""
    paths = [str(HERE)] if system.python != sys.executable else [str(HERE), str(ROOT)]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    return {**kept, **QUIET, "PYTHONPATH": os.pathsep.join(paths)}


def run(system: System, data: Path | str, rounds: int, on_line: OnLine | None = None) -> Run:
    """Run a system once. Raises SystemFailed with the end of what it said.

    `on_line` is given each line where the program waits, before the program goes on.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        out, log = Path(folder) / "weights.npz", Path(folder) / "log.txt"
        start = [system.python, "-m", "systems", system.module]
        words = [*start, str(data), str(rounds), str(out), *system.words]
        with log.open("wb") as said:
            began = time.perf_counter()
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                                       env=environment(system), cwd=folder, text=True)
            tree = ProcessTree(process.pid)
            try:
                found = _follow(process, tree, rounds, began, on_line)
            except BaseException:
                process.kill()
                raise
            finally:
                found_left = _end(process, tree)
        if found is None or process.returncode != 0 or not out.exists():
            raise SystemFailed(f"{system.name} ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        with np.load(out) as file:
            weights = {name: file[name] for name in file.files}
    return _summary(found, rounds, weights, found_left)


@dataclass
class _Followed:
    """What was read and measured while a program ran."""

    seconds: list[float]
    cpu: list[float]  # at the end of the first and the last round
    closing_cpu: float
    first_wall: float
    most: int
    most_uss: int
    versions: dict[str, str]

    def take(self, told: dict[str, Any]) -> None:
        """Take a line."""
        if "round" in told:
            self.seconds.append(told["seconds"])
        elif "versions" in told:
            self.versions = {"python": told["python"], **told["versions"]}


def _follow(process: subprocess.Popen[str], tree: ProcessTree, rounds: int, began: float,
            on_line: OnLine | None) -> _Followed | None:
    found = _Followed([], [], 0.0, 0.0, 0, 0, {})
    peak = PeakMemory(tree)
    peak.start()
    try:
        assert process.stdout is not None and process.stdin is not None
        for line in process.stdout:
            told: dict[str, Any] = json.loads(line)
            found.take(told)
            waits = "ask" in told or told.get("round") in (0, rounds - 1)
            if waits and "round" in told:
                found.cpu.append(tree.cpu_s())
                found.first_wall = found.first_wall or time.perf_counter() - began
                peak.look()
            elif told.get("finished"):
                found.closing_cpu = tree.cpu_s() - found.cpu[-1]
            if waits:
                if on_line is not None:
                    on_line(told)
                process.stdin.write("on\n")
                process.stdin.flush()
            if time.perf_counter() - began > LIMIT_S:
                return None
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
    return end_what_is_left(tree)


def _summary(found: _Followed, rounds: int, weights: dict[str, np.ndarray], left: int) -> Run:
    steady = max(1, rounds - 1)
    return Run(cpu_per_round=(found.cpu[1] - found.cpu[0]) / steady,
               wall_per_round=sum(found.seconds[1:]) / steady,
               peak_mb=found.most / 1e6, peak_uss_mb=found.most_uss / 1e6,
               first_round_wall_s=found.first_wall, first_round_cpu_s=found.cpu[0],
               closing_cpu_s=found.closing_cpu, versions=found.versions, weights=weights,
               left_behind=left)
