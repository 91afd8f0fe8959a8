"""TERM: tilted empirical risk, which turns the mean over sites towards the worst (t > 0) or the best (t < 0).

Source: Li, Beirami, Sanjabi, Smith, Tilted empirical risk minimization, ICLR 2021, Algorithm 1 (batch TERM),
with sites in the place of samples. It minimises R(t; x) = 1/t log sum_i p_i e^(t F_i(x)):
  w_i = e^(t (F_i - R)),   x <- x + sum p_i w_i (y_i - x),   p_i = n_i / n,   so that the p_i w_i sum to 1.
Only ratios of e^(t F_i) matter, and an exact sum wants them near one, whatever the losses: two exchanges of
little give the mean loss and how many sites lie in which step of 8 of t (F_i - mean F), from which the server
knows the highest to within e^8; a third brings the updates. All of it are sums. Beyond 1024 above the mean,
sites count the same. The sites keep nothing.
Deviations: sites take local steps, as in FedAvg (one full-batch step is the paper's form); the weights sum to
one over the sites counted; BatchNorm statistics are averaged by p_i.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fedray as fr
from fedray.algorithms.fedavg import FedAvgState
from fedray.algorithms.scaling import check_has, num_rows_of, scaled
from fedray.rows import Column, Tagged, column, row
from fedray.settings import check_numbers

STEP, NUM_STEPS = 8.0, 128


@dataclass(frozen=True)
class Level:
    """One at the step of t (F - mean) that a site lies in, else zeros."""

    t: float

    def __call__(self, loss: float, mean: float) -> Tensor:
        """Return the place of one site."""
        place = min(NUM_STEPS - 1, max(0, math.floor(self.t * (loss - float(mean)) / STEP)))
        return torch.nn.functional.one_hot(torch.tensor(place), NUM_STEPS).double()

    def rows(self, group: Any, loss: Tagged, mean: Tagged) -> Tensor:
        """Return the places of a group."""
        return torch.stack([self(row(loss, i), row(mean, i)) for i in range(group.k)])


def highest(places: Tensor) -> float:
    """Return where the highest step that holds a site begins."""
    return STEP * int(places.nonzero().max())


@dataclass(frozen=True)
class Tilt:
    """e^(t (F - mean) - top) of a site, at most e^8."""

    t: float

    def __call__(self, loss: float, mean: float, top: float) -> float:
        """Return the weight of one site."""
        return math.exp(min(STEP, self.t * (loss - float(mean)) - top))

    def rows(self, group: Any, loss: Tagged, mean: Tagged, top: Tagged) -> Column:
        """Return the weights of a group, taken one site after the other, so that its bits are its own."""
        found = (self(row(loss, i), row(mean, i), row(top, i)) for i in range(group.k))
        return Column(column(found).numbers, False)


def term(local: Any, t: float = 1.0, weighted: bool = True) -> fr.Algorithm:
    """Average updates by the exponential of the sites' losses at the received model.

    t = 0 is federated averaging. `local` has `loss(params, data)`. Without `weighted` p_i is uniform.
    Raises ValueError where t is not finite.
    """
    check_numbers("term", t=t)
    check_has(local, "term", "loss")

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.broadcast(server.params)
        rows = fr.map(num_rows_of, site.data)
        weight = rows if weighted else None
        loss = fr.map(local.loss, x, site.data)
        mean = fr.broadcast(fr.mean(loss, weight=weight, name="loss"))
        top = fr.apply(highest, fr.sum(fr.map(Level(t), loss, mean), name="levels"))
        tilt = fr.map(Tilt(t), loss, mean, fr.broadcast(top))
        update = fr.map(local, x, site.data, site.rng)
        direction = fr.mean(fr.map(scaled, update.delta, tilt), weight=weight, name="direction")
        delta = fr.apply(scaled, direction, 1.0 / fr.mean(tilt, weight=weight, name="tilt"))
        return fr.Outputs(
            server=FedAvgState(server.params + delta, {}, server.round + 1),
            metrics=fr.mean(update.metrics, weight=rows),
        )

    return fr.Algorithm(lambda params: FedAvgState(params, {}), round, name="term")
