"""Does a partner gain from a shared trunk over its own model? Ten partners with generated assays.

    python experiments/melloddy/assays.py [--seeds 3] [--rounds 40] [--partners 10]

The partners are those of `data=assays` (`fedray/data/assays.py` says how they are made). Both arms train the
same model (256 -> 64 -> 32, a linear head) with the same settings, each with the learning rate and the round
that are best on its own validation compounds. The single-partner arm is the same program with one site.
"""

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import fedray as fr
from fedray.algorithms.evaluation import UNDEFINED, as_list
from fedray.data.assays import BITS, MISSING
from fedray.data.site import SiteData

WIDE, NARROW, EVERY = 64, 32, 5
RATES = (1e-3, 3e-3)
FEWEST = 3  # labels of each kind that an assay needs to be measured


def partners(count: int, seed: int) -> dict[str, SiteData]:
    """Return {partner: compounds with sparse labels}."""
    return {name: opened() for name, opened in fr.data.assays(count, seed).items()}


def logits(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return one number for each compound and assay of a partner."""
    for layer in ("first", "second"):
        x = torch.relu(x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"])
    return x @ params["head.weight"].T + params["head.bias"]


def loss(params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mean cross-entropy over the labels that are there."""
    there = batch["y"] != MISSING
    found = F.binary_cross_entropy_with_logits(
        logits(params, batch["x"]), batch["y"].clamp_min(0), reduction="none"
    )
    return (found * there).sum() / there.sum().clamp_min(1)


def first_head(data: Any, rng: Any) -> dict[str, Tensor]:
    """Return a head for the assays of a partner."""
    tasks, draws = data.train["y"].shape[1], rng.generator()
    weight = torch.empty(tasks, NARROW).uniform_(-(NARROW**-0.5), NARROW**-0.5, generator=draws)
    return {"weight": weight, "bias": torch.full((tasks,), -0.8)}


def first_trunk(seed: int) -> dict[str, Tensor]:
    """Return the common start of the trunk."""
    draws, made = torch.Generator().manual_seed(seed), {}
    for name, inputs, outputs in (("first", BITS, WIDE), ("second", WIDE, NARROW)):
        made[f"{name}.weight"] = torch.empty(outputs, inputs).uniform_(
            -(inputs**-0.5), inputs**-0.5, generator=draws
        )
        made[f"{name}.bias"] = torch.zeros(outputs)
    return made


def ranked(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the AUROC of one assay, None where it has too few labels of a kind."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    if min(len(positive), len(negative)) < FEWEST:
        return None
    return float((positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2)


@dataclass(frozen=True)
class Measure:
    """The mean AUROC over the assays of a partner, on two splits."""

    def __call__(self, params: Any, data: Any) -> dict[str, float]:
        """Return it, and how many assays could be measured."""
        told: dict[str, float] = {}
        for split in ("valid", "test"):
            rows = data.view(split)
            scores = logits(params, rows["x"]).numpy()
            found = [ranked(scores[:, t], rows["y"].numpy()[:, t]) for t in range(scores.shape[1])]
            known = [value for value in found if value is not None]
            told[split] = float(np.mean(known)) if known else UNDEFINED
            told[f"{split}_assays"] = float(len(known))
        return told


def measuring(algorithm: Any) -> fr.Algorithm:
    """Return the program that measures each partner's own model."""

    def round(server: Any, site: Any) -> fr.Outputs:
        own = algorithm.personal(fr.broadcast(server), site)
        found = fr.map(Measure(), own, site.data)
        listed = fr.apply(as_list, fr.gather(found, name="site_metrics"))
        pooled = {"auroc": fr.mean(found["valid"], name="valid")}
        return fr.Outputs(server=server, metrics={"pooled": pooled, "sites": listed})

    return fr.Algorithm(lambda params: params, round, lambda params: None, name="measuring")


def trained(data: Mapping[str, SiteData], rounds: int, seed: int) -> tuple[dict[str, dict[str, float]], str]:
    """Return {partner: its record at the best rate and round}, each chosen on its validation rows."""
    best: dict[str, dict[str, float]] = {}
    for rate in RATES:
        local = fr.learn.adamw(loss, lr=rate, epochs=1, batch_size=64)
        algorithm = fr.algorithms.private_heads(local, first_head)
        with fr.simulate(dict(data)) as federation:
            result = fr.fit(
                algorithm, federation, init=first_trunk(seed), rounds=rounds, seed=seed, every=EVERY,
                evaluate={"valid": measuring(algorithm)},
            )  # fmt: skip
        for record in result.evaluations:
            for site in record.sites:
                found = {**site, "round": record.round + 1, "rate": rate}
                if found["valid"] > best.get(site["site"], {"valid": 0.0})["valid"]:
                    best[site["site"]] = found
    return best, fr.egress(result.plan)


def main() -> None:
    """Print one row for each partner and seed, and what leaves a site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--partners", type=int, default=10)
    asked = parser.parse_args()
    means = []
    for seed in range(asked.seeds):
        data = partners(asked.partners, seed)
        total = sum(site["y"].shape[1] for site in data.values())
        shared, page = trained(data, asked.rounds, seed)
        print(f"seed {seed}: {asked.partners} partners, {total} assays")
        print("| partner | compounds | assays | alone | shared trunk | gain |\n|---|---|---|---|---|---|")
        gains = []
        for name, site in data.items():
            alone = trained({name: site}, asked.rounds, seed)[0][name]
            gains.append(shared[name]["test"] - alone["test"])
            size = f"{site['x'].shape[0]} | {site['y'].shape[1]}"
            figures = f"{alone['test']:.4f} | {shared[name]['test']:.4f} | {gains[-1]:+.4f}"
            print(f"| {name} | {size} | {figures} |", flush=True)
        means.append(statistics.mean(gains))
        print(f"mean gain {means[-1]:+.4f}, least {min(gains):+.4f}; of {len(gains)} partners "
              f"{sum(gain > 0 for gain in gains)} gain\n")
    print(f"mean gain over {len(means)} seeds {statistics.mean(means):+.4f} "
          f"({min(means):+.4f} to {max(means):+.4f})\n\n{page}")


if __name__ == "__main__":
    main()
