"""Does FoolsGold do what its paper claims, and why does it fail the smoke table?

    python experiments/attacks/foolsgold.py [--seeds 5] [--rounds 60]

The claim (Fung et al., RAID 2020): any number of Sybils with one goal among honest sites that differ. As in
its evaluation, each honest site holds the rows of one class, and Sybils hold the same rows of class 1 with
the label 7. Shown are the share of class 1 that is taken for 7, and the accuracy on the other classes. Then
the same rule in the smoke table's study, with the similarities of histories that it judges by: the largest
cosine of a site with any other, and the rates that follow.
"""

import argparse
import statistics
from typing import Any

import numpy as np
import studies
import torch
import updates

import fedray as fr
from fedray.passes import gram

CLASSES, WIDTH, ROWS, SOURCE, TARGET = 10, 30, 200, 1, 7
SYBILS = (1, 3, 10, 30)


def rows_of(classes: Any, rng: np.random.Generator, centres: np.ndarray) -> tuple[Any, Any]:
    """Return rows around the centres of their classes."""
    x = centres[classes] + rng.normal(size=(len(classes), WIDTH))
    return torch.from_numpy(x).float(), torch.as_tensor(classes)


def one_class_each(rule: Any, sybils: int, seed: int, rounds: int) -> tuple[float, float]:
    """Train; return the share of the source that is taken for the target, and the accuracy on the others."""
    rng = np.random.default_rng([seed, 23])
    centres = rng.normal(size=(CLASSES, WIDTH)) * 0.7
    sites = {f"h{c}": studies.SiteData(dict(zip("xy", rows_of(np.full(ROWS, c), rng, centres), strict=True)))
             for c in range(CLASSES)}  # fmt: skip
    poisoned = rows_of(np.full(ROWS, SOURCE), rng, centres)[0], torch.full((ROWS,), TARGET)
    sites |= {f"s{i:02d}": studies.SiteData(dict(zip("xy", poisoned, strict=True))) for i in range(sybils)}
    x, y = rows_of(np.repeat(np.arange(CLASSES), 200), rng, centres)
    model = fr.learn.logistic(WIDTH, CLASSES)
    algorithm = fr.algorithms.fedavg(fr.learn.sgd(model, lr=0.5, steps=1, epochs=None, batch_size=50),
                                     weighted=False)  # fmt: skip
    with fr.simulate(sites) as federation:
        result = fr.fit(algorithm, federation, init=model.init(0), rounds=rounds, passes=[rule], seed=seed)
    found = model.predict(result.params, {"x": x, "y": y}).argmax(1)
    is_source = y == SOURCE
    taken = (found[is_source] == TARGET).double().mean()
    return float(taken), float((found == y)[~is_source].double().mean())


def claim(seeds: int, rounds: int) -> None:
    """Print the table of the claim."""
    print("| Sybils | rule | 1 taken for 7 | accuracy on the others |\n|---|---|---|---|")
    for sybils in SYBILS:
        rules = {"mean": updates.mean, "median": fr.passes.median, "foolsgold": fr.passes.foolsgold}
        for name, rule in rules.items():
            found = [one_class_each(rule(), sybils, seed, rounds) for seed in range(seeds)]
            taken, others = (statistics.mean(column) for column in zip(*found, strict=True))
            print(f"| {sybils} | {name} | {taken:.3f} | {others:.3f} |", flush=True)


def judged(attack: str, seed: int) -> dict[str, Any]:
    """Return the cosines and rates of the last round of the smoke table's study, and the AUROC."""
    study, seen = studies.made_up("mild", seed), []
    attackers = study.attackers(0.2, seed) if attack != "none" else ()

    def watched(inner: np.ndarray) -> np.ndarray:
        norms = np.sqrt(np.diagonal(inner))
        alike = inner / norms[:, None] / norms[None]
        np.fill_diagonal(alike, -1)
        rates = rule(inner)
        seen.append((alike.max(1), rates))
        return rates

    rule, gram.foolsgold = gram.foolsgold, watched
    try:
        area = studies.train(study, fr.passes.foolsgold(), attack, attackers, seed)["auroc"]
    finally:
        gram.foolsgold = rule
    most, rates = next(pair for pair in reversed(seen) if len(pair[0]) == len(study.names))
    bad = np.array([name in attackers for name in study.names])
    return {"auroc": area, "honest": most[~bad], "bad": most[bad], "share": rates[bad].sum() / rates.sum()}


def reason(seeds: int) -> None:
    """Print why the rule fails where honest sites are alike."""
    print("\n| attack | AUROC | cosine of honest sites | of attackers | attackers' share of the weight |"
          "\n|---|---|---|---|---|")  # fmt: skip
    for attack in ("none", "sign_flip", "scaled", "label_flip", "gaussian", "alie", "sybil"):
        found = [judged(attack, seed) for seed in range(seeds)]
        span = [np.concatenate([one[who] for one in found]) for who in ("honest", "bad")]
        told = [f"{x.min():.2f} to {x.max():.2f}" if len(x) else "-" for x in span]
        area, share = (statistics.mean(float(one[what]) for one in found) for what in ("auroc", "share"))
        print(f"| {attack} | {area:.3f} | {told[0]} | {told[1]} | {share:.2f} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    torch.set_num_threads(1)
    claim(given.seeds, given.rounds)
    reason(given.seeds)


if __name__ == "__main__":
    main()
