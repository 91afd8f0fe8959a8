"""Does keeping partial work, and holding it near the global model, beat dropping the stragglers?

    python experiments/fedprox_synthetic/stragglers.py [--data 1 0.5 0 iid] [--share 0 0.5 0.9] [--seeds 0 1]

A data set is synthetic(1, 1), (0.5, 0.5), (0, 0) or the one whose devices are all alike. 10 of 30 devices a
round, drawn by rows and averaged uniformly; SGD with rate 0.01, batches of 10, 20 epochs. A straggler
has time for 1 to 20 epochs. FedAvg drops stragglers, FedProx keeps what they did.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from devices import NUM_DEVICES, Devices, model, synthetic

import fedray as fr
from fedray.rng import Key
from fedray.runtime.schedule import Synchronous

EPOCHS, BATCH, LR, COHORT = 20, 10, 0.01, 10


def stragglers(cohort: Sequence[str], round: int, seed: int, share: float) -> set[str]:
    """Return the devices of a cohort that have no time for all epochs."""
    order = torch.randperm(len(cohort), generator=Key(seed, round, "stragglers").generator()).tolist()
    return {cohort[place] for place in order[: int(share * len(cohort) + 0.5)]}


@dataclass(frozen=True, kw_only=True)
class Dropping(Synchronous):
    """A schedule that asks, of a cohort, those that are no stragglers."""

    share: float

    def cohort_of(
        self, round: int, seed: int, sites: Sequence[str], sizes: Mapping[str, int]
    ) -> tuple[str, ...]:
        """Return the sites that finish."""
        found = Synchronous.cohort_of(self, round, seed, sites, sizes)
        late = stragglers(found, round, seed, self.share)
        return tuple(site for site in found if site not in late)


@dataclass(frozen=True)
class Partial:
    """The steps that a straggler has time for; None where it has time for all."""

    schedule: Synchronous
    sizes: Mapping[str, int]
    seed: int
    share: float

    def __call__(self, site: str, round: int) -> int | None:
        """Return the steps of one site."""
        cohort = self.schedule.cohort_of(round, self.seed, sorted(self.sizes), self.sizes)
        if site not in stragglers(cohort, round, self.seed, self.share):
            return None
        draw = torch.randint(1, EPOCHS + 1, (), generator=Key(self.seed, round, site, "epochs").generator())
        return int(draw) * -(-self.sizes[site] // BATCH)


@dataclass(frozen=True)
class Measure:
    """Accuracy over all test rows and loss over all training rows, at the server: the data are made up."""

    train: Mapping[str, torch.Tensor]
    test: Mapping[str, torch.Tensor]

    def __call__(self, params: Any) -> dict[str, float]:
        """Return both."""
        found = model().predict(params, self.test).argmax(-1) == self.test["y"]
        return {"accuracy": float(found.float().mean()), "loss": float(model().loss(params, self.train))}


def together(tables: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the rows of all devices."""
    return {name: torch.cat([site[name] for site in tables.values()]) for name in ("x", "y")}


def run(devices: Devices, mu: float | None, share: float, rounds: int, seed: int) -> dict[str, float]:
    """Train and return means over the second half of the rounds; mu=None is FedAvg, which drops."""
    schedule = fr.synchronous(cohort=COHORT, sampling="weighted", quorum=0.1)
    sizes = {site: len(data["y"]) for site, data in devices.train.items()}
    local = fr.learn.sgd(model(), lr=LR, epochs=EPOCHS, batch_size=BATCH)
    algorithm = fr.algorithms.fedavg(local, weighted=False)
    if mu is None:
        settings = {name: getattr(schedule, name) for name in Synchronous.__dataclass_fields__}
        schedule = Dropping(**settings, share=share)
    else:
        kept = fr.learn.budgeted(local, Partial(schedule, sizes, seed, share))
        algorithm = fr.algorithms.fedprox(kept, mu, weighted=False)
    measure = Measure(together(devices.train), together(devices.test))
    with fr.simulate(devices.train) as federation:
        result = fr.fit(algorithm, federation, init=model().init(0), rounds=rounds, schedule=schedule,
                        seed=seed, server_evaluate=measure, every=1)  # fmt: skip
    half = [record.metrics for record in result.evaluations if record.round >= rounds // 2]
    accuracy = torch.tensor([metrics["accuracy"] for metrics in half])
    loss = torch.tensor([metrics["loss"] for metrics in half])
    return {"accuracy": float(accuracy.mean()), "sd": float(accuracy.std()), "loss": float(loss.mean()),
            "worst": float(loss.max())}  # fmt: skip


def devices_of(name: str, seed: int) -> Devices:
    """Return a data set by its name: alpha = beta, or iid."""
    if name == "iid":
        return synthetic(0, 0, NUM_DEVICES, seed, share_alike=1.0)
    return synthetic(float(name), float(name), NUM_DEVICES, seed)


def main() -> None:
    """Print the table, a line for each data set, share of stragglers, algorithm and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["1"])
    parser.add_argument("--share", type=float, nargs="+", default=[0.9])
    parser.add_argument("--mu", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    print(f"{'data':<5}{'stragglers':>11}{'seed':>5}{'accuracy':>24}{'sd':>7}{'loss':>7}{'worst':>7}")
    for name, share, seed in itertools.product(args.data, args.share, args.seeds):
        devices = devices_of(name, seed)
        for mu in (None, *args.mu):
            found = run(devices, mu, share, args.rounds, seed)
            said = "FedAvg, drops" if mu is None else f"FedProx {mu:g}"
            print(f"{name:<5}{share:>11.0%}{seed:>5}  {said:<13}{found['accuracy']:>9.3f}{found['sd']:>7.3f}"
                  f"{found['loss']:>7.3f}{found['worst']:>7.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
