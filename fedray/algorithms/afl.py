"""AFL: agnostic federated learning, the best model for the worst mixture of the sites.

Source: Mohri, Sivek, Suresh, Agnostic federated learning, ICML 2019, Algorithm 1 (stochastic AFL):
  w_t = w_(t-1) - gamma_w delta_w L(w_(t-1), lambda_(t-1)),
  lambda_t = Project(lambda_(t-1) + gamma_lambda delta_lambda L(w_(t-1), lambda_(t-1))) onto the simplex,
and what is returned is the average of all w_t. delta_w is the sum of the sites' gradients weighed by lambda,
delta_lambda the vector of their losses. Where a part of the N sites is asked, both are scaled by N over the
number asked, and a site that was not asked has a loss of 0 (the paper's uniformly drawn domains).
The server keeps lambda by site id, and sees each site's loss: `egress` says so. The sites keep nothing.
Deviations: sites may take several local steps (gamma_w is their rate; one step is the paper's form); w is
not projected; lambda starts uniform; BatchNorm statistics are averaged uniformly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fedray as fr
from fedray import tree
from fedray.algorithms.scaling import check_has, scaled
from fedray.settings import check_numbers


@dataclass(frozen=True)
class AflState:
    """What is reported, the iterate w, lambda by site, and the number of the next round."""

    params: Any
    iterate: Any
    weights: dict[str, float]
    round: int = 0


class BySite(dict[str, Any]):
    """Values by site. One that is not named, a made-up site before the run, has the value of `other`."""

    def __init__(self, values: Mapping[str, Any], other: Any) -> None:
        super().__init__(values)
        self.other = other

    def __missing__(self, site: str) -> Any:
        return self.other

    def __reduce__(self) -> tuple[Any, ...]:
        return BySite, (dict(self), self.other)


def uniform(sites: Sequence[str], name: str) -> dict[str, float]:
    """Return the same weight for every site. Raises ValueError where there is none, or one twice."""
    if not sites or len(set(sites)) != len(sites):
        raise ValueError(f"{name}: sites={len(sites)} names: give the id of every site, each once")
    return dict.fromkeys(sites, 1.0 / len(sites))


def times(weights: Mapping[str, float], number: int) -> BySite:
    """Return the weights times their number, so that they are 1 in the mean."""
    return BySite({site: value * number for site, value in weights.items()}, 1.0)


def on_simplex(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the nearest weights that are 0 or more and sum to 1.

    Source: Duchi et al., Efficient projections onto the l1-ball for learning in high dimensions, ICML 2008,
    Figure 1.
    """
    total, cut = 0.0, 0.0
    for place, value in enumerate(sorted(weights.values(), reverse=True), start=1):
        total += value
        if value > (total - 1.0) / place:
            cut = (total - 1.0) / place
    return {site: max(value - cut, 0.0) for site, value in weights.items()}


def raised(weights: Mapping[str, float], losses: Mapping[str, float], rate: float) -> dict[str, float]:
    """Return the weights after a step along the losses of the sites that told them."""
    step = rate * len(weights) / len(losses)
    return on_simplex({site: value + step * losses.get(site, 0.0) for site, value in weights.items()})


@dataclass(frozen=True)
class Ascend:
    """The server's step, from the weighed update and the losses at w."""

    rate: float
    is_averaged: bool

    def __call__(self, state: AflState, delta: Any, losses: Mapping[str, float]) -> AflState:
        """Return the next state."""
        iterate = tree.add(state.iterate, delta)
        after = state.round + 1
        gap = tree.sub(iterate, state.params)
        params = tree.add(state.params, tree.scale(gap, 1.0 / after)) if self.is_averaged else iterate
        return AflState(params, iterate, raised(state.weights, losses, self.rate), after)


def afl(local: Any, sites: Sequence[str], rate: float = 0.1, average: bool = True) -> fr.Algorithm:
    """Descend on the model and ascend on the weights of the sites.

    `sites` are the ids of all sites; `rate` is gamma_lambda; `local` has `loss(params, data)`. Without
    `average` what is reported is the last iterate. Raises ValueError where rate is negative.
    """
    start = uniform(sites, "afl")
    check_numbers("afl", least=0, rate=rate)
    check_has(local, "afl", "loss")

    def round(server: Any, site: Any) -> fr.Outputs:
        w = fr.broadcast(server.iterate)
        weight = fr.scatter(fr.apply(times, server.weights, len(start)))
        losses = fr.gather(fr.map(local.loss, w, site.data), name="loss")
        update = fr.map(local, w, site.data, site.rng)
        delta = fr.mean(fr.map(scaled, update.delta, weight), name="delta")
        return fr.Outputs(
            server=fr.apply(Ascend(rate, average), server, delta, losses),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    def init(params: Any) -> AflState:
        return AflState(params, params, dict(start))

    return fr.Algorithm(init, round, name="afl", sites=tuple(sites))
