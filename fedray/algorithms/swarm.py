"""Swarm: federated averaging whose aggregator is another site in each round.

Source: Warnat-Herresthal et al., Swarm learning for decentralized and confidential clinical machine learning,
Nature 2021 (a leader is elected for every round and merges the parameters); the numbers are those of McMahan
et al., AISTATS 2017, Algorithm 1, to the bit: who adds up does not change a sum.
What changes is who sees what. The aggregator of a round, a hospital like the others, is sent what the
server is sent in FedAvg: that round's sums, among them the update of a site that is alone in its process, if
no pass hides it. No party is sent those of all rounds: in N rounds each of N sites is sent those of one.
Whose turn it is depends on the round's number alone (in the order of ids, or drawn with a seed), so that
every site knows it; for a site that is not there when its turn comes the next one stands in, which changes no
number. In simulation the aggregator process adds up for whoever's turn it is, and the round's metric
`aggregator` is that site's place in the order of ids. The sites keep nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import fedray as fr
from fedray.algorithms.afl import uniform
from fedray.algorithms.fedavg import fedavg
from fedray.learn.optimizer import ServerOptimizer
from fedray.rng import SERVER, Key

ORDERS = ("in_turn", "drawn")
NOTE = (
    "the server of a round is a site, another one each time (metrics: aggregator): it sees that round's sums "
    "and the model"
)


@dataclass(frozen=True)
class Turn:
    """Whose turn it is to aggregate, as a place in the order of the sites' ids."""

    num_sites: int
    order: str = "in_turn"
    seed: int = 0

    def __call__(self, round: int) -> int:
        """Return the place."""
        if self.order == "in_turn":
            return round % self.num_sites
        generator = Key(self.seed, round, SERVER, "aggregator").generator()
        return int(torch.randint(self.num_sites, (), generator=generator))

    def told(self, metrics: Mapping[str, Any], round: int) -> dict[str, Any]:
        """Return the metrics of a round with whose turn it was."""
        return {**metrics, "aggregator": self(round)}


def swarm(
    local: Any, sites: Sequence[str], optimizer: ServerOptimizer | None = None, weighted: bool = True,
    order: str = "in_turn", seed: int = 0
) -> fr.Algorithm:
    """Average the sites' updates at the site whose turn it is.

    Raises ValueError on another order, or where no site is named, or one twice.
    """
    if order not in ORDERS:
        raise ValueError(f"swarm: order={order!r}: choose one of {', '.join(ORDERS)}")
    sites = tuple(uniform(sites, "swarm"))
    averaging, turn = fedavg(local, optimizer, weighted), Turn(len(sites), order, seed)

    def round(server: Any, site: Any) -> fr.Outputs:
        found = averaging.round(server, site)
        return replace(found, metrics=fr.apply(turn.told, found.metrics, server.round))

    return fr.Algorithm(averaging.init, round, name="swarm", note=NOTE, sites=sites)
