"""FedProx: local training held near the global model.

Source: Li et al., Federated optimization in heterogeneous networks, MLSys 2020, Algorithm 2: the site
minimises f_i(y) + mu/2 ||y - x||^2. Partial work is kept: a site that does fewer steps counts with what it
did. Deviation: weights are the rows of the sites asked, as in FedAvg, where the paper samples by rows and
averages uniformly. The sites keep nothing.
"""

from typing import Any

import fedray as fr
from fedray.algorithms.fedavg import FedAvgState
from fedray.learn.optimizer import ServerOptimizer, sgd
from fedray.settings import check_numbers


def fedprox(
    local: Any, mu: float, optimizer: ServerOptimizer | None = None, weighted: bool = True
) -> fr.Algorithm:
    """Federated averaging with a proximal term of strength `mu`. Raises ValueError where mu is negative."""
    check_numbers("fedprox", least=0, mu=mu)
    optimizer = optimizer or sgd(1.0)

    def init(params: Any) -> FedAvgState:
        return FedAvgState(params, optimizer.init(params))

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.broadcast(server.params)
        update = fr.map(local, x, site.data, site.rng, anchor=x, prox=mu)
        delta = fr.mean(update.delta, weight=update.num_examples if weighted else None)
        step = fr.apply(optimizer.step, server.params, server.optimizer, delta, server.round)
        return fr.Outputs(
            server=FedAvgState(step.params, step.state, server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(init, round, name="fedprox")
