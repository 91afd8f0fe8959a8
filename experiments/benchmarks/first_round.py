"""How long does `fedray run experiment=icu_mortality` take from the command to its first round, and where?

    python experiments/benchmarks/first_round.py [--runs 5]

Seconds from the start of the process to the line of round 1, for runtime=ray_local and runtime=in_process, in
turn, after one warm-up each, which also writes the byte code. The phases come from as many further runs of
the same command with stamps around the functions that it calls. Excluded: reading packages from a cold disk,
and what follows the first round; the run is asked for two rounds. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measuring
import running
import tables
from peers import machine

LIMITS_S = {"ray_local": 6.5, "in_process": 3.0}  # on an idle machine
STAMPED = running.HERE / "systems" / "stamped_command.py"
LAST = "first round"


def start(runtime: str, folder: Path, stamps: Path | None = None) -> float:
    """Run the command and return the seconds to its first round. Raises SystemFailed where none comes."""
    command = ["-m", "fedray"] if stamps is None else [str(STAMPED), str(stamps)]
    words = [sys.executable, *command, "run", "experiment=icu_mortality", f"runtime={runtime}", "rounds=2",
             f"runs_dir={folder / 'runs'}"]
    environment = {**os.environ, "PYTHONPATH": str(running.ROOT), "PYTHONUNBUFFERED": "1"}
    began, said = time.time(), []
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
                          env=environment) as process:
        assert process.stdout is not None
        found = None
        for line in process.stdout:
            said.append(line)
            if found is None and line.split()[:1] == ["round"]:
                found = time.time() - began
    if process.returncode != 0 or found is None:
        raise running.SystemFailed("".join(said)[-2000:])
    if stamps is not None:
        lines = [line.split("\t") for line in stamps.read_text().splitlines()]
        times = [(phase, float(at) - began) for phase, at in lines] + [(LAST, found)]
        stamps.write_text(json.dumps(times))
    return found


def phases(runtime: str, folder: Path, runs: int) -> dict[str, float]:
    """Return the median seconds of each phase, in order."""
    seconds: dict[str, list[float]] = {}
    for number in range(runs):
        stamps = folder / f"stamps_{runtime}_{number}.json"
        start(runtime, folder, stamps)
        before = 0.0
        for phase, at in json.loads(stamps.read_text()):
            seconds.setdefault(phase, []).append(at - before)
            before = at
    return {phase: statistics.median(values) for phase, values in seconds.items()}


def main() -> int:
    """Print and write the figures; the exit code is 1 if a median is over its limit."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    measuring.end_orderly()
    facts = {"machine": machine(), "runs": runs, "limits_s": LIMITS_S}
    found: dict[str, list[float]] = {runtime: [] for runtime in LIMITS_S}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        for number in range(runs + 1):
            for runtime in LIMITS_S:
                seconds = start(runtime, folder)
                if number:
                    found[runtime].append(seconds)
        parts = {runtime: phases(runtime, folder, runs) for runtime in LIMITS_S}
    spread = {runtime: tables.spread(values) for runtime, values in found.items()}
    out = running.HERE / "results" / "first_round.json"
    out.write_text(json.dumps({**facts, "seconds": spread, "phases": parts}, indent=1) + "\n")
    print(json.dumps(facts["machine"]))
    for runtime, limit in LIMITS_S.items():
        value = spread[runtime]
        print(f"{runtime}: median {value['median']:.2f} s ({value['min']:.2f}-{value['max']:.2f}), "
              f"{'holds' if value['median'] <= limit else 'FAILS'} {limit} s")
        for phase, took in parts[runtime].items():
            print(f"    {took:6.2f} s  {phase}")
    medians = {runtime: tables.rounded(value["median"]) for runtime, value in spread.items()}
    print(json.dumps({"first_round_s": medians}))
    return int(any(medians[runtime] > limit for runtime, limit in LIMITS_S.items()))


if __name__ == "__main__":
    sys.exit(main())
