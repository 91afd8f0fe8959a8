"""FedPer: the body of a model is averaged, its head stays at the site. LG-FedAvg and FedBN are this with
other parts.

Source: Arivazhagan et al., Federated learning with personalization layers, 2019, Algorithms 1 and 2: a site
trains base layers W_B and its own personalization layers W_P jointly by SGD; the server averages W_B,
weighted by rows. The site keeps W_P, committed only where it was counted; no other site and no server sees
it. The server's parameters hold the common start of W_P, with which a site begins, and which never changes.
Deviations: a cohort may be part of the sites, the mean is then over their rows; the server averages deltas.
"""

from collections.abc import Callable, Sequence
from typing import Any

import fedray as fr
from fedray import tree
from fedray.algorithms.fedavg import FedAvgState
from fedray.learn import parts
from fedray.learn.optimizer import ServerOptimizer, sgd


def fedper(
    local: Any,
    personal: Sequence[str] | None = None,
    optimizer: ServerOptimizer | None = None,
    weighted: bool = True,
) -> fr.Algorithm:
    """Average all parameters but those named in `personal` (the model's last layer), which stay at the
    site.
    """
    part = parts.part_of(personal, local, parts.last_layer)
    return partly_shared(local, part, optimizer, weighted, "fedper")


def partly_shared(
    local: Any, own: parts.Part, optimizer: ServerOptimizer | None, weighted: bool, name: str
) -> fr.Algorithm:
    """Train all parameters at a site; average those outside of `own`, which alone travel, both ways."""
    optimizer = optimizer or sgd(1.0)

    def round(server: Any, site: Any) -> fr.Outputs:
        shared = fr.apply(own.rest, server.params)
        x = fr.map(parts.join, fr.broadcast(shared, name="params"), site.state)
        update = fr.map(local, x, site.data, site.rng)
        weight = update.num_examples if weighted else None
        delta = fr.mean(fr.map(own.rest, update.delta), weight=weight, name="delta")
        return fr.Outputs(
            server=stepped(server, shared, delta, optimizer),
            site=site.state + fr.map(own, update.delta),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    init = starting(own, optimizer, name)
    return fr.Algorithm(init, round, lambda server: own(server.params), name, with_own)


def starting(own: parts.Part, optimizer: ServerOptimizer, name: str) -> Callable[[Any], FedAvgState]:
    """Return an `init` whose optimizer knows the shared parameters alone. It refuses a part that is none."""

    def init(params: Any) -> FedAvgState:
        own.check(params, name)
        params = tree.flatten(params)
        return FedAvgState(params, optimizer.init(own.rest(params)))

    return init


def stepped(server: Any, shared: Any, delta: Any, optimizer: ServerOptimizer) -> FedAvgState:
    """Return the server's next state: the shared parameters moved along the mean, the others as they were."""
    step = fr.apply(optimizer.step, shared, server.optimizer, delta, server.round)
    return FedAvgState(fr.apply(parts.put, server.params, step.params), step.state, server.round + 1)


def with_own(params: Any, site: Any) -> Any:
    """Return the model of a site that keeps some of the parameters."""
    return fr.map(parts.put, params, site.state)
