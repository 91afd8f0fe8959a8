"""What do rows without a label add, where one training row in twenty has one? 20 synthetic hospitals.

    python experiments/few_labels/few_labels.py [--seeds 3] [--rounds 30] [--share 0.05]

Each seed is another federation of the synthetic ICU with other labels hidden. All arms train the same network
from the same start with full-batch local steps at all hospitals; each has the learning rate and the round
that are best on the validation rows of all hospitals, and is measured on their test rows (exact AUROC over
the rows of all hospitals together, which is possible in simulation alone).
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import fedray as fr
from fedray.data.site import Dataset
from fedray.learn.metrics import auroc

SITES, SCALE, STEPS, HIDDEN, EVERY = 20, 0.7, 5, (32,), 5
RATES = (0.1, 0.3, 1.0)
MATCHED_RATES = (0.01, 0.03, 0.09)  # its labelled loss counts 10 times; 0.1 is the most that l2 allows
PRETRAIN_ROUNDS, PRETRAIN_RATE, BIAS = 30, 0.3, -2.3


@dataclass(frozen=True)
class Scored:
    """AUROC of parameters on validation and test rows of all hospitals."""

    model: Any
    rows: dict[str, dict[str, torch.Tensor]]

    def __call__(self, params: Any) -> dict[str, float]:
        """Return both."""
        said = {split: self.model.predict(params, rows) for split, rows in self.rows.items()}
        return {
            "auroc": float(auroc(self.rows["valid"]["y"] > 0.5, said["valid"].double())),
            "test": float(auroc(self.rows["test"]["y"] > 0.5, said["test"].double())),
        }


def scored(data: Dataset, model: Any) -> Scored:
    """Return what measures a model of these hospitals."""
    opened = [data[site]() for site in data]
    rows = {split: {name: torch.cat([site.view(split)[name] for site in opened]) for name in ("x", "y")}
            for split in ("valid", "test")}  # fmt: skip
    return Scored(model, rows)


@dataclass(frozen=True)
class Study:
    """One seed: hospitals with all labels, with few, and the rows with a label alone."""

    data: Dataset
    few: Dataset
    alone: Dataset
    rounds: int
    seed: int

    def best(self, model: Any, data: Dataset, make: Callable[[float], fr.Algorithm], init: Any,
             rates: Sequence[float], rounds: int) -> tuple[float, float, float, int]:  # fmt: skip
        """Return (validation AUROC, test AUROC, rate, round), the first being the largest."""
        found = []
        for rate in rates:
            with fr.simulate(data, allow_empty=True) as federation:
                result = fr.fit(make(rate), federation, init=init, rounds=rounds, seed=self.seed, every=EVERY,
                                server_evaluate=scored(self.data, model))  # fmt: skip
            found += [(record.metrics["auroc"], record.metrics["test"], rate, record.round + 1)
                      for record in result.evaluations]  # fmt: skip
        return max(found)


def local(model: Any, rate: float) -> Any:
    return fr.learn.sgd(model, lr=rate, steps=STEPS)


def arms(study: Study) -> dict[str, tuple[float, float, float, int]]:
    """Return what each arm comes to."""
    width, many = len(study.data.features), study.rounds
    a, linear = fr.algorithms, fr.learn.logistic(width, bias=BIAS)
    model = fr.learn.mlp(width, hidden=HIDDEN, bias=BIAS)
    init, ramp = model.init(study.seed), (5, 20)

    def plain(rate: float) -> fr.Algorithm:
        return a.fedavg(local(model, rate))

    def labelled_by(labels: str, threshold: float) -> Callable[[float], fr.Algorithm]:
        weight = 1.0 if labels == "step" else None
        return lambda rate: a.pseudo_label(local(model, rate), weight, ramp, threshold, labels)

    encoder = a.pretrain(local(model, PRETRAIN_RATE), PRETRAIN_ROUNDS, num_features=width, seed=study.seed)
    with fr.simulate(study.few) as federation:
        start = fr.fit(encoder, federation, init=init, rounds=PRETRAIN_ROUNDS, seed=study.seed).params

    def frozen(rate: float) -> fr.Algorithm:
        return a.pretrain(local(model, rate), 0, num_features=width, frozen=True)

    best = study.best
    return {
        "all labels": best(model, study.data, plain, init, RATES, many),
        "labels alone": best(model, study.alone, plain, init, RATES, many),
        "labels alone, logistic": best(linear, study.alone, lambda rate: a.fedavg(local(linear, rate)),
                                       linear.init(0), RATES, many),
        "pseudo-label": best(model, study.few, labelled_by("step", 0.0), init, RATES, many),
        "pseudo-label, threshold .95": best(model, study.few, labelled_by("step", 0.95), init, RATES, many),
        "pseudo-label, once a round, .95": best(model, study.few, labelled_by("round", 0.95), init, RATES,
                                                many),
        "FedMatch": best(model, study.few, lambda rate: a.fedmatch(local(model, rate), noise=0.1), init,
                         MATCHED_RATES, many),
        "pre-trained, all fine-tuned": best(model, study.alone, plain, start, RATES, many),
        "pre-trained, encoder frozen": best(model, study.few, frozen, start, RATES, many),
    }  # fmt: skip


def main() -> None:
    """Print a row for each arm."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--share", type=float, default=0.05)
    asked = parser.parse_args()
    found: dict[str, list[tuple[float, float, float, int]]] = {}
    for seed in range(asked.seeds):
        started = time.process_time()
        data = fr.data.synthetic_icu(num_sites=SITES, scale=SCALE, seed=seed)
        few, alone = (fr.data.few_labels(data, asked.share, seed, keeps) for keeps in (True, False))
        kept = torch.cat([alone[site]().train["y"] for site in alone])
        total = sum(data[site]().train.num_rows for site in data)
        print(f"seed {seed}: {total} training rows, {len(kept)} with a label, {int(kept.sum())} deaths")
        for name, best in arms(Study(data, few, alone, asked.rounds, seed)).items():
            found.setdefault(name, []).append(best)
            print(f"  {name:32s} test {best[1]:.4f}  valid {best[0]:.4f}  rate {best[2]:g}  round {best[3]}")
        print(f"  {time.process_time() - started:.0f} s of CPU", flush=True)
    base = [test for _, test, _, _ in found["labels alone"]]
    print("\n| arm | test AUROC, mean | smallest to largest | gain over labels alone, mean | seeds better |")
    print("|---|---|---|---|---|")
    for name, seeds in found.items():
        tests = [test for _, test, _, _ in seeds]
        gains = [test - other for test, other in zip(tests, base, strict=True)]
        wins = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
        print(f"| {name} | {statistics.mean(tests):.4f} | {min(tests):.4f} to {max(tests):.4f} | "
              f"{statistics.mean(gains):+.4f} | {wins} |")  # fmt: skip


if __name__ == "__main__":
    main()
