"""D-PSGD: sites mix their models with those of their neighbours; no server holds one.

Source: Lian et al., Can decentralized algorithms outperform centralized algorithms? A case study for
decentralized parallel stochastic gradient descent, NeurIPS 2017, Algorithm 1:
  paper form:          x_i <- sum_j W_ij x_j - eta g_i(x_i)
  adapt_then_combine:  x_i <- sum_j W_ij (x_j - eta g_j(x_j))     (Cattivelli, Sayed, IEEE TSP 2010)
W is symmetric and doubly stochastic; Metropolis weights by default. The site keeps x_i. A site shows x_i (or
x_i - eta g_i) to each neighbour, and to the server, through which it travels: no secure sum hides it. In a
round that asks some of the sites, or loses one, a site gives itself the weights of the neighbours that are
not there, so that W stays symmetric and doubly stochastic among the others. Absent sites keep their models;
so does a site that is lost after it was mixed, though its neighbours have mixed with it.
The paper's output, the average of all x_i, is kept at the server for evaluation, moved in each round by one
named sum of what the sites moved; `average=False` leaves that out, and then each site's own model is
evaluated. Deviations: `local` may take several steps (their change takes the place of -eta g_i: local SGD
with gossip, Li et al., Communication-efficient local decentralized SGD methods, 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import fedray as fr
from fedray import tree
from fedray.algorithms.topology import Matrix, symmetric
from fedray.rows import Group, Tagged, expand, rows_of
from fedray.settings import check_numbers

VARIANTS = ("paper", "adapt_then_combine")


@dataclass(frozen=True)
class GossipState:
    """The average of all sites' models, where it is kept, else the start; and the next round's number."""

    params: Any
    round: int = 0


@dataclass(frozen=True)
class Averaged:
    """The average of the models of all sites, from what those that were there have moved."""

    num_sites: int

    def __call__(self, average: Any, moved: Any) -> Any:
        """Return the average after a round."""
        return tree.add(average, tree.scale(moved, 1.0 / self.num_sites))


def stepped(x: Any, delta: Any) -> Any:
    """Return x. Raises ArithmeticError where the site's step is not finite: nobody mixes with it then."""
    for _, leaf in tree.leaves(delta):
        numbers = leaf.buffer if isinstance(leaf, tree.Flat) else leaf
        if isinstance(numbers, torch.Tensor) and not bool(torch.isfinite(numbers).all()):
            raise ArithmeticError("the step is not finite")
    return x


@rows_of(stepped)
def stepped_rows(group: Group, x: Tagged, delta: Tagged) -> Any:
    """Return the rows of x."""
    return stepped(expand(x, group.k), delta.value)


def own_state(params: Any, site: Any) -> Any:
    """Return what a site keeps, which is its own model."""
    return site.state


def dpsgd(
    local: Any, sites: Sequence[str], graph: str | Matrix = "ring", variant: str = "paper",
    average: bool = True, edge_probability: float = 0.3, graph_seed: int = 0
) -> fr.Algorithm:
    """Mix each site's model with its neighbours' and step along its own gradient.

    `graph` is ring, torus, complete, star or erdos_renyi (of `edge_probability` and `graph_seed`), or a
    matrix {site: {site: weight}}. Raises ValueError on another variant, or a matrix that is not symmetric,
    doubly stochastic and connected.
    """
    if variant not in VARIANTS:
        raise ValueError(f"dpsgd: variant={variant!r}: choose one of {', '.join(VARIANTS)}")
    check_numbers("dpsgd", above=0, most=1, edge_probability=edge_probability)
    matrix = symmetric(graph, sites, edge_probability, graph_seed, "dpsgd")

    def round(server: Any, site: Any) -> fr.Outputs:
        x = site.state
        update = fr.map(local, x, site.data, site.rng)
        if variant == "paper":
            own = fr.mix(fr.map(stepped, x, update.delta), matrix, name="model") + update.delta
        else:
            own = fr.mix(x + update.delta, matrix, name="model")
        params = server.params
        if average:
            params = fr.apply(Averaged(len(sites)), params, fr.sum(own - x, name="moved"))
        return fr.Outputs(
            server=GossipState(params, server.round + 1),
            site=own,
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(
        GossipState, round, lambda server: server.params, "dpsgd", personal=None if average else own_state,
        sites=tuple(sites),
    )  # fmt: skip
