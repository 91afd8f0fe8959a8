"""Who contributes to a heart-disease model of four hospitals, and what does it cost to know?

    python experiments/contribution/heart_disease.py [--src $FEDRAY_DATA/heart-disease] [--figure FILE.png]

Exact Shapley values, leave-one-out, truncated Monte Carlo and GTG-Shapley of one game, under 5 training seeds
(42 to 46), each method from nothing; then the value of taking part. After that the exact values are computed
three ways in turn, 5 times after one that is not counted, and their CPU seconds compared: naively (data read,
federation made and model trained anew for every coalition, one after the other), as replays, and as replays
that train together. CPU seconds are those of this process, user and system.

The game: FedAvg weighted by rows, 15 rounds of 100 batches of 4, one linear layer from zero, z-scores by each
hospital's own training rows; AUROC on the test rows of all four.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fedray as fr
from fedray import contribution
from fedray.contribution.games import coalitions_of
from fedray.data.heart import build, heart_disease
from fedray.report import figures

SEEDS = range(42, 47)
ROUNDS, STEPS, BATCH, LR = 15, 100, 4, 0.01
REPEATS = 5
MODEL = fr.learn.logistic(13)
LOCAL = fr.learn.sgd(MODEL, lr=LR, steps=STEPS, epochs=None, batch_size=BATCH)
METHODS = ("shapley", "leave_one_out", "tmc_shapley", "gtg_shapley")
Found = Mapping[str, list[contribution.Contribution]]


def game_of(federation: Any, seed: int, metric: str, **more: Any) -> contribution.Game:
    """Return the game, of which nothing is known yet."""
    return contribution.game(
        fr.algorithms.fedavg(LOCAL), federation, init=MODEL.init(seed), rounds=ROUNDS, metric=metric,
        utility=fr.algorithms.evaluation(MODEL, split="test"), seed=seed, **more,
    )  # fmt: skip


def valued(method: str, game: contribution.Game, seed: int) -> contribution.Contribution:
    """Return what a method says."""
    if method == "gtg_shapley":
        return contribution.gtg_shapley(game, LOCAL, seed=seed)
    if method == "tmc_shapley":
        return contribution.tmc_shapley(game, seed=seed)
    return getattr(contribution, method)(game)


def cpu_s(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what some work came to and the CPU seconds that it took."""
    started = time.process_time()
    found = work()
    return found, time.process_time() - started


def naive(folder: Path, seed: int, metric: str) -> dict[frozenset[str], float]:
    """Train every coalition from the files on, as if there were no other."""
    found = {}
    for coalition in coalitions_of(tuple(heart_disease(folder))):
        data = heart_disease(folder)
        params = MODEL.init(seed)
        if coalition:
            with fr.simulate(data.select(tuple(sorted(coalition)))) as federation:
                algorithm = fr.algorithms.fedavg(LOCAL)
                params = fr.fit(algorithm, federation, init=params, rounds=ROUNDS, seed=seed).params
        with fr.simulate(data) as federation:
            program = fr.algorithms.evaluation(MODEL, split="test")
            found[coalition] = fr.compute(program, federation, state=params)["pooled"][metric]
    return found


def compare_methods(folder: Path, metric: str) -> tuple[Found, dict[str, list[float]]]:
    """Return what each method says under each seed, from nothing, and its CPU seconds."""
    told: dict[str, list[contribution.Contribution]] = {method: [] for method in METHODS}
    costs: dict[str, list[float]] = {method: [] for method in METHODS}
    with fr.simulate(heart_disease(folder)) as federation:
        game_of(federation, 0, metric)(federation.sites)  # warms up
        for seed in SEEDS:
            for method in METHODS:
                game = game_of(federation, seed, metric)
                found, seconds = cpu_s(lambda method=method, game=game, seed=seed: valued(method, game, seed))
                told[method].append(found)
                costs[method].append(seconds)
    return told, costs


def compare_costs(folder: Path, metric: str) -> dict[str, list[float]]:
    """Return CPU seconds of all 16 coalitions three ways, in turn. Raises where they come to other values."""
    def replays(together: bool) -> dict[frozenset[str], float]:
        with fr.simulate(heart_disease(folder)) as federation:
            game = game_of(federation, 42, metric, together=together)
            every = coalitions_of(game.players)
            return dict(zip(every, game.values(every), strict=True))

    ways = {"naive": lambda: naive(folder, 42, metric), "replays": lambda: replays(False),
            "together": lambda: replays(True)}  # fmt: skip
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        found = {}
        for name, way in ways.items():
            found[name], seconds = cpu_s(way)
            if repeat:
                costs[name].append(seconds)
        if found["replays"] != found["naive"]:
            raise RuntimeError("a replay came to another value than a federation of its sites alone")
    gap = max(abs(found["together"][each] - value) for each, value in found["naive"].items())
    print(f"\nlargest gap of a coalition's {metric} to naive: replays 0 (equal bits), together {gap:.1e}")
    return costs


def row(values: Sequence[float]) -> str:
    """Return mean and standard deviation of some values."""
    return f"{statistics.mean(values):+.4f} ({statistics.stdev(values):.4f})"


def tell(told: Found, costs: Mapping[str, Sequence[float]], metric: str) -> None:
    """Print what the methods say and cost."""
    print(f"\nadded to {metric}, mean over {len(SEEDS)} training seeds (standard deviation over them)\n")
    print(f"{'':14s}" + "".join(f"{method:>20s}" for method in METHODS))
    for site in told["shapley"][0].values:
        print(f"{site:14s}" + "".join(f"{row([f.values[site] for f in told[m]]):>20s}" for m in METHODS))
    print(f"{'sum':14s}" + "".join(f"{row([sum(f.values.values()) for f in told[m]]):>20s}" for m in METHODS))
    wholes = {m: row([f.whole - f.empty for f in told[m]]) for m in METHODS}
    print(f"{'all - none':14s}" + "".join(f"{wholes[m]:>20s}" for m in METHODS))
    gaps = {m: [max(abs(f.values[s] - e.values[s]) for s in e.values)
                for f, e in zip(told[m], told["shapley"], strict=True)] for m in METHODS}  # fmt: skip
    errors = {m: [max(f.errors.values(), default=0.0) for f in told[m]] for m in METHODS}
    lines = {
        "largest gap to exact": [f"{max(gaps[m]):.4f}" for m in METHODS],
        "largest std error": [f"{max(errors[m]):.4f}" for m in METHODS],
        "trainings": [str(max(f.trainings for f in told[m])) for m in METHODS],
        "other models": [str(max(f.evaluations for f in told[m])) for m in METHODS],
        "orders": [str(max(f.permutations for f in told[m])) for m in METHODS],
        "CPU s, median": [f"{statistics.median(costs[m]):.2f}" for m in METHODS],
    }
    for name, shown in lines.items():
        print(f"{name:20s}{shown[0]:>14s}" + "".join(f"{text:>20s}" for text in shown[1:]))


def taking_part(folder: Path) -> None:
    """Print what each hospital has of the common model on its own test rows."""
    with fr.simulate(heart_disease(folder)) as federation:
        found = [contribution.value_of_taking_part(game_of(federation, seed, "auroc")) for seed in SEEDS]
    print("\nAUROC on a hospital's own test rows, mean over seeds\n")
    print(f"{'':14s}{'rows':>6s}{'alone':>9s}{'together':>10s}{'gain':>20s}")
    for site in found[0].gains:
        alone = statistics.mean(each.alone[site] for each in found)
        together = statistics.mean(each.federated[site] for each in found)
        gains = [f.gains[site] for f in found]
        print(f"{site:14s}{found[0].num_examples[site]:6.0f}{alone:9.4f}{together:10.4f}{row(gains):>20s}")


def main() -> int:
    """Print the tables and write the figure."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    source = Path(os.environ.get("FEDRAY_DATA", ".")) / "heart-disease"
    parser.add_argument("--src", type=Path, default=source)
    parser.add_argument("--metric", default="auroc")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = build(given.src, Path(temporary) / "heart")
        told, costs = compare_methods(folder, given.metric)
        tell(told, costs, given.metric)
        if given.figure:
            first = [asdict(told[method][0]) for method in METHODS]
            shown = {"metric": f"{given.metric}, seed {SEEDS[0]}", "methods": first}
            given.figure.write_bytes(figures.contribution_png(shown))
        taking_part(folder)
        found = compare_costs(folder, given.metric)
    print(f"\nCPU seconds of all 16 coalitions, median of {REPEATS} in turn (smallest to largest)\n")
    for name, seconds in found.items():
        ratios = [own / base for own, base in zip(found["naive"], seconds, strict=True)]
        print(f"{name:10s}{statistics.median(seconds):7.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
              f"   naive / this: {statistics.median(ratios):.2f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
