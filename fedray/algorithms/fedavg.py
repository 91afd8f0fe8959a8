"""Federated averaging with a server optimizer: the smallest algorithm, and the one to read first.

Source: McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS
2017, Algorithm 1; server optimizers: Reddi et al., Adaptive federated optimization, ICLR 2021, Algorithm 2.
Deviation: the server averages deltas (local - global), so the weights always sum to one; with sgd(1.0) this
is the average of the models. The sites keep nothing; the server keeps parameters and the optimizer's moments.
"""

from dataclasses import dataclass
from typing import Any

import fedray as fr
from fedray.learn.local import sgd as local_sgd
from fedray.learn.optimizer import ServerOptimizer, sgd
from fedray.learn.schedules import Schedule


@dataclass(frozen=True)
class FedAvgState:
    """Global parameters, the server optimizer's state, and the number of the next round."""

    params: Any
    optimizer: Any
    round: int = 0


def fedavg(
    local: Any, optimizer: ServerOptimizer | None = None, weighted: bool = True, name: str = "fedavg"
) -> fr.Algorithm:
    """Average the sites' updates, weighted by their rows (or uniformly), and step with a server optimizer.

    FedAvgM, FedAdagrad, FedAdam and FedYogi are this algorithm with another `optimizer`.
    """
    optimizer = optimizer or sgd(1.0)

    def init(params: Any) -> FedAvgState:
        return FedAvgState(params, optimizer.init(params))

    def round(server: Any, site: Any) -> fr.Outputs:
        update = fr.map(local, fr.broadcast(server.params), site.data, site.rng)
        delta = fr.mean(update.delta, weight=update.num_examples if weighted else None)
        step = fr.apply(optimizer.step, server.params, server.optimizer, delta, server.round)
        return fr.Outputs(
            server=FedAvgState(step.params, step.state, server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(init, round, name=name)


def fedsgd(model: Any, lr: float | Schedule) -> fr.Algorithm:
    """Step along the mean gradient of all rows: x <- x - lr sum_i (n_i / n) grad f_i(x).

    Source: McMahan et al., AISTATS 2017, section 2 (FedSGD).
    """
    return fedavg(local_sgd(model, lr=1.0, steps=1, batch_size=None), sgd(lr), name="fedsgd")
