"""Does Oort reach a loss in less simulated time than uniform cohorts? Generated hospitals of unequal speed.

    python experiments/selection/oort.py [--rounds 60] [--seeds 3] [--target 0.80]

100 generated hospitals, 10 a round, one local epoch of logistic regression; a hospital's median answer is
log-normal (sigma 1) around a minute. Told are the simulated time of all rounds, the time until the pooled
AUROC on validation rows reaches the target, and the AUROC at the end.
"""

import argparse
import statistics
from typing import Any

import fedray as fr
from fedray.runtime.oort import oort
from fedray.runtime.schedule import LognormalLatency

SITES, COHORT, EVERY = 100, 10, 3


def run(schedule: Any, rounds: int, seed: int, target: float) -> tuple[float, float, float]:
    """Return minutes of all rounds, minutes until the target (NaN where it is missed), and the last AUROC."""
    hospitals = fr.data.synthetic_icu(num_sites=SITES, scale=0.1, seed=seed)
    model = fr.learn.logistic(num_features=len(hospitals.features))
    local = fr.learn.sgd(model, lr=0.05, epochs=1, batch_size=16)
    speeds = LognormalLatency(median_s=60.0, site_sigma=1.0, round_sigma=0.2, seed=seed)
    evaluate = fr.algorithms.evaluation(model, split="valid", per_site=False)
    with fr.simulate(hospitals, latency=speeds) as federation:
        result = fr.fit(fr.algorithms.fedavg(local), federation, init=model.init(0), rounds=rounds, seed=seed,
                        schedule=schedule(local), every=EVERY, evaluate={"valid": evaluate})  # fmt: skip
    passed, ends = 0.0, []
    for record in result.metrics:
        passed += record.seconds / 60
        ends.append(passed)
    curve = [(ends[record.round], float(record.metrics["auroc"])) for record in result.evaluations]
    reached = next((minutes for minutes, auroc in curve if auroc >= target), float("nan"))
    return passed, reached, curve[-1][1]


def main() -> None:
    """Print a line for each schedule and seed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.80)
    given = parser.parse_args()
    schedules = {
        "uniform": lambda local: fr.synchronous(cohort=COHORT),
        "oort": lambda local: oort(local, cohort=COHORT),
        "oort, step 20 s": lambda local: oort(local, cohort=COHORT, pacer_step_s=20.0),
    }
    print(f"{'':<18}{'minutes':>9}{'to ' + str(given.target):>9}{'AUROC':>8}")
    for name, schedule in schedules.items():
        found = [run(schedule, given.rounds, seed, given.target) for seed in range(given.seeds)]
        for each in found:
            print(f"{name:<18}{each[0]:>9.0f}{each[1]:>9.0f}{each[2]:>8.4f}", flush=True)
        print(f"{'  mean':<18}" + "".join(f"{statistics.mean(column):>9.1f}" for column in
                                          list(zip(*found, strict=True))[:2]), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
