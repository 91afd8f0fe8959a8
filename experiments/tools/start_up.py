"""Where the seconds of a start go: `python experiments/tools/start_up.py [commands|first_round]`.

`commands`: processor time of commands that do nothing else, against the limit of ecosystem.md 1.2.
`first_round`: seconds from the command to the first round of `experiment=icu_mortality`, by phase, for both
runtimes. Phases of `ray_local` overlap: Ray starts while torch is imported.
"""

import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

RUNS = 7  # after one warm-up, so that files are compiled and in memory
LIMIT_S = 0.5  # CPU seconds, of ecosystem.md 1.2
COMMANDS = (["--help"], ["run", "--cfg", "job"], ["run", "--help"])
FIRST_ROUND_RUNS = 5
FIRST_ROUND_LIMITS_S = {"in_process": 3.0, "ray_local": 6.5}  # wall clock, on an idle machine


def cpu_seconds(words: list[str], bytecode: str) -> float:
    """Return user and system seconds of one start, compiled files being kept in the folder `bytecode`."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "fedray", *words], check=True, stdout=subprocess.DEVNULL,
                   env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(bytecode: str) -> bool:
    """Print minimum, median and maximum per command; tell whether the medians hold the limit."""
    print(f"CPU seconds, n={RUNS} after a warm-up, minimum / median / maximum")
    medians = []
    for words in COMMANDS:
        cpu_seconds(words, bytecode)
        seconds = sorted(cpu_seconds(words, bytecode) for _ in range(RUNS))
        medians.append(statistics.median(seconds))
        print(f"fedray {' '.join(words):<16} {seconds[0]:.2f} / {medians[-1]:.2f} / {seconds[-1]:.2f}")
    return max(medians) <= LIMIT_S


class Stamps(logging.Handler):
    """Print each phase with the time at which it ended."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one phase as a line of JSON."""
        print(json.dumps({"phase": record.getMessage(), "at": time.time()}), file=sys.stderr, flush=True)


def stamped(words: Sequence[str]) -> int:
    """Run the command in this process, every phase stamped on standard error."""
    from fedray import phases
    from fedray.cli import main as command

    phases.hand_to(Stamps())
    phases.ended("interpreter started")
    return command(list(words))


def first_round(runtime: str, bytecode: str, folder: str) -> dict[str, float]:
    """Return the seconds after the command at which each phase of one run ended, `first round` the last."""
    words = ["run", "experiment=icu_mortality", f"runtime={runtime}", "rounds=1", "report=none",
             f"runs_dir={folder}/runs"]
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": "",
                   "PYTHONUNBUFFERED": "1"}
    began, found = time.time(), {}
    with subprocess.Popen([sys.executable, __file__, "stamped", *words], stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, env=environment, cwd=folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"phase"'):
                told = json.loads(line)
                found[told["phase"]] = told["at"] - began
            elif line.startswith("round") and "first round" not in found:
                found["first round"] = time.time() - began
    if process.returncode != 0 or "first round" not in found:
        raise RuntimeError(f"the run ended with exit code {process.returncode} and phases {list(found)}")
    return found


def first_rounds(bytecode: str) -> bool:
    """Print the phases of both runtimes, measured in turn; tell whether the medians hold the limits."""
    runs: dict[str, list[dict[str, float]]] = {runtime: [] for runtime in FIRST_ROUND_LIMITS_S}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(FIRST_ROUND_RUNS + 1):
            for runtime in runs:
                seconds = first_round(runtime, bytecode, folder)
                runs[runtime] += [seconds] if number else []
    holds = True
    for runtime, limit in FIRST_ROUND_LIMITS_S.items():
        print(f"{runtime}: seconds after the command at which a phase has ended, n={FIRST_ROUND_RUNS} after "
              f"a warm-up, minimum / median / maximum; limit {limit}")
        for phase in runs[runtime][0]:
            times = sorted(run[phase] for run in runs[runtime])
            print(f"  {times[0]:6.2f} / {statistics.median(times):6.2f} / {times[-1]:6.2f}  {phase}")
        holds &= statistics.median(run["first round"] for run in runs[runtime]) <= limit
    return holds


def main() -> int:
    """Print what is asked for; return 1 where a median is above its limit."""
    asked = sys.argv[1:] or ["commands", "first_round"]
    if asked[0] == "stamped":
        return stamped(asked[1:])
    load = os.getloadavg()[0]
    print(f"python {platform.python_version()}, {os.cpu_count()} processors, load average {load:.1f}")
    with tempfile.TemporaryDirectory() as bytecode:
        held = [{"commands": commands, "first_round": first_rounds}[name](bytecode) for name in asked]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
