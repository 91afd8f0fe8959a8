"""How long until AUROC 0.83, in simulated time: buffered asynchronous rounds against synchronous ones?

    python experiments/asynchronous/time_to_auroc.py [--busy 20] [--out experiments/asynchronous/results]

The synthetic ICU (208 hospitals), logistic regression, one local epoch in batches of 16. Both methods keep
equally many hospitals busy and are tuned on the same grid, on seeds of their own. A hospital's speed is its
own, lognormal(0, 1) seconds an answer; then the same with equal speeds. AUROC is that of all test rows, after
every server step. Two times are taken, and rates are chosen for each: that of the first step at or above the
bar, and that from which on no step of the run is below it. Writes JSON and a picture.
"""

import argparse
import functools
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import fedray as fr
from fedray.learn import optimizer
from fedray.learn.metrics import auroc
from fedray.runtime.schedule import LognormalLatency

SIZE, BATCH = 10, 16
LRS, SERVER_LRS = (0.1, 0.3, 1.0, 3.0), (0.3, 1.0, 3.0)
SEEDS, TUNING_SEEDS = (0, 1, 2, 3, 4), (100, 102)  # with 101 no rates reach the bar
BAR, LIMIT_S = 0.83, 400.0
CONTRIBUTIONS = 1200  # of a run
METHODS = ("synchronous", "buffered")
SIGMA = {"lognormal(0, 1)": 1.0, "equal": 0.0}


@dataclass(frozen=True)
class Rates:
    """A point of the grid."""

    lr: float
    server_lr: float


@dataclass(frozen=True)
class Measure:
    """AUROC of all test rows, at the server: the patients are made up."""

    model: Any
    x: torch.Tensor
    y: torch.Tensor

    def __call__(self, params: Any) -> dict[str, float]:
        """Return the figure of some parameters."""
        score = self.model.predict(params, {"x": self.x}).flatten()
        return {"auroc": float(auroc(self.y.numpy(), score.numpy()))}


class Curve:
    """A tracker: (simulated seconds, AUROC) after each step, and how old the contributions were."""

    def __init__(self) -> None:
        self.seconds, self.points, self.ages = 0.0, [(0.0, 0.5)], []

    def start(self, plan: Any, facts: Any) -> None:
        """Nothing is to be kept."""

    def round(self, record: Any) -> None:
        """Move the clock."""
        self.seconds += record.seconds
        self.ages.append(record.staleness_mean or 0.0)

    def evaluation(self, record: Any) -> None:
        """Take a figure."""
        self.points.append((self.seconds, record.metrics["auroc"]))

    def finish(self, result: Any) -> None:
        """Nothing is open."""


def reached(points: Iterable[tuple[float, float]]) -> float:
    """Return when the bar was reached first; infinity where it never was."""
    return next((seconds for seconds, value in points if value >= BAR), math.inf)


@functools.cache
def hospitals(seed: int) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """Return the sites' data of a seed, and all test rows."""
    data = {site: opener() for site, opener in fr.data.synthetic_icu(seed=seed).items()}
    tests = [each.test for each in data.values()]
    return data, torch.cat([rows["x"] for rows in tests]), torch.cat([rows["y"] for rows in tests])


def for_good(points: Sequence[tuple[float, float]]) -> float:
    """Return from when on the bar was kept; infinity where the last point is below it."""
    below = max(place for place, (_, value) in enumerate(points) if value < BAR)
    return points[below + 1][0] if below + 1 < len(points) else math.inf


def train(method: str, rates: Rates, seed: int, sigma: float, busy: int) -> Curve:
    """Return the curve of one run."""
    data, x, y = hospitals(seed)
    model = fr.learn.logistic(x.shape[1])
    local = fr.learn.sgd(model, lr=rates.lr, epochs=1, batch_size=BATCH)
    rule = optimizer.sgd(rates.server_lr)
    if method == "synchronous":
        algorithm: Any = fr.algorithms.fedavg(local, rule)
        schedule: Any = fr.synchronous(cohort=busy)
    else:
        algorithm = fr.algorithms.fedbuff(local, rule)
        schedule = fr.buffered(size=SIZE, concurrency=busy)
    latency = LognormalLatency(site_sigma=sigma, round_sigma=0.0, seed=seed)
    curve = Curve()
    with fr.simulate(data, latency=latency) as federation:
        fr.fit(
            algorithm,
            federation,
            init=model.init(0),
            rounds=CONTRIBUTIONS // (busy if method == "synchronous" else SIZE),
            schedule=schedule,
            tracker=curve,
            every=1,
            server_evaluate=Measure(model, x, y),
            seed=seed,
        )
    return curve


TIMES = {"first": reached, "kept": for_good}


def grid(method: str, sigma: float, busy: int) -> dict[Rates, list[Curve]]:
    """Return the curves of the tuning seeds at each point of the grid."""
    points = [Rates(*pair) for pair in itertools.product(LRS, SERVER_LRS)]
    return {rates: [train(method, rates, seed, sigma, busy) for seed in TUNING_SEEDS] for rates in points}


def measured(method: str, rates: Rates, kind: str, sigma: float, busy: int) -> dict[str, Any]:
    """Return the times of all seeds with some rates."""
    curves = [train(method, rates, seed, sigma, busy) for seed in SEEDS]
    times = [TIMES[kind](curve.points) for curve in curves]
    return {
        "rates": asdict(rates),
        "seconds": times,
        "steps": [
            next((step for step, point in enumerate(curve.points) if point[0] >= seconds), None)
            for curve, seconds in zip(curves, times, strict=True)
        ],
        "age": statistics.mean(statistics.mean(curve.ages) for curve in curves),
        "last_auroc": [curve.points[-1][1] for curve in curves],
        "curves": [curve.points for curve in curves],
    }


def compare(speeds: str, busy: int) -> dict[str, Any]:
    """Tune both methods for each kind of time, then run all seeds with both."""
    grids = {method: grid(method, SIGMA[speeds], busy) for method in METHODS}
    found: dict[str, Any] = {}
    for kind, time_of in TIMES.items():
        found[kind] = {}
        for method, tried in grids.items():
            means = {
                rates: statistics.mean(min(LIMIT_S, time_of(curve.points)) for curve in curves)
                for rates, curves in tried.items()
            }
            best = min(means, key=means.__getitem__)
            found[kind][method] = measured(method, best, kind, SIGMA[speeds], busy)
            found[kind][method]["tuning"] = [{**asdict(each), "mean_s": mean} for each, mean in means.items()]
        pairs = zip(found[kind]["buffered"]["seconds"], found[kind]["synchronous"]["seconds"], strict=True)
        found[kind]["ratios"] = [
            buffered / synchronous if math.isfinite(synchronous) else None for buffered, synchronous in pairs
        ]
        known = [math.inf if ratio is None else ratio for ratio in found[kind]["ratios"]]
        found[kind]["median_ratio"] = statistics.median(known)
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw AUROC over simulated seconds: a column for each kind of speeds, a row for each kind of time."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(len(TIMES), len(SIGMA), figsize=(9, 6), sharey=True)
    for row, kind in zip(panels, TIMES, strict=True):
        for panel, (speeds, both) in zip(row, found.items(), strict=True):
            each = both[kind]
            for method, colour in zip(METHODS, ("#8a8a8a", "#0b7a75"), strict=True):
                for number, curve in enumerate(each[method]["curves"]):
                    label = method if not number else None
                    panel.plot(*zip(*curve, strict=True), color=colour, lw=1.0, alpha=0.8, label=label)
            panel.axhline(BAR, color="#b03a2e", lw=0.8, ls="--")
            last = max(min(LIMIT_S, seconds) for method in METHODS for seconds in each[method]["seconds"])
            panel.set(xlim=(0, 1.2 * last), ylim=(0.75, 0.87))
            title = f"speeds {speeds}; tuned for {kind}: ratio {each['median_ratio']:.2f}"
            panel.set_title(title, fontsize=9)
        row[0].set_ylabel("AUROC, all test rows")
    for panel in panels[-1]:
        panel.set_xlabel("simulated seconds")
    panels[0][0].legend(loc="lower right", frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def told(found: dict[str, Any]) -> str:
    """Return the figures as lines."""
    lines = []
    for speeds, both in found.items():
        for kind, each in both.items():
            ratios = [round(ratio, 2) if ratio is not None else None for ratio in each["ratios"]]
            lines.append(f"speeds {speeds}, {kind}: ratios {ratios}, median {each['median_ratio']:.2f}")
            for method in METHODS:
                one = each[method]
                seconds = [round(each, 1) for each in one["seconds"]]
                last = [round(each, 3) for each in one["last_auroc"]]
                lines.append(f"  {method:<12} {seconds} s, steps {one['steps']}, {one['rates']}, "
                             f"age {one['age']:.1f}, last AUROC {last}")  # fmt: skip
    return "\n".join(lines)


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it, without the curves, which are in the picture."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if key != "curves"}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(words: list[str] | None = None) -> int:
    """Run everything, print the figures, write them down; 1 where the bar of 0.6 is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--busy", type=int, default=20, help="hospitals that work at a time")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    found = {speeds: compare(speeds, given.busy) for speeds in SIGMA}
    print(told(found))
    print(f"{time.process_time() - began:.0f} s of CPU")
    draw(found, given.out / f"busy-{given.busy}.png")
    path = given.out / f"busy-{given.busy}.json"
    path.write_text(json.dumps(plain(found), indent=1) + "\n", "utf-8")
    return 0 if all(each["median_ratio"] <= 0.6 for each in found["lognormal(0, 1)"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
