"""Processor time that the command needs before it does anything: `python experiments/tools/start_up.py`."""

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile

RUNS = 7  # after one warm-up, so that files are compiled and in memory
LIMIT_S = 0.5  # CPU seconds, of ecosystem.md 1.2
COMMANDS = (["--help"], ["run", "--cfg", "job"], ["run", "--help"])


def cpu_seconds(words: list[str], bytecode: str) -> float:
    """Return user and system seconds of one start, compiled files being kept in the folder `bytecode`."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "fedray", *words], check=True, stdout=subprocess.DEVNULL,
                   env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Print minimum, median and maximum per command; return 1 where a median is above the limit."""
    print(f"python {platform.python_version()}, {os.cpu_count()} processors, n={RUNS} after a warm-up")
    print("CPU seconds, minimum / median / maximum")
    medians = []
    with tempfile.TemporaryDirectory() as bytecode:
        for words in COMMANDS:
            cpu_seconds(words, bytecode)
            seconds = sorted(cpu_seconds(words, bytecode) for _ in range(RUNS))
            medians.append(statistics.median(seconds))
            print(f"fedray {' '.join(words):<16} {seconds[0]:.2f} / {medians[-1]:.2f} / {seconds[-1]:.2f}")
    return int(max(medians) > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
