"""FedLin: local steps along the global gradient, at a rate that shrinks with their number.

Source: Mitra, Jaafar, Pappas, Hassani, Linear convergence in federated learning: Tackling client
heterogeneity and sparse gradients, NeurIPS 2021, Algorithm 1, without its sparsification:
  y <- y - (eta / K_i) (g_i(y) - grad f_i(x) + grad f(x)),   x <- mean y_i.
Two exchanges a round: the gradients at x, then the updates. The paper's means are uniform and over all
sites; with a part of them grad f(x) is the mean over those asked. The sites keep nothing.
Deviation: the gradient at x is over all rows of a site, also where local steps take batches. Not vectorised:
that gradient is one call a site; the local steps are.
"""

from typing import Any

import fedray as fr
from fedray.algorithms.fedavg import FedAvgState
from fedray.algorithms.scaling import RateOf, check_plain, num_rows_of
from fedray.learn.optimizer import sgd


def fedlin(local: Any, weighted: bool = False) -> fr.Algorithm:
    """Correct the drift of local steps exactly, and give every site the same sum of rates.

    `local` takes plain SGD steps; it needs `gradient(params, data)` and `steps_at(data, rng)`. `weighted`
    weighs both means by rows. Raises ValueError where it lacks them.
    """
    check_plain(local, "fedlin", "gradient", "steps_at")
    optimizer = sgd(1.0)

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.broadcast(server.params)
        weight = fr.map(num_rows_of, site.data) if weighted else None
        own = fr.map(local.gradient, x, site.data)
        shared = fr.broadcast(fr.mean(own, weight=weight, name="gradient"))
        rate = fr.map(RateOf(local, is_shared=True), site.data, site.rng)
        update = fr.map(local, x, site.data, site.rng, correction=shared - own, lr=rate)
        delta = fr.mean(update.delta, weight=weight)
        step = fr.apply(optimizer.step, server.params, {}, delta, server.round)
        return fr.Outputs(
            server=FedAvgState(step.params, {}, server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(lambda params: FedAvgState(params, {}), round, name="fedlin")
