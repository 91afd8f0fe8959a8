"""Ditto: a personal model per site, pulled to the global one.

Source: Li et al., Ditto: Fair and robust federated learning through personalization, ICML 2021, Algorithm 1:
the global model is trained by FedAvg, and v_i <- v_i - eta (grad f_i(v_i) + lambda (v_i - x)), x being the
global model RECEIVED this round. The site keeps v_i, which never meets a reduction. Deviation: v_i takes the
same number of local steps as the global update, with a random stream of its own.
"""

from dataclasses import dataclass
from typing import Any

import fedray as fr
from fedray.learn.optimizer import ServerOptimizer, sgd
from fedray.settings import check_numbers


@dataclass(frozen=True)
class DittoState:
    """Global parameters, the server optimizer's state, and the number of the next round."""

    params: Any
    optimizer: Any
    round: int = 0


def ditto(
    local: Any, prox: float, optimizer: ServerOptimizer | None = None, weighted: bool = True
) -> fr.Algorithm:
    """Train a global and a personal model; `prox` (the paper's lambda) pulls the personal one to the global
    one.

    The shared part is federated averaging, so that without `prox` the personal models are local training
    alone; `weighted` weighs it by rows. Raises ValueError where prox is negative.
    """
    check_numbers("ditto", least=0, prox=prox)
    optimizer = optimizer or sgd(1.0)

    def init(params: Any) -> DittoState:
        return DittoState(params, optimizer.init(params))

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.broadcast(server.params)
        shared = fr.map(local, x, site.data, site.rng)
        mine = fr.map(local, site.state, site.data, site.stream("personal"), anchor=x, prox=prox)
        delta = fr.mean(shared.delta, weight=shared.num_examples if weighted else None)
        step = fr.apply(optimizer.step, server.params, server.optimizer, delta, server.round)
        return fr.Outputs(
            server=DittoState(step.params, step.state, server.round + 1),
            site=site.state + mine.delta,
            metrics=fr.mean(shared.metrics, weight=shared.num_examples),
        )

    return fr.Algorithm(
        init, round, lambda server: server.params, "ditto", personal=lambda params, site: site.state
    )
