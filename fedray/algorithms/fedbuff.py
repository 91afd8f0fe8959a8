"""FedBuff: the server steps along the sum of scaled updates over their number, whenever a buffer is full.

Source: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, Federated learning with buffered asynchronous
aggregation, AISTATS 2022, Algorithms 1 (server) and 2 (client):
  x <- x + eta_g / K sum_i s(age_i) (y_i - x_i),   x_i the version that site i was asked of.
Asynchrony is a schedule, not an algorithm: run this with `fr.buffered(size=K, concurrency=C)`, whose discount
is s, by default 1 / sqrt(1 + age). Any round of one exchange runs so; this one has the paper's divisor. With
`fedavg` the mean is divided by the scaled weights instead, so that a stale buffer steps as far as a fresh
one, and rows can weigh. Under a synchronous schedule this is uniform federated averaging.
Deviation: a site is in a buffer once; the paper draws sites from so many that it makes no difference. The
sites keep nothing; the server keeps parameters and the optimizer's moments.
"""

from typing import Any

import fedray as fr
from fedray.algorithms.fedavg import FedAvgState
from fedray.learn.optimizer import ServerOptimizer, sgd


def fedbuff(local: Any, optimizer: ServerOptimizer | None = None) -> fr.Algorithm:
    """Add the sites' scaled updates, divided by their number, with a server optimizer."""
    optimizer = optimizer or sgd(1.0)

    def round(server: Any, site: Any) -> fr.Outputs:
        update = fr.map(local, fr.broadcast(server.params), site.data, site.rng)
        delta = fr.sum(update.delta) / fr.count(site)
        step = fr.apply(optimizer.step, server.params, server.optimizer, delta, server.round)
        return fr.Outputs(
            server=FedAvgState(step.params, step.state, server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(lambda params: FedAvgState(params, optimizer.init(params)), round, name="fedbuff")
