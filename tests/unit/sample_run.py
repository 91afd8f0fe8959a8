"""A made-up run for the tests of what is written down: plan, rounds, evaluations and a result, quick to
make.
"""

import hashlib
import math
from types import SimpleNamespace

import numpy as np
import torch

from fedray import tree
from fedray.core.graph import Graph
from fedray.errors import SiteError
from fedray.learn.intervals import auroc, calibration, delong_se
from fedray.runtime.plan import Plan
from fedray.runtime.records import EvaluationRecord, RoundRecord

CONFIG = """\
name: icu_mortality
seed: 0
rounds: 12
data:
  scale: 0.1
algorithm:
  mu: 0.1
privacy: {}
secure: {}
"""
BINS = 200


def failure(site="h017", round=3, kind="ValueError"):
    return SiteError(site, round, 1, kind, "train.py:12")


def round_record(round=0, failures=(), **changes):
    asked = changes.pop("asked", 60)
    values = {
        "round": round,
        "attempt": 0,
        "metrics": {"loss": 0.7 / (1 + 0.3 * round)},
        "asked": asked,
        "counted": asked - len(failures),
        "failures": tuple(failures),
        "seconds": 0.8 + 0.01 * round,
        "bytes_up": 400_000,
        "bytes_down": 200_000,
        "hashes": {"delta": f"{round:016x}", "server": f"{round + 999:016x}"},
        "grids": {"delta": (-20, -18)},
    }
    return RoundRecord(**{**values, **changes})


def evaluation_record(round=0, split="valid", sites=40, strength=1.6, seed=0):
    """Return an evaluation of made-up hospitals; their risks are drawn, so that its figures fit together."""
    random = np.random.default_rng(seed)
    records, outcomes, scores = [], [], []
    for number in range(sites):
        n = int(random.lognormal(4.2, 0.9)) + 2
        skill = strength + 0.25 * random.standard_normal()
        true = -2.6 + 0.3 * random.standard_normal() + skill * random.standard_normal(n)
        y = (random.random(n) < 1 / (1 + np.exp(-true))).astype(float)
        score = (true - 0.1) * 0.92
        p = 1 / (1 + np.exp(-score))
        level = calibration(score, y, np.ones(n)).in_the_large
        found = {"auroc": auroc(y, score), "auroc_se": delong_se(y, score), "calibration_in_the_large": level}
        records.append(
            {
                "site": f"h{number:03}",
                "n": float(n),
                "events": y.sum(),
                "loss": 0.3,
                "brier": 0.07,
                "accuracy": float(((p > 0.5) == y).mean()),
                **{name: value if math.isfinite(value) else None for name, value in found.items()},
            }
        )
        outcomes, scores = [*outcomes, y], [*scores, score]
    y, score = np.concatenate(outcomes), np.concatenate(scores)
    place = np.clip(BINS / (1 + np.exp(-score)), 0, BINS - 1).astype(int)
    pos, neg = (torch.tensor(np.bincount(place[y == label], minlength=BINS)) for label in (1, 0))
    metrics = {
        "n": float(len(y)),
        "events": y.sum(),
        "auroc": auroc(y, score),
        "auroc_se": delong_se(y, score),
        "auroc_error_bound": 0.0004,
        "loss": 0.31,
        "brier": 0.0712,
        "accuracy": 0.912,
        "calibration_slope": 1.05,
        "calibration_intercept": 0.08,
        "calibration_in_the_large": 0.04,
        "hist_pos": pos,
        "hist_neg": neg,
    }
    return EvaluationRecord(round=round, split=split, metrics=metrics, sites=records, seconds=0.4)


def plan(name="fedprox mu=0.1"):
    return Plan(graph=Graph({}, name=name), nodes=(), args=(), stage=(), digest="ab12" * 16, outputs={})


def params():
    return tree.flatten({"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.ones(2)})


def result(rounds=12, sites=40, **changes):
    records = [round_record(r, [failure()] if r == 3 else ()) for r in range(rounds)]
    evaluations = [
        evaluation_record(r, sites=sites, strength=0.6 + 1.2 * (1 - math.exp(-r / 8)), seed=1)
        for r in range(3, rounds, 4)
    ]
    evaluations.append(evaluation_record(rounds - 1, "test", sites=sites, seed=2))
    values = {
        "params": params(),
        "plan": plan(),
        "metrics": records,
        "evaluations": evaluations,
        "rounds": rounds,
        "seconds": 14.5,
        "seed": 0,
        "stopped": "done",
        "failures": {},
        "row_invariant": True,
        "params_sha256": hashlib.sha256(b"parameters").hexdigest(),
    }
    return SimpleNamespace(**{**values, **changes})


def replay(tracker, found, first_round=0):
    """Tell a tracker what `fit` would have told it."""
    tracker.start(found.plan, {"sites": 40, "where": "in process", "seed": 0, "first_round": first_round})
    for record in found.metrics:
        tracker.round(record)
        for evaluated in found.evaluations:
            if evaluated.round == record.round:
                tracker.evaluation(evaluated)
    tracker.finish(found)
