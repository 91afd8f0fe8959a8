"""Per-FedAvg: a global model from which one gradient step makes a good model for any site.

Source: Fallah, Mokhtari and Ozdaglar, Personalized federated learning with theoretical guarantees: A
model-agnostic meta-learning approach, NeurIPS 2020, Algorithm 1. In each local step
  w' = w - alpha g(w)         w <- w - beta (I - alpha H(w)) g'(w')            (`hf`, the default)
or without the matrix (`fo`, first order). The outer step goes from w, never from w'. The server averages,
uniformly. The sites keep nothing. Deviations: H times g' is exact, where the paper's HF takes a difference
quotient; the three batches of a step are disjoint thirds of one of `local`, and all the same rows where it
takes all rows. Not vectorised: gradients are taken elsewhere than where the weights are.
"""

from dataclasses import replace
from typing import Any

import fedray as fr
from fedray.algorithms.fedavg import fedavg
from fedray.learn import objectives
from fedray.learn.optimizer import ServerOptimizer
from fedray.settings import check_numbers


def per_fedavg(
    local: Any,
    inner_lr: float = 0.01,
    variant: str = "hf",
    optimizer: ServerOptimizer | None = None,
    weighted: bool = False,
) -> fr.Algorithm:
    """Train by federated averaging for the loss after one step of `inner_lr` (alpha); beta is the lr of
    `local`.

    A site's own model is one such step from the global model, on all its rows or one batch of `local`.
    Raises ValueError on another variant than hf and fo.
    """
    if variant not in ("hf", "fo"):
        raise ValueError(f"per_fedavg: variant={variant!r}: choose 'hf' or 'fo'")
    check_numbers("per_fedavg", least=0, inner_lr=inner_lr)
    is_split = getattr(local, "batch_size", None) is not None
    target = objectives.AfterOneStep(inner_lr, variant == "hf", is_split)
    meta = objectives.pursuing(local, target, "per_fedavg")

    def own(params: Any, site: Any) -> Any:
        return params + fr.map(local, params, site.data, site.stream("own"), lr=inner_lr, steps=1).delta

    return replace(fedavg(meta, optimizer, weighted, name="per_fedavg"), personal=own)
