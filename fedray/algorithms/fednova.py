"""FedNova: normalised averaging, so that sites that take more steps do not pull the model to themselves.

Source: Wang, Liu, Liang, Joshi, Poor, Tackling the objective inconsistency problem in heterogeneous federated
optimization, NeurIPS 2020, sections 4.1 and 5. With d_i = (x - y_i) / (eta ||a_i||_1),
  x <- x - eta tau_eff sum_i p_i d_i,   tau_eff = sum_i p_i ||a_i||_1,   p_i = n_i / sum n.
||a_i||_1 for K steps: K (SGD); (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho) (momentum rho);
(1 - (1 - eta mu)^K) / (eta mu) (proximal term). All three follow from one recurrence, which also covers
momentum and proximal term together. Local momentum starts at zero in every round, as in the paper; its slow
server momentum is `optimizer=fedray.learn.optimizer.momentum(...)`.
Deviations: deltas are averaged, not models, so that weights sum to one; a site that took no step has no
direction and is left out of the means; BatchNorm statistics are averaged with the weights p_i. The sites
keep nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import fedray as fr
from fedray.algorithms.fedavg import FedAvgState
from fedray.algorithms.scaling import check_has, scaled
from fedray.learn.optimizer import ServerOptimizer, sgd
from fedray.rows import Column, expand, row
from fedray.settings import check_numbers


@dataclass(frozen=True, slots=True)
class Work:
    """How many gradients the local steps of a site add up to, one over it, and the site's weight."""

    norm: Any
    share: Any
    weight: Any


@dataclass(frozen=True)
class Accumulate:
    """||a_i||_1, where the local steps move by eta sum_k a_ik g_k: the sum of a_i, all positive.

    Raises ValueError where eta mu is 1 or more, for which the local steps jump over the anchor.
    """

    lr: float | Callable[[int], float]
    momentum: float
    mu: float
    is_weighted: bool

    def _norm(self, num_steps: int, round: int) -> float:
        pull = self.mu * (self.lr(round) if callable(self.lr) else self.lr)
        if pull >= 1:
            raise ValueError(f"fednova: lr * mu is {pull:g} in round {round} and must be below 1")
        if not self.momentum and not pull:
            return float(num_steps)
        norm = speed = 0.0
        for _ in range(num_steps):
            speed = self.momentum * speed + 1.0 - pull * norm
            norm += speed
        return norm

    def __call__(self, num_examples: int, num_steps: int, rng: Any) -> Work:
        """Return the work of one site."""
        norm = self._norm(num_steps, rng.round) or 1.0
        weight = num_examples if self.is_weighted else 1
        return Work(norm, 1.0 / norm, weight if num_steps else 0)

    def rows(self, group: Any, num_examples: Any, num_steps: Any, rng: Any) -> Work:
        """Return the work of the sites of a group; each number of steps is looked at once."""
        steps = expand(num_steps, group.k).numbers
        norms = {count: self._norm(int(count), row(rng, 0).round) or 1.0 for count in set(steps.tolist())}
        norm = torch.tensor([norms[count] for count in steps.tolist()], dtype=torch.float64)
        weight = expand(num_examples, group.k).numbers if self.is_weighted else torch.ones_like(steps)
        return Work(Column(norm, False), Column(1.0 / norm, False), Column(weight * (steps > 0), True))


def fednova(
    local: Any, mu: float = 0.0, optimizer: ServerOptimizer | None = None, weighted: bool = True
) -> fr.Algorithm:
    """Average directions per step, then step by the mean number of steps.

    `local` takes SGD steps, with or without momentum, and says its `lr` and `momentum`; `mu` adds a proximal
    term. Raises ValueError where mu is negative or local steps follow another rule.
    """
    check_has(local, "fednova", "lr")
    momentum = getattr(local, "momentum", 0.0)
    check_numbers("fednova", least=0, mu=mu)
    if momentum is None:
        raise ValueError("fednova: local steps must be SGD: use fedray.learn.sgd")
    optimizer, accumulate = optimizer or sgd(1.0), Accumulate(local.lr, momentum, mu, weighted)

    def init(params: Any) -> FedAvgState:
        return FedAvgState(params, optimizer.init(params))

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.broadcast(server.params)
        update = fr.map(local, x, site.data, site.rng, anchor=x, prox=mu)
        work = fr.map(accumulate, update.num_examples, update.num_steps, site.rng)
        direction = fr.mean(fr.map(scaled, update.delta, work.share), weight=work.weight, name="direction")
        steps = fr.mean(work.norm, weight=work.weight, name="effective_steps")
        delta = fr.apply(scaled, direction, steps)
        step = fr.apply(optimizer.step, server.params, server.optimizer, delta, server.round)
        return fr.Outputs(
            server=FedAvgState(step.params, step.state, server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(init, round, name="fednova")
