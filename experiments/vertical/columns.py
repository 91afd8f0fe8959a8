"""Does a model of columns that lie at three places come to that of all columns in one place?

    python experiments/vertical/columns.py [--data heart|eicu] [--seeds 5]

Heart disease (740 patients, four hospitals together) and the eICU demo (1,868 stays) are dealt by columns to
three departments, of which each lacks a random tenth of the records. They are linked by keyed hashes, and a
logistic regression (penalty as in `L2`) and towers are trained on 60 % of the common records. Arms, all
measured on the same 30 %: what the label holder comes to alone, vertical logistic regression, the same
gradient descent on all columns in one place, its optimum by Newton's method, and towers, whose rate is chosen
on the other 10 %.
"""

import argparse
import tempfile
from typing import Any

import numpy as np
import torch

import fedray as fr
from fedray.algorithms.vertical_options import of_widths
from fedray.data.linkage import Align
from fedray.learn.metrics import auroc

ZERO = {"bias": torch.zeros((), dtype=torch.float64)}
MISSING, VALID, TEST = 0.1, 0.1, 0.3
L2, LR, ROUNDS = {"heart": 0.01, "eicu": 0.2}, {"heart": 0.5, "eicu": 0.1}, {"heart": 300, "eicu": 300}
TOWER_RATES, TOWER_ROUNDS, BATCH = (0.02, 0.1, 0.5), 400, 64
HEART = {
    "ward": ("age", "sex", "cp_2", "cp_3", "cp_4"),
    "ecg": ("thalach", "exang", "oldpeak", "restecg_1", "restecg_2"),
    "laboratory": ("trestbps", "chol", "fbs"),
}
BEDSIDE = ("hr", "map", "sbp", "dbp", "resp", "o2sat", "temp")
Arrays = dict[str, np.ndarray]


def source(name: str, folder: str) -> tuple[Any, dict[str, tuple[str, ...]]]:
    """Return a data set and who holds which of its columns."""
    if name == "heart":
        return fr.data.heart_disease_first_use(data_dir=folder, scale="none"), HEART
    data = fr.data.eicu_first_use(data_dir=folder, features="full")
    hourly = [column for column in data.features if column.startswith("d24_")]
    monitors = tuple(column for column in hourly if column.split("_")[1] in BEDSIDE)
    return data, {
        "registry": tuple(column for column in data.features if column not in hourly),
        "monitors": monitors,
        "laboratory": tuple(column for column in hourly if column not in monitors),
    }


def descend(x: np.ndarray, y: np.ndarray, lr: float, l2: float, rounds: int) -> tuple[np.ndarray, float]:
    """Return weights and intercept of plain gradient descent from zeros."""
    w, b = np.zeros(x.shape[1]), 0.0
    for _ in range(rounds):
        r = 1 / (1 + np.exp(-(x @ w + b))) - y
        w, b = w - lr * (x.T @ r / len(r) + l2 * w), b - lr * r.mean()
    return w, b


def optimum(x: np.ndarray, y: np.ndarray, l2: float) -> tuple[np.ndarray, float]:
    """Return weights and intercept at the optimum, by Newton's method."""
    x = np.hstack([x, np.ones((len(x), 1))])
    penalty = l2 * np.diag([1.0] * (x.shape[1] - 1) + [0.0])
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        slope = x.T @ (p - y) / len(y) + penalty @ w
        w -= np.linalg.solve((x.T * (p * (1 - p))) @ x / len(y) + penalty, slope)
    return w[:-1], float(w[-1])


def scored(model: tuple[np.ndarray, float], x: np.ndarray, y: np.ndarray) -> float:
    """Return the AUROC of a model."""
    return float(auroc(torch.from_numpy(y > 0.5), torch.from_numpy(x @ model[0] + model[1])) or np.nan)


def trained(federation: Any, algorithm: Any, rounds: int) -> tuple[Any, dict[str, float]]:
    """Return the result of a training and its AUROC by split, from the label holder's record."""
    programs = {split: algorithm.evaluate(split) for split in ("valid", "test")}
    result = fr.fit(algorithm, federation, init=ZERO, rounds=rounds, every=rounds, evaluate=programs)
    return result, {record.split: float(record.sites[0]["auroc"]) for record in result.evaluations}


def weights_at(federation: Any) -> dict[str, np.ndarray]:
    """Return what each site keeps; possible since all of them are simulated in this process."""
    federation.aggregator.root.commit([])
    hosts = federation.aggregator.root.transport.hosts.values()
    return {site: host.state_of(site).numpy() for host in hosts for site in host.sites}


def study(name: str, folder: str, seed: int) -> dict[str, float]:
    """Return the figures of one draw of who lacks what, and of the split."""
    of, columns = source(name, folder)
    data = fr.data.by_columns(
        of, columns=columns, missing=MISSING, valid_fraction=VALID, test_fraction=TEST, seed=seed
    )
    settings = (LR[name], L2[name], ROUNDS[name])
    with fr.simulate(data) as federation:
        compared = fr.compute(data.linkage.program, federation)
        align = Align(compared.shared, data.linkage)
        tables = {site: align(data[site]()) for site in data}
        linked = data.linkage.link(federation)
        vertical, at_vertical = trained(
            federation, fr.algorithms.vertical_logistic(LR[name], l2=L2[name]), ROUNDS[name]
        )
        kept = weights_at(federation)
        made = [of_widths(len(data), lr=lr, batch_size=BATCH, seed=seed) for lr in TOWER_RATES]
        towers = [trained(federation, each, TOWER_ROUNDS) for each in made]
    result, at_towers = max(towers, key=lambda each: each[1]["valid"])
    x, y = {}, {}
    for split in ("train", "test"):
        x[split] = np.hstack([tables[site].view(split)["x"].double().numpy() for site in data])
        y[split] = tables[linked.holder].view(split)["y"].double().numpy()
    own = len(columns[linked.holder])
    pooled, best = descend(x["train"], y["train"], *settings), optimum(x["train"], y["train"], L2[name])
    alone = optimum(x["train"][:, :own], y["train"], L2[name])
    gap = np.abs(np.concatenate([kept[site] for site in data]) - pooled[0]).max()
    return {
        "common records": float(linked.shared),
        "alone": scored(alone, x["test"][:, :own], y["test"]),
        "vertical logistic": at_vertical["test"],
        "pooled, same steps": scored(pooled, x["test"], y["test"]),
        "pooled, optimum": scored(best, x["test"], y["test"]),
        "towers": at_towers["test"],
        "largest gap of a weight to pooled": max(gap, abs(float(vertical.params["bias"]) - pooled[1])),
        "bytes up a round, logistic": vertical.bytes_up / ROUNDS[name],
        "bytes up a round, towers": result.bytes_up / TOWER_ROUNDS,
    }


def main() -> None:
    """Print the table of a data set."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", choices=("heart", "eicu"), default="heart")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [study(asked.data, folder, seed) for seed in range(asked.seeds)]
    print(f"| {asked.data}, seeds 0 to {asked.seeds - 1} | mean | least | most |\n|---|---|---|---|")
    for arm in found[0]:
        values = [each[arm] for each in found]
        shown = "{:.1e}" if "gap" in arm else "{:.4f}" if max(values) <= 1 else "{:,.0f}"
        told = (np.mean(values), min(values), max(values))
        print(f"| {arm} | " + " | ".join(map(shown.format, told)) + " |")


if __name__ == "__main__":
    main()
