"""How much CPU do `fedray --help` and `fedray run --cfg job` take to answer? They load neither torch nor ray.

    python experiments/benchmarks/cli_start.py [--runs 9]

CPU seconds (user and system) of each command in a process of its own, interleaved, after one warm-up each,
which also writes the byte code. Excluded: reading the interpreter and the packages from a cold disk.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

COMMANDS = (("--help",), ("run", "--cfg", "job"))
LIMIT_S = 0.5  # CPU, of each command
PACKAGES = ("fedray", "hydra-core", "omegaconf")


def measure(words: tuple[str, ...]) -> tuple[float, float]:
    """Return CPU and wall-clock seconds of one command."""
    program = shutil.which("fedray", path=str(Path(sys.executable).parent))
    start = [program] if program else [sys.executable, "-m", "fedray"]
    began = time.perf_counter()
    process = subprocess.Popen([*start, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"fedray {' '.join(words)} ended with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - began


def version(package: str) -> str:
    """Return the version of a package, or that it runs from the source folder."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "from source"


def main() -> int:
    """Print the figures; the exit code is 1 if a median is over the limit."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=9, help="at least 5")
    runs = max(5, parser.parse_args().runs)
    ask = ["git", "rev-parse", "--short", "HEAD"]
    asked = subprocess.run(ask, capture_output=True, text=True, check=False)
    commit = asked.stdout.strip() if asked.returncode == 0 else "unknown"
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
          f"python {platform.python_version()}, {versions}; commit {commit}; no seed; n {runs}")
    for words in COMMANDS:
        measure(words)
    found: dict[tuple[str, ...], list[tuple[float, float]]] = {words: [] for words in COMMANDS}
    for _ in range(runs):
        for words in COMMANDS:
            found[words].append(measure(words))
    slow = 0
    for words, values in found.items():
        cpu, wall = ([value[part] for value in values] for part in (0, 1))
        slow += statistics.median(cpu) > LIMIT_S
        print(f"fedray {' '.join(words):14} CPU s min {min(cpu):.3f} median {statistics.median(cpu):.3f} "
              f"max {max(cpu):.3f}   wall s median {statistics.median(wall):.3f}   limit {LIMIT_S} CPU s")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
