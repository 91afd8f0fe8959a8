"""FedAsync: the server's model moves towards each model that arrives, less far the staler it is.

Source: Xie, Koyejo, Gupta, Asynchronous federated optimization, OPT workshop 2020 (arXiv 2019), Algorithm 1:
  x <- (1 - a) x + a y,   a = alpha s(age),   s constant, polynomial or hinge.
Asynchrony is a schedule: run this with `fr.buffered(size=1, discount="hinge 10 4")`, whose discount is s. A
local update with a proximal term (`fedprox`'s) is the paper's regularised problem (rho).
Deviations: the age counts the server steps between asking and arrival, so that a fresh model counts by
alpha; the paper's t - tau is 1 then: give `lambda age: s(age + 1)` for that reading. In a buffer of several
x moves by the mean of alpha s_i (y_i - x). The server sees each model by itself: see `egress`. The sites keep
nothing; the server keeps parameters.
"""

from typing import Any

import torch

import fedray as fr
from fedray.algorithms.fedavg import FedAvgState
from fedray.rows import Column, Tagged, rows_of
from fedray.settings import check_numbers


def one(update: Any) -> float:
    """Return 1: its sum is that of the discounts."""
    return 1.0


@rows_of(one)
def one_rows(group: Any, update: Tagged) -> Column:
    """Return 1 for each site of a group."""
    return Column(torch.ones(group.k, dtype=torch.float64), False)


def fedasync(local: Any, alpha: float = 0.6) -> fr.Algorithm:
    """Mix the server's model with the sites' models. Raises ValueError where alpha is not in (0, 1]."""
    check_numbers("fedasync", above=0, most=1, alpha=alpha)

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.broadcast(server.params)
        update = fr.map(local, x, site.data, site.rng)
        models = fr.sum(x + update.delta, name="model")
        factor = fr.sum(fr.map(one, update.num_examples), name="factor")
        mean = (models - server.params * factor) / fr.count(site)
        return fr.Outputs(
            server=FedAvgState(server.params + mean * alpha, {}, server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(lambda params: FedAvgState(params, {}), round, name="fedasync")
