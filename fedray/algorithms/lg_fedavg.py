"""LG-FedAvg: each site has an encoder of its own, the head above it is averaged.

Source: Liang et al., Think locally, act globally: Federated learning with local and global representations,
2020, Algorithm 1: local representation and global parameters are trained jointly; the server averages the
global ones, weighted by rows. The site keeps its encoder. Deviations: the auxiliary losses of section 2
(self-supervised, adversarial) are left to the loss of the model; sites start with one encoder, the common
start.
"""

from collections.abc import Sequence
from typing import Any

import fedray as fr
from fedray.algorithms.fedper import partly_shared
from fedray.learn import parts
from fedray.learn.optimizer import ServerOptimizer


def lg_fedavg(
    local: Any,
    shared: Sequence[str] | None = None,
    optimizer: ServerOptimizer | None = None,
    weighted: bool = True,
) -> fr.Algorithm:
    """Average the parameters named in `shared` (the model's last layer); all others stay at the site."""
    head = parts.part_of(shared, local, parts.last_layer, "shared")
    return partly_shared(local, head.rest, optimizer, weighted, "lg_fedavg")
