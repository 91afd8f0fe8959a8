"""q-FedAvg: the worse a site fares with the global model, the more it counts.

Source: Li, Sanjabi, Beirami, Smith, Fair resource allocation in federated learning, ICLR 2020, Algorithm 2.
With F_i the loss of the received model x at site i, BEFORE it trains there, and L the inverse of its rate:
  D_i = F_i^q L (x - y_i),   h_i = q F_i^(q-1) ||L (x - y_i)||^2 + L F_i^q,   x <- x - sum D_i / sum h_i
Each site's own loss counts; one loss of the server for all of them would cancel out. Sites are drawn with
probability p_i (`synchronous(sampling="weighted")`) and then count the same. The sites keep nothing.
Deviations: D_i and h_i travel divided by L, which cancels out, and a loss is F_i + 1e-10, so that F_i^(q-1)
exists where a model is perfect; BatchNorm statistics are averaged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fedray as fr
from fedray.algorithms.fedavg import FedAvgState
from fedray.algorithms.scaling import check_has, scaled, squared_norm
from fedray.rows import Column, Tagged, column, row
from fedray.settings import check_numbers

SMALLEST = 1e-10  # as in the authors' code


@dataclass(frozen=True)
class Share:
    """What a site counts for: F^q, and h / L."""

    weight: Any
    curvature: Any


@dataclass(frozen=True)
class ShareOf:
    """A site's share, from its loss and the squared norm of its update."""

    q: float
    lr: float | Callable[[int], float]
    lipschitz: float | None

    def __call__(self, loss: float, squares: float, rng: Any) -> Share:
        """Return the share of one site. Raises ValueError where a loss is negative."""
        if loss < 0:
            raise ValueError("qfedavg: a loss is below 0, and has no power q")
        eta = self.lr(rng.round) if callable(self.lr) else self.lr
        scale = self.lipschitz if self.lipschitz is not None else 1.0 / eta if eta else 0.0
        weight = (loss + SMALLEST) ** self.q
        return Share(weight, weight + self.q * weight / (loss + SMALLEST) * scale * squares)

    def rows(self, group: Any, loss: Tagged, squares: Tagged, rng: Tagged) -> Share:
        """Return the shares of a group; each power is taken alone, so that its bits are its own."""
        found = [self(row(loss, i), row(squares, i), row(rng, i)) for i in range(group.k)]
        numbers = zip(*((share.weight, share.curvature) for share in found), strict=True)
        weight, curvature = (Column(column(part).numbers, False) for part in numbers)
        return Share(weight, curvature)


def qfedavg(
    local: Any, q: float = 1.0, lipschitz: float | None = None, weighted: bool = False
) -> fr.Algorithm:
    """Average updates by the q-th power of the sites' losses, at the step that their curvature allows.

    q = 0 is federated averaging; a large q tends to the best worst site. `local` says its `lr` and has
    `loss(params, data)`; `lipschitz` is the paper's L, the inverse of `lr` where none is given. `weighted`
    weighs both sums by rows, for sites that are not drawn by them. Raises ValueError where q is negative.
    """
    check_numbers("qfedavg", least=0, q=q)
    check_numbers("qfedavg", above=0, or_none=True, lipschitz=lipschitz)
    check_has(local, "qfedavg", "lr", "loss")
    share_of = ShareOf(q, local.lr, lipschitz)

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.broadcast(server.params)
        loss = fr.map(local.loss, x, site.data)
        update = fr.map(local, x, site.data, site.rng)
        share = fr.map(share_of, loss, fr.map(squared_norm, update.delta), site.rng)
        weight = update.num_examples if weighted else None
        direction = fr.mean(fr.map(scaled, update.delta, share.weight), weight=weight, name="direction")
        curvature = fr.mean(share.curvature, weight=weight)
        delta = fr.apply(scaled, direction, 1.0 / curvature)
        return fr.Outputs(
            server=FedAvgState(server.params + delta, {}, server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(lambda params: FedAvgState(params, {}), round, name="qfedavg")
