"""Push-sum (stochastic gradient push): gossip over a directed graph, which need not be balanced.

Source: Assran et al., Stochastic gradient push for distributed deep learning, ICML 2019, Algorithm 1:
  x_i <- x_i - eta g_i(z_i);   x_i <- sum_j p_ij x_j;   w_i <- sum_j p_ij w_j;   z_i = x_i / w_i
P is column-stochastic: a site deals its value out, by default in equal parts, to those that it sends to and
to itself; w_i starts at 1 and takes the graph's lack of balance out. The site keeps x_i and w_i; its model
is z_i. A site shows x_i and w_i to those that it sends to, and to the server, through which they travel. In
a round that asks some of the sites, or loses one, a site keeps what it would have given to absent ones, so
that P stays column-stochastic and sum x_i, sum w_i are not changed by mixing.
The average of all x_i, which every z_i approaches, is kept at the server for evaluation, moved in each round
by one named sum of what the x_i moved; `average=False` leaves that out, and then each z_i is evaluated.
Deviations: `local` may take several steps from z_i; plain SGD has no momentum buffer kept between rounds.
"""

from collections.abc import Sequence
from typing import Any

import fedray as fr
from fedray.algorithms.dpsgd import Averaged, GossipState
from fedray.algorithms.topology import Matrix, OnePeer, directed


def debiased(params: Any, site: Any) -> Any:
    """Return z_i = x_i / w_i, the model of a site."""
    return site.state["x"] / site.state["w"]


def push_sum(
    local: Any, sites: Sequence[str], graph: str | Matrix = "exponential", average: bool = True
) -> fr.Algorithm:
    """Step at each site along the gradient of its own model, then push values along the graph.

    `graph` is directed_ring, exponential, one_peer (another peer every round) or a matrix
    {receiver: {sender: weight}}. Raises ValueError on a matrix that is not column-stochastic, with weights
    above 0 on the diagonal, and strongly connected.
    """
    matrix = directed(graph, sites, "push_sum")

    def round(server: Any, site: Any) -> fr.Outputs:
        x, w = site.state["x"], site.state["w"]
        update = fr.map(local, x / w, site.data, site.rng)
        now = fr.apply(matrix, server.round) if isinstance(matrix, OnePeer) else matrix
        own = fr.mix({"x": x + update.delta, "w": w}, now, name="pushed", keep="columns")
        params = server.params
        if average:
            params = fr.apply(Averaged(len(sites)), params, fr.sum(own["x"] - x, name="moved"))
        return fr.Outputs(
            server=GossipState(params, server.round + 1),
            site=own,
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(
        GossipState,
        round,
        lambda server: {"x": server.params, "w": 1.0},
        "push_sum",
        personal=None if average else debiased,
        sites=tuple(sites),
    )
