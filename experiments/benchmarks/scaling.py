"""How does the cost of a site's step change with the number of sites and of parameters, on one and two packs?

    python experiments/benchmarks/scaling.py [--minutes 9] [--full]

Three series for each of 1 pack (in process) and 2 packs (Ray): all of 10 .. 100,000 sites a round, 100 of
them a round, and 10 sites with 1e3 .. 1e8 parameters. A site has 64 rows of 16 columns, two steps of batch 32
a round. CPU of the process tree of the rounds after the first, over sites asked times steps. Excluded:
start-up, the first round, and how long a site's rows take to make. Without `--full` the largest sizes are
left out, and a series ends where its next size would not end in time. Writes results/scaling.json and
results/scaling.png; the last line is JSON: microseconds of CPU per site and step by series and size.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring
import running
from peers import machine

RESULTS = Path(__file__).resolve().parent / "results"
STEPS = 2  # of systems/scale_run.py, which holds the rows
FEATURES = 16
SMALL_WIDTH = 24  # 1,033 parameters
SITES = (10, 100, 1000, 10_000, 100_000)
WIDTHS = (24, 90, 307, 990, 3153, 9990)  # 1e3 .. 1e8 parameters
COHORT = 100
FULL_ONLY = {"sites": 100_000, "parameters": 9990}
GROWTH = 12.0  # a size is ten times the one before; a point is expected to take this times its seconds


@dataclass(frozen=True)
class Point:
    """One run."""

    series: str
    packs: int
    sites: int
    width: int
    cohort: int

    @property
    def parameters(self) -> int:
        """Weights and biases of the perceptron with two hidden layers."""
        return FEATURES * self.width + self.width + self.width**2 + self.width + self.width + 1

    @property
    def size(self) -> int:
        """What the series varies."""
        return self.parameters if self.series == "parameters" else self.sites

    @property
    def name(self) -> str:
        """Series and size, to be read."""
        return f"{self.series}, {self.packs} packs, {self.size:,}"

    @property
    def rounds(self) -> int:
        """More of the short ones."""
        return 11 if self.cohort * self.parameters < 1e7 else 3


def plan(is_full: bool) -> list[list[Point]]:
    """Return the series, each from its smallest size up."""
    series = []
    for packs in (1, 2):
        sites = [size for size in SITES if is_full or size < FULL_ONLY["sites"]]
        widths = [width for width in WIDTHS if is_full or width < FULL_ONLY["parameters"]]
        series.append([Point("all sites", packs, size, SMALL_WIDTH, size) for size in sites])
        series.append([Point(f"{COHORT} of the sites", packs, size, SMALL_WIDTH, COHORT)
                       for size in sites if size >= COHORT])
        series.append([Point("parameters", packs, 10, width, 10) for width in widths])
    return series


def measure(point: Point) -> dict[str, Any]:
    """Run one point."""
    words = tuple(map(str, (point.sites, point.width, point.cohort, point.packs)))
    system = running.System(name=point.series, module="scale_run", words=words)
    run = running.run(system, "none", point.rounds)
    steps = point.cohort * STEPS
    return {"series": point.series, "packs": point.packs, "sites": point.sites, "cohort": point.cohort,
            "parameters": point.parameters, "size": point.size, "rounds": point.rounds,
            "cpu_us_per_site_step": 1e6 * run.cpu_per_round / steps,
            "wall_us_per_site_step": 1e6 * run.wall_per_round / steps, "peak_mb": run.peak_mb}


def measure_all(series: Sequence[Sequence[Point]], seconds: float) -> tuple[list[dict[str, Any]], list[str]]:
    """Run size by size over all series until the time is over; return the figures and what was left out."""
    end = time.monotonic() + seconds
    found, left_out = [], []
    took: dict[int, list[float]] = {index: [] for index in range(len(series))}
    order = [(index, points[step]) for step in range(max(map(len, series)))
             for index, points in enumerate(series) if step < len(points)]
    for index, point in order:
        began = time.monotonic()
        if began + expected(took[index]) > end:
            left_out.append(f"{point.name}: would not have ended in time")
            took[index].append(float("inf"))
            continue
        try:
            row = measure(point)
        except running.SystemFailed as error:
            print(error, file=sys.stderr, flush=True)
            left_out.append(f"{point.name}: failed")
            took[index].append(float("inf"))
            continue
        took[index].append(time.monotonic() - began)
        found.append(row)
        print(f"{point.name:40} {row['cpu_us_per_site_step']:10.1f} us CPU, "
              f"{row['wall_us_per_site_step']:10.1f} us wall per site and step", flush=True)
    return found, left_out


def expected(took: Sequence[float]) -> float:
    """Return the seconds that a series' next size may take: its first is start-up, what exceeds it grows."""
    if len(took) < 2:
        return took[0] if took else 0.0
    return took[0] + GROWTH * max(0.0, took[-1] - took[0])


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw cost per site and step over sites and over parameters."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, packs in sorted({(row["series"], row["packs"]) for row in found}):
        rows = sorted((row["size"], row["cpu_us_per_site_step"]) for row in found
                      if (row["series"], row["packs"]) == (name, packs))
        where = "in process" if packs == 1 else f"Ray, {packs} packs"
        label = where if name == "parameters" else f"{name} a round, {where}"
        axes = right if name == "parameters" else left
        axes.plot(*zip(*rows, strict=True), "o-" if packs == 1 else "s--", label=label)
    for axes, what in ((left, "sites (1,033 parameters)"), (right, "parameters (10 sites)")):
        axes.set(xscale="log", yscale="log", xlabel=what, ylabel="CPU per site and step, µs")
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> int:
    """Measure, write and draw."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="no size is begun that would end later")
    parser.add_argument("--full", action="store_true", help="100,000 sites and 1e8 parameters too, no limit")
    given = parser.parse_args()
    measuring.end_orderly()
    facts = {"machine": machine(), "rows_per_site": 64, "batch_size": 32, "steps_per_round": STEPS,
             "full": given.full, "seed": 0, "n": 1}
    seconds = float("inf") if given.full else 60 * given.minutes
    found, left_out = measure_all(plan(given.full), seconds)
    RESULTS.mkdir(exist_ok=True)
    told = {**facts, "points": found, "left_out": left_out}
    (RESULTS / "scaling.json").write_text(json.dumps(told, indent=1) + "\n")
    draw(found, RESULTS / "scaling.png")
    print(json.dumps(facts["machine"]))
    if left_out:
        print("left out: " + "; ".join(left_out))
    short: dict[str, dict[str, float]] = {}
    for row in found:
        key = f"{row['series']}, {row['packs']} packs"
        short.setdefault(key, {})[str(row["size"])] = round(row["cpu_us_per_site_step"], 1)
    print(json.dumps(short))
    return 0


if __name__ == "__main__":
    sys.exit(main())
