"""Does the memory of `data build eicu` stay flat in the rows of vitalPeriodic, and how fast are they read?

    python experiments/benchmarks/data_build.py [--millions 2 20] [--runs 5] [--gz]

Tables of one synthetic federation (20,000 stays at --scale 0.1), with vitalPeriodic at the given sizes: the
same stays, more hours each, in the 19 columns of eICU. Each build runs in a process of its own whose
resident set is sampled every 20 ms by its parent, sizes interleaved, after one warm-up that also loads the
disk cache. Rates are vitalPeriodic rows by the wall-clock seconds of the whole build (all tables, splits,
Parquet files and hashes). Excluded: making the tables, starting the interpreter.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from pyarrow import csv

from fedray.data import synth_tables

SAMPLE_S = 0.02
GROWTH = 1.10  # largest peak for ten times the rows, in peaks of the smaller table
LIMIT_BYTES = 4 * 2**30
PART = 500_000
SEED = 7
VITALS = {  # mean, deviation, share charted
          "temperature": (37.0, 0.5, 0.1), "sao2": (96.0, 2.5, 0.9), "heartrate": (85.0, 15.0, 0.95),
          "respiration": (19.0, 5.0, 0.9), "cvp": (12.0, 4.0, 0.1), "etco2": (35.0, 5.0, 0.05),
          "systemicsystolic": (120.0, 20.0, 0.3), "systemicdiastolic": (62.0, 12.0, 0.3),
          "systemicmean": (80.0, 14.0, 0.3), "pasystolic": (35.0, 8.0, 0.03),
          "padiastolic": (18.0, 5.0, 0.03), "pamean": (25.0, 6.0, 0.03), "st1": (0.0, 0.5, 0.2),
          "st2": (0.0, 0.5, 0.2), "st3": (0.0, 0.5, 0.2), "icp": (10.0, 4.0, 0.01)}
CHILD = ("import sys, time, fedray.data.eicu as eicu; print('ready', flush=True); began = "
         "time.perf_counter(); eicu.build(sys.argv[1], sys.argv[2], cohort='grid24', seeds=range(5)); "
         "print(time.perf_counter() - began, flush=True)")


def write_periodic(path: Path, stays: np.ndarray, rows: int) -> None:
    """Write a vitalPeriodic table: 5-minute rows, the same number for each stay, one stay after another."""
    rng = np.random.default_rng(SEED)
    with pa.output_stream(str(path)) as stream:  # compresses what ends in .gz
        for start in range(0, rows, PART):
            number = np.arange(start, min(start + PART, rows))
            place = number * len(stays) // rows
            first = -(-place * rows // len(stays))  # number of the stay's first row
            columns = {"vitalperiodicid": number, "patientunitstayid": stays[place],
                       "observationoffset": (number - first) * 5}
            for name, (mean, deviation, share) in VITALS.items():
                value = np.round(rng.normal(mean, deviation, len(number)), 1)
                columns[name] = pa.array(value, mask=rng.random(len(number)) >= share)
            options = csv.WriteOptions(include_header=start == 0, quoting_style="none")
            csv.write_csv(pa.table(columns), stream, options)


def write_lab(path: Path, stays: np.ndarray) -> None:
    """Write a small lab table: one creatinine a stay."""
    csv.write_csv(pa.table({"labid": np.arange(len(stays)), "patientunitstayid": stays,
                            "labresultoffset": np.full(len(stays), 60),
                            "labname": ["creatinine"] * len(stays),
                            "labresult": np.full(len(stays), 1.0)}), path)


def measure(src: Path, out: Path) -> tuple[float, int]:
    """Build in a process of its own; return its seconds and the largest resident set seen."""
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(src), str(out)], stdout=subprocess.PIPE,
                             text=True, env={**os.environ, "PYTHONPATH": root}, cwd=root)
    process, peak = psutil.Process(child.pid), 0
    assert child.stdout is not None
    while child.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(SAMPLE_S)
    words = child.stdout.read().split()
    if child.wait() or len(words) != 2:
        sys.exit(f"the build of {src} failed")
    shutil.rmtree(out)
    return float(words[1]), peak


def main() -> int:
    """Print the figures; the exit code is 1 if memory is not flat or above its limit."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--millions", type=float, nargs="+", default=[2, 20], help="sizes of vitalPeriodic")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scale", type=float, default=0.1, help="1 is 200,859 unit stays")
    parser.add_argument("--gz", action="store_true", help="vitalPeriodic as csv.gz")
    given = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            check=False)
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; python "
          f"{platform.python_version()}, pyarrow {pa.__version__}, pandas {metadata.version('pandas')}; "
          f"commit {commit.stdout.strip() or 'unknown'}; seed {SEED}; n {given.runs}")
    with tempfile.TemporaryDirectory() as name:
        folders = make_tables(Path(name), given.millions, given.scale, ".csv.gz" if given.gz else ".csv")
        measure(folders[0], Path(name) / "out")
        found: list[list[tuple[float, int]]] = [[] for _ in folders]
        for _ in range(given.runs):
            for figures, folder in zip(found, folders, strict=True):
                figures.append(measure(folder, Path(name) / "out"))
    return report(given.millions, found)


def make_tables(folder: Path, millions: list[float], scale: float, ending: str) -> list[Path]:
    """Write the tables once, and a folder a size that links to them."""
    shared = folder / "shared"
    synth_tables.write(shared, scale=scale, seed=SEED, hourly=False)
    stays = np.sort(csv.read_csv(shared / "patient.csv.gz")["patientunitstayid"].to_numpy())
    write_lab(shared / "lab.csv", stays)
    print(f"{len(stays):,} unit stays")
    folders = [folder / f"rows_{size:g}" for size in millions]
    for place, size in zip(folders, millions, strict=True):
        place.mkdir()
        for path in shared.iterdir():
            (place / path.name).symlink_to(path)
        periodic = place / f"vitalPeriodic{ending}"
        write_periodic(periodic, stays, int(size * 1e6))
        print(f"vitalPeriodic with {size:g} M rows: {periodic.stat().st_size / 2**20:,.0f} MiB", flush=True)
    return folders


def report(millions: list[float], found: list[list[tuple[float, int]]]) -> int:
    """Print minimum, median and maximum a size; return 1 if memory is not flat or above its limit."""
    peaks = []
    for size, figures in zip(millions, found, strict=True):
        seconds = sorted(second for second, _ in figures)
        memory = sorted(peak for _, peak in figures)
        peaks.append(memory[-1])
        print(f"{size:g} M rows: {seconds[0]:.1f} / {statistics.median(seconds):.1f} / {seconds[-1]:.1f} s, "
              f"{size / statistics.median(seconds):.2f} M rows/s; peak resident set {memory[0] / 2**20:.0f} "
              f"/ {statistics.median(memory) / 2**20:.0f} / {memory[-1] / 2**20:.0f} MiB")
    growth = peaks[-1] / peaks[0]
    holds = growth <= GROWTH and max(peaks) <= LIMIT_BYTES
    print(f"largest peak of the largest table over that of the smallest: {growth:.3f}, wanted <= {GROWTH}: "
          f"{'holds' if holds else 'FAILS'}")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
