"""Does a higher q raise the worst devices and bring accuracies together? q-FFL's synthetic data.

    python experiments/fedprox_synthetic/fairness.py [--rounds 1000] [--q 0 1] [--lr 0.1] [--seeds 0 1 2]

100 devices of 50 to some 600 rows, half of them alike, half of them synthetic(1, 1) (the hybrid variant); 10
a round drawn by rows; SGD with batches of 10, 1 epoch; the step of q-FedAvg is 1 / L with L = 1 / rate.
Accuracy is that of a device's own rows.
"""

import argparse
import itertools
from typing import Any

import torch
from devices import Devices, model, synthetic

import fedray as fr


def accuracies(params: Any, devices: Devices) -> torch.Tensor:
    """Return the accuracy of every device in percent, from the worst to the best."""
    found = [
        (model().predict(params, dict(data.items())).argmax(-1) == data["y"]).double().mean()
        for data in devices.test.values()
    ]
    return 100 * torch.stack(found).sort().values


def run(devices: Devices, algorithm: Any, rounds: int, seed: int) -> torch.Tensor:
    """Train and return the devices' accuracies."""
    schedule = fr.synchronous(cohort=10, sampling="weighted")
    with fr.simulate(devices.train) as federation:
        result = fr.fit(algorithm, federation, init=model().init(0), rounds=rounds, schedule=schedule,
                        seed=seed)  # fmt: skip
    return accuracies(result.params, devices)


def main() -> None:
    """Print the table, each figure the mean over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--q", type=float, nargs="+", default=[0.0, 1.0, 5.0])
    parser.add_argument("--lr", type=float, nargs="+", default=[0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    print(f"{'rate':>6}{'q':>5}{'average':>9}{'worst 10%':>11}{'best 10%':>10}{'variance':>10}")
    for lr, q in itertools.product(args.lr, args.q):
        rows = []
        for seed in args.seeds:
            devices = synthetic(1, 1, 100, seed, sigma=1.0, share_alike=0.5)
            local = fr.learn.sgd(model(), lr=lr, epochs=1, batch_size=10)
            found = run(devices, fr.algorithms.qfedavg(local, q), args.rounds, seed)
            few = len(found) // 10
            rows.append([found.mean(), found[:few].mean(), found[-few:].mean(), found.var(correction=0)])
        average, worst, best, variance = torch.tensor(rows).mean(0).tolist()
        print(f"{lr:>6g}{q:>5g}{average:>9.1f}{worst:>11.1f}{best:>10.1f}{variance:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
