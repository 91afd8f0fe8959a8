"""FedRep: sites fit heads of their own on a common representation, then move it a little.

Source: Collins et al., Exploiting shared representations for personalized federated learning, ICML 2021,
Algorithm 1: a site takes its head steps with the body frozen, from its own last head, then its body steps
with the new head frozen; the server averages the bodies, uniformly. The site keeps the head. Deviations: the
number of body steps is a setting (one in the box, more in the experiments); the body starts as it is given,
where the analysis starts it by the method of moments. A `local` of your own must leave alone what lies behind
the `trainable` elements of the parameters that it is given.
"""

from collections.abc import Sequence
from typing import Any

import fedray as fr
from fedray.algorithms.fedper import starting, stepped, with_own
from fedray.learn import parts
from fedray.learn.optimizer import ServerOptimizer, sgd


def fedrep(
    local: Any,
    personal: Sequence[str] | None = None,
    head_local: Any = None,
    optimizer: ServerOptimizer | None = None,
    weighted: bool = False,
) -> fr.Algorithm:
    """Train the head named in `personal` (the last layer) by `head_local`, then the body by `local`.

    Without `head_local` the head is trained as the body is, with a random stream of its own.
    """
    head = parts.part_of(personal, local, parts.last_layer)
    optimizer = optimizer or sgd(1.0)

    def round(server: Any, site: Any) -> fr.Outputs:
        shared = fr.apply(head.rest, server.params)
        body = fr.broadcast(shared, name="params")
        still = fr.map(parts.Still(head.rest), fr.map(parts.join, body, site.state))
        fitted = fr.map(head_local or local, still, site.data, site.stream("head"))
        own = site.state + fr.map(head, fitted.delta)
        moving = fr.map(parts.Still(head), fr.map(parts.join, body, own))
        update = fr.map(local, moving, site.data, site.rng)
        weight = update.num_examples if weighted else None
        delta = fr.mean(fr.map(head.rest, update.delta), weight=weight, name="delta")
        return fr.Outputs(
            server=stepped(server, shared, delta, optimizer),
            site=own,
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    init = starting(head, optimizer, "fedrep")
    return fr.Algorithm(init, round, lambda server: head(server.params), "fedrep", with_own)
