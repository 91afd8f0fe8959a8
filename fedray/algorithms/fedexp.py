"""FedExP: the server takes a longer step where the sites disagree.

Source: Jhunjhunwala, Wang, Joshi, FedExP: Speeding up federated averaging via extrapolation, ICLR 2023,
Algorithm 1, with M sites in the round and D_i = y_i - x:
  eta_g = max(1, sum_i ||D_i||^2 / (2 M (||mean D||^2 + eps)))       x <- x + eta_g mean D
What is reported is the average of the last two iterates, which oscillate, as in the paper's experiments.
Deviation: BatchNorm statistics are averaged and enter no norm. The sites keep nothing.
"""

from dataclasses import dataclass
from typing import Any

import fedray as fr
from fedray import tree
from fedray.algorithms.scaling import scaled, squared_norm
from fedray.settings import check_numbers


@dataclass(frozen=True)
class FedExPState:
    """What is reported, the iterate x that the next round starts from, and the last rate of the server."""

    params: Any
    iterate: Any
    rate: float = 1.0
    round: int = 0


@dataclass(frozen=True)
class Extrapolate:
    """The server's step, from the means of D_i and of ||D_i||^2."""

    eps: float
    is_averaged: bool

    def __call__(self, state: FedExPState, delta: Any, squares: float) -> FedExPState:
        """Return the next state."""
        rate = max(1.0, float(squares) / (2 * (squared_norm(delta) + self.eps)))
        x = tree.add(state.iterate, scaled(delta, rate))
        params = tree.scale(tree.add(state.iterate, x), 0.5) if self.is_averaged else x
        return FedExPState(params, x, rate, state.round + 1)


def fedexp(local: Any, eps: float = 1e-3, average: bool = True, weighted: bool = False) -> fr.Algorithm:
    """Extrapolate the mean update by a rate that the updates themselves choose.

    With `average` the parameters of the state are the mean of the last two iterates, else the last one;
    `weighted` weighs both means by rows, where the paper's are uniform. Raises ValueError where eps is
    not above 0.
    """
    check_numbers("fedexp", above=0, eps=eps)

    def round(server: Any, site: Any) -> fr.Outputs:
        update = fr.map(local, fr.broadcast(server.iterate), site.data, site.rng)
        weight = update.num_examples if weighted else None
        delta = fr.mean(update.delta, weight=weight)
        squares = fr.mean(fr.map(squared_norm, update.delta), weight=weight, name="squared_norm")
        return fr.Outputs(
            server=fr.apply(Extrapolate(eps, average), server, delta, squares),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(lambda params: FedExPState(params, params), round, name="fedexp")
