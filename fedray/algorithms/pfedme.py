"""pFedMe: the global model minimises the sites' Moreau envelopes; a site's own model is its proximal point.

Source: Dinh, Tran and Nguyen, Personalized federated learning with Moreau envelopes, NeurIPS 2020, Algorithm
1. A site repeats R times: theta ~ argmin f_i(theta) + lambda/2 ||theta - w||^2, then
  w <- w - eta lambda (w - theta)                 and the server: x <- (1 - beta) x + beta mean_S w_i.
w is never replaced by theta. The sites keep nothing. Deviations: theta is what `local` reaches from w, on
batches of its own, where the paper solves on one batch to a given accuracy; only sites of the cohort compute,
since what others would compute is not used; statistics of batches move as weights do.
"""

from typing import Any

import fedray as fr
from fedray import tree
from fedray.algorithms.fedavg import FedAvgState
from fedray.learn.optimizer import sgd
from fedray.settings import check_numbers, check_whole


def pfedme(local: Any, prox: float, lr: float, local_rounds: int = 1, beta: float = 1.0) -> fr.Algorithm:
    """Average models that moved towards proximal points; `prox` is lambda, `lr` eta, `local_rounds` R.

    `local` finds the proximal point: its steps are the K of the paper. A site's own model is the proximal
    point of the global one. Raises ValueError where `prox` or `local_rounds` is not above 0, or `lr` is
    negative.
    """
    check_numbers("pfedme", above=0, prox=prox)
    check_numbers("pfedme", least=0, lr=lr, beta=beta)
    check_whole("pfedme", local_rounds=local_rounds)
    optimizer = sgd(beta)

    def init(params: Any) -> FedAvgState:
        params = tree.flatten(params)
        return FedAvgState(params, optimizer.init(params))

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.broadcast(server.params)
        w, keys = x, [site.rng, *(site.stream(f"local round {r}") for r in range(1, local_rounds))]
        for key in keys:
            proximal = fr.map(local, w, site.data, key, anchor=w, prox=prox)
            w = w + lr * prox * proximal.delta  # delta = theta - w
        delta = fr.mean(w - x, name="delta")
        step = fr.apply(optimizer.step, server.params, server.optimizer, delta, server.round)
        return fr.Outputs(
            server=FedAvgState(step.params, step.state, server.round + 1),
            metrics=fr.mean(proximal.metrics, weight=proximal.num_examples),
        )

    def own(params: Any, site: Any) -> Any:
        return params + fr.map(local, params, site.data, site.stream("own"), anchor=params, prox=prox).delta

    return fr.Algorithm(init, round, name="pfedme", personal=own)
