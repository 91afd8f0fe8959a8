"""The airlock: how often it stops an honest update, how often one that has memorised, and what it costs.

    python -m experiments.attacks.privacy.airlock [--seeds 5]

50 hospitals of a synthetic ICU of eICU's size, all asked; a hospital that trains for one or five epochs is
honest, one that trains for a hundred has memorised. 8 canaries a site where canaries are tested. The cost
is of 200 hospitals in one process, rounds with and without the airlock in turn.
"""

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import fedray as fr
from fedray.airlock import Canaries, Exposure, Membership, Rebuilt, RowsBehind, Test, airlock
from fedray.data.site import Dataset

HONEST = {"1 epoch": (1, 0.1), "5 epochs": (5, 0.1)}
MEMORISED = {"100 epochs": (100, 0.2)}
CANARIES = Canaries(count=8, seed=5)
TESTS: dict[str, Test] = {"membership": Membership(), "canaries": Exposure(CANARIES), "rebuilt": Rebuilt()}


@cache
def icu(seed: int) -> Dataset:
    """Return 50 hospitals, opened."""
    made = fr.data.synthetic_icu(num_sites=50, scale=1.0, seed=seed)
    tables = {site: opened() for site, opened in made.items()}
    return replace(made, sites={site: (lambda table=table: table) for site, table in tables.items()})


def withheld(
    hospitals: Dataset, test: Test, hidden: Sequence[int], epochs: int, rate: float, rounds: int
) -> list[int]:
    """Return how many sites withheld in each round, all sites starting from what all others have sent."""
    width = len(hospitals.features)
    model = fr.learn.mlp(width, hidden=hidden) if hidden else fr.learn.logistic(width)
    local = fr.learn.sgd(model, lr=rate, epochs=epochs, batch_size=32)
    schedule = fr.synchronous(quorum=0.02, retries=0, on_failure="skip")
    with fr.simulate(hospitals) as federation:
        result = fr.fit(
            fr.algorithms.fedavg(local), federation, init=model.init(0), rounds=rounds, schedule=schedule,
            passes=[airlock(withhold=[test])],
        )  # fmt: skip
    return [len(record.failures) for record in result.metrics]


def shares(seeds: int, rounds: int = 10) -> dict[str, Any]:
    """Return, by test and training, the share of site-rounds that were withheld, and the most of a round."""
    found: dict[str, Any] = {}
    for test_name, test in TESTS.items():
        for name, (epochs, rate) in {**HONEST, **MEMORISED}.items():
            is_honest = name in HONEST
            for hidden in ((), (32,)) if is_honest else ((64,),):
                lost = []
                for seed in range(seeds):
                    hospitals = icu(seed)
                    data = CANARIES.planted(hospitals) if test_name == "canaries" else hospitals
                    lost += withheld(data, test, hidden, epochs, rate, rounds if is_honest else 1)
                kind = f"{test_name}, {name}, {'network' if hidden else 'logistic'}"
                found[kind] = {"share": sum(lost) / (50 * len(lost)), "most of 50": max(lost)}
                print(kind, found[kind], flush=True)
    return found


def cost(rounds: int = 10, sites: int = 200) -> dict[str, float]:
    """Return CPU milliseconds of a round of all sites, least of five, with no airlock and with each test."""
    hospitals = fr.data.synthetic_icu(num_sites=sites, scale=0.5, seed=7)
    model = fr.learn.mlp(len(hospitals.features), hidden=(32,))
    local = fr.learn.sgd(model, lr=0.1, epochs=1, batch_size=32)
    tests: Mapping[str, list[Test]] = {
        "rows": [RowsBehind(1)],
        "membership": [Membership()],
        "rebuilt": [Rebuilt()],
        "rows and membership": [RowsBehind(1), Membership()],
    }
    passes = {"none": [], **{name: [airlock(report=found)] for name, found in tests.items()}}
    with fr.simulate(hospitals) as federation:

        def taken(chosen: list[Any], rounds: int) -> float:
            started = time.process_time()
            fr.fit(fr.algorithms.fedavg(local), federation, init=model.init(0), rounds=rounds, passes=chosen)
            return 1e3 * (time.process_time() - started)

        runs = [
            {name: (taken(it, 2 + rounds) - taken(it, 2)) / rounds for name, it in passes.items()}
            for _ in range(6)
        ][1:]
    found = {name: round(min(run[name] for run in runs), 1) for name in passes}
    print("CPU ms a round:", found, flush=True)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cost", action="store_true", help="only that")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    results = Path(__file__).parent / "results" / "airlock.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    found["cpu_ms_a_round"] = cost()
    if not given.cost:
        found |= {"withheld": shares(given.seeds), "seeds": given.seeds, "torch": torch.__version__}
    results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
