"""APFL: a site's own model is a mixture of the global model and one of its own, and it learns the share.

Source: Deng, Kamani and Mahdavi, Adaptive personalized federated learning, 2020, Algorithm 1; the share: its
section on adaptively updating alpha. In each local step, all from the values before it,
  w <- w - eta grad f(w)       v <- v - eta grad_v f(v')       alpha <- alpha - eta <v - w, grad f(v')>
with v' = alpha v + (1 - alpha) w, and alpha kept between 0 and 1. The server averages w, uniformly. The site
keeps v and alpha, which never meet a reduction: w moves by f(w) alone. grad_v has the chain rule's factor
alpha, as in the paper; `chain_rule=False` leaves it out. Deviations: statistics of batches are those of both
passes. Not vectorised: two gradients at different weights make a step.
"""

from dataclasses import dataclass
from typing import Any

import torch

import fedray as fr
from fedray.algorithms.fedavg import FedAvgState
from fedray.algorithms.scaling import check_plain
from fedray.learn import objectives, parts
from fedray.learn.optimizer import ServerOptimizer, sgd
from fedray.settings import check_numbers

OWN = parts.Part(("personal", "alpha"))


@dataclass(frozen=True)
class Start:
    """What a site begins with: the global model for its own, and the first share of it."""

    alpha: float

    def __call__(self, server: FedAvgState) -> Any:
        """Return v and alpha, as leaves."""
        share = {"alpha": torch.tensor(self.alpha, dtype=server.params.schema.dtype)}
        return OWN(parts.join(parts.beside(server.params, personal=parts.trained(server.params)), share))


def mixture(params: Any, kept: Any) -> Any:
    """Return alpha v + (1 - alpha) w."""
    alpha, own = kept["alpha"], parts.under(kept, "personal")
    return parts.put(params, {name: alpha * v + (1 - alpha) * params[name] for name, v in own.items()})


def apfl(
    local: Any,
    alpha: float = 0.5,
    adaptive: bool = True,
    chain_rule: bool = True,
    optimizer: ServerOptimizer | None = None,
    weighted: bool = False,
) -> fr.Algorithm:
    """Train a global model and mixtures with it; `alpha` is the first share of a site's own model.

    `local` takes plain SGD steps. Without `adaptive` alpha stays what it is. Raises ValueError where alpha is
    not in [0, 1], or steps are not plain SGD.
    """
    check_numbers("apfl", least=0, most=1, alpha=alpha)
    check_plain(local, "apfl")
    both = objectives.pursuing(local, objectives.Mixture(adaptive, chain_rule), "apfl")
    optimizer = optimizer or sgd(1.0)

    def init(params: Any) -> FedAvgState:
        params = OWN.keep_free(params, "apfl")
        return FedAvgState(params, optimizer.init(params))

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.map(parts.join, fr.broadcast(server.params), site.state)
        update = fr.map(both, x, site.data, site.rng)
        weight = update.num_examples if weighted else None
        delta = fr.mean(fr.map(OWN.rest, update.delta), weight=weight, name="delta")
        step = fr.apply(optimizer.step, server.params, server.optimizer, delta, server.round)
        return fr.Outputs(
            server=FedAvgState(step.params, step.state, server.round + 1),
            site=site.state + fr.map(OWN, update.delta),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    def own(params: Any, site: Any) -> Any:
        return fr.map(mixture, params, site.state)

    return fr.Algorithm(init, round, Start(alpha), "apfl", own)
