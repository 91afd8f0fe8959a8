"""FedDyn: a regulariser at each site that changes with what the site has learnt.

Source: Acar, Zhao, Matas, Mattina, Whatmough, Saligrama, Federated learning based on dynamic regularization,
ICLR 2021, Algorithm 1:
  y_i = argmin f_i(y) - <h_i, y> + alpha/2 ||y - x||^2      h_i <- h_i - alpha (y_i - x)
  h <- h - alpha/N sum_S (y_i - x)                          x <- mean_S y_i - h / alpha
The sum is divided by ALL sites N; means are uniform. A site keeps h_i (the paper's gradient of L_k at its
last model), committed only where it was counted, so that h stays the mean of all h_i.
Deviations: the minimum is sought by `local`'s steps, from x (take many); alpha = 0 is uniform FedAvg, with
every h at zero; BatchNorm statistics are averaged.
"""

from dataclasses import dataclass
from typing import Any

import fedray as fr
from fedray import tree
from fedray.algorithms.scaling import check_num_sites, share_of_all, trainable
from fedray.settings import check_numbers


@dataclass(frozen=True)
class FedDynState:
    """Global parameters x, the server's memory h, and the number of the next round."""

    params: Any
    memory: Any
    round: int = 0


@dataclass(frozen=True)
class Follow:
    """The server's step, from the mean of y_i - x over the sites counted and their number."""

    alpha: float
    num_sites: int

    def __call__(self, state: FedDynState, delta: Any, count: int) -> FedDynState:
        """Return the next state."""
        share = self.alpha * share_of_all(count, self.num_sites)
        memory = tree.sub(state.memory, tree.scale(trainable(delta), share))
        params = tree.add(state.params, delta)
        if self.alpha:
            params = tree.sub(params, tree.scale(memory, 1.0 / self.alpha))
        return FedDynState(params, memory, state.round + 1)


def feddyn(local: Any, num_sites: int, alpha: float = 0.1) -> fr.Algorithm:
    """Regularise each site towards the global model and along its own memory.

    Raises ValueError where alpha is negative. A run with another number of sites than `num_sites`, which are
    all, not those of a round, is refused.
    """
    check_num_sites(num_sites, "feddyn")
    check_numbers("feddyn", least=0, alpha=alpha)

    def init(params: Any) -> FedDynState:
        return FedDynState(params, tree.zeros_like(params))

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.broadcast(server.params)
        update = fr.map(local, x, site.data, site.rng, correction=-site.state, anchor=x, prox=alpha)
        return fr.Outputs(
            server=fr.apply(Follow(alpha, num_sites), server, fr.mean(update.delta), fr.count(site)),
            site=site.state - alpha * update.delta,
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(
        init, round, lambda server: tree.zeros_like(server.params), name="feddyn", num_sites=num_sites
    )
