"""Does a round cost what its cohort costs, however many sites there are?

    python experiments/benchmarks/many_sites.py [--sites 1000,10000] [--runtime in_process,ray] [--profile]

Sites of 50 rows x 64 inputs lie in memory-mapped shards; 100 of them a round train a logistic model, by
FedAvg and by SCAFFOLD (which keeps state at each site). Each line is a process of its own: seconds from the
data set to the first round, then CPU (whole process tree) and wall per round, and the peak of anonymous
memory over what the process held before `simulate`; pages of the shards are apart, the system can drop them.
The first two rounds are left out. The last line is JSON. `--profile` shows where the time of a round goes.
"""

import argparse
import cProfile
import json
import os
import platform
import pstats
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

import fedray as fr
from fedray.data.shard_files import INDEX, read_shards
from fedray.data.shard_writer import made_up_sites, write_shards

COHORT, ROWS, FEATURES, WARM_UP = 100, 50, 64, 2
KINDS = ("RssAnon", "RssFile")


def tree_of_processes() -> list[psutil.Process]:
    """Return this process and its descendants."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def cpu_seconds() -> float:
    """Return user and system seconds of the process tree."""
    total = 0.0
    for process in tree_of_processes():
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # ended while we looked
        total += times.user + times.system
    return total


def resident() -> dict[str, int]:
    """Return anonymous and file-backed resident bytes of the process tree."""
    total = dict.fromkeys(KINDS, 0)
    for process in tree_of_processes():
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            continue  # ended while we looked
        for line in lines:
            name, _, value = line.partition(":")
            if name in total:
                total[name] += int(value.split()[0]) * 1024
    return total


class Peak(threading.Thread):
    """Sample the memory until stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.is_over = dict.fromkeys(KINDS, 0), threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.2):
            now = resident()
            self.most = {kind: max(self.most[kind], now[kind]) for kind in KINDS}


class Meter:
    """A tracker that reads the clocks at each round, and profiles the rounds where that is asked for."""

    def __init__(self, profile: cProfile.Profile | None) -> None:
        self.profile, self.first_s = profile, 0.0
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def start(self, plan: Any, facts: Any) -> None:
        self.first_s = time.monotonic()
        if self.profile is not None:
            self.profile.enable()

    def round(self, record: Any) -> None:
        self.cpu.append(cpu_seconds())
        self.wall.append(time.monotonic())

    def evaluation(self, record: Any) -> None:
        """Nothing is evaluated here."""

    def finish(self, result: Any) -> None:
        if self.profile is not None:
            self.profile.disable()


def measure(
    folder: Path, runtime: str, algorithm: str, rounds: int, profile: cProfile.Profile | None
) -> dict[str, Any]:
    """Run one line and return its figures."""
    if runtime == "ray":
        from fedray.runtime.ray_transport import start_ray

        start_ray("local", 2)
        time.sleep(3)
    data = read_shards(folder)
    model = fr.learn.logistic(FEATURES)
    local = fr.learn.sgd(model, lr=0.05, epochs=1, batch_size=32)
    is_stateful = algorithm == "scaffold"
    program = fr.algorithms.scaffold(local, len(data)) if is_stateful else fr.algorithms.fedavg(local)
    meter, peak, idle = Meter(profile), Peak(), resident()
    peak.start()
    started, cpu = time.monotonic(), cpu_seconds()
    with fr.simulate(data, runtime=runtime, packs=2 if runtime == "ray" else 1) as federation:
        fr.fit(program, federation, init=model.init(0), rounds=rounds, tracker=meter,
               schedule=fr.synchronous(cohort=COHORT))
    peak.is_over.set()
    peak.join()
    num_rounds = rounds - WARM_UP
    wall = [b - a for a, b in zip(meter.wall[WARM_UP - 1:], meter.wall[WARM_UP:], strict=False)]
    return {
        "sites": len(data), "runtime": runtime, "algorithm": algorithm,
        "start_s": meter.first_s - started,
        "start_cpu_s": meter.cpu[0] - cpu,
        "cpu_ms": 1000 * (meter.cpu[-1] - meter.cpu[WARM_UP - 1]) / num_rounds,
        "wall_ms": 1000 * statistics.median(wall),
        "peak_mb": (peak.most["RssAnon"] - idle["RssAnon"]) / 2**20,
        "shard_pages_mb": (peak.most["RssFile"] - idle["RssFile"]) / 2**20,
    }


def ensure_shards(folder: Path, num_sites: int) -> Path:
    """Write the shards of one population where they are not there."""
    path = folder / f"sites-{num_sites}"
    if not (path / INDEX).exists():
        started = time.monotonic()
        write_shards(path, made_up_sites(num_sites, ROWS, FEATURES, seed=2))
        print(f"wrote {num_sites:,} sites in {time.monotonic() - started:.1f} s")
    return path


def show_profile(profile: cProfile.Profile, rounds: int) -> None:
    """Print the functions of fedray by the milliseconds that a round spends in them."""
    rows = []
    for (file, line, name), (_, calls, own, total, _) in pstats.Stats(profile).stats.items():  # type: ignore
        if "/fedray/" in file:
            place = f"{file.rpartition('/fedray/')[2]}:{line} {name}"
            rows.append((1000 * total / rounds, 1000 * own / rounds, calls / rounds, place))
    for total, own, calls, place in sorted(rows, reverse=True)[:28]:
        print(f"{total:10.2f} ms {own:9.2f} ms own {calls:10.1f} calls  {place}")


def main() -> int:
    """Print the table; with --one a single line, as JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sites", default="1000,10000,100000")
    parser.add_argument("--runtime", default="in_process")
    parser.add_argument("--algorithm", default="fedavg,scaffold")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fedray-many-sites")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for one line")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        profile = cProfile.Profile() if told.profile else None
        path = ensure_shards(told.folder, int(told.sites))
        print(json.dumps(measure(path, told.runtime, told.algorithm, told.rounds, profile)))
        if profile is not None:
            show_profile(profile, told.rounds)
        return 0
    print(f"{platform.platform()}, {os.cpu_count()} cores, python {platform.python_version()}, torch "
          f"{torch.__version__}; {COHORT} of the sites a round, {ROWS} rows x {FEATURES}")
    found = []
    for runtime in told.runtime.split(","):
        for algorithm in told.algorithm.split(","):
            for sites in told.sites.split(","):
                ensure_shards(told.folder, int(sites))
                found.append(child(sites, runtime, algorithm, told))
    print(json.dumps({"workload": "many_sites", "rows": found}))
    return 0


def child(sites: str, runtime: str, algorithm: str, told: argparse.Namespace) -> dict[str, Any]:
    """Measure one line in a process of its own, and print it."""
    command = [sys.executable, __file__, "--one", "--sites", sites, "--runtime", runtime, "--algorithm",
               algorithm, "--rounds", str(told.rounds), "--folder", str(told.folder)]
    try:
        output = subprocess.run(command + ["--profile"] * told.profile, check=True, capture_output=True,
                                text=True, timeout=told.patience)
    except subprocess.TimeoutExpired:
        print(f"{runtime:10} {algorithm:8} {int(sites):7,} sites: not done after {told.patience:.0f} s",
              flush=True)
        return {"sites": int(sites), "runtime": runtime, "algorithm": algorithm}
    first, *rest = output.stdout.splitlines()
    row: dict[str, Any] = json.loads(first)
    print(f"{row['runtime']:10} {row['algorithm']:8} {row['sites']:7,} sites: start {row['start_s']:6.1f} s, "
          f"round {row['cpu_ms']:7.1f} ms CPU {row['wall_ms']:7.1f} ms wall, peak {row['peak_mb']:6.0f} MB, "
          f"{row['shard_pages_mb']:5.0f} MB of shard pages", *rest, sep="\n", flush=True)
    return row


if __name__ == "__main__":
    raise SystemExit(main())
