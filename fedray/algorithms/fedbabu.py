"""FedBABU: the body is trained and averaged under a head that stays as it was drawn; heads come at the end.

Source: Oh, Kim and Yun, FedBABU: Toward enhanced representation for federated image classification, ICLR
2022, Algorithm 1: in training only the body moves, and is averaged by rows; for a model of its own a site
fine-tunes afterwards. The sites keep nothing; the head goes to a host once. Deviations: fine-tuning is what
the personal evaluation does, with `tune` on the site's training rows, and nothing of it is kept or sent; a
`local` of your own must leave alone what lies behind the `trainable` elements of the parameters that it is
given.
"""

from collections.abc import Sequence
from typing import Any

import fedray as fr
from fedray.algorithms.fedper import starting, stepped
from fedray.algorithms.fine_tuning import tuned
from fedray.learn import parts
from fedray.learn.optimizer import ServerOptimizer, sgd


def fedbabu(
    local: Any,
    head: Sequence[str] | None = None,
    tune: Any = None,
    optimizer: ServerOptimizer | None = None,
    weighted: bool = True,
) -> fr.Algorithm:
    """Average a body that is trained under the frozen `head` (the last layer).

    `tune` is the local update that fine-tunes the whole model for a site: `local` unless one is given.
    """
    top = parts.part_of(head, local, parts.last_layer, "head")
    optimizer = optimizer or sgd(1.0)

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.broadcast(fr.apply(parts.Still(top), server.params), name="params")
        update = fr.map(local, x, site.data, site.rng)
        weight = update.num_examples if weighted else None
        delta = fr.mean(fr.map(top.rest, update.delta), weight=weight, name="delta")
        shared = fr.apply(top.rest, server.params)
        return fr.Outputs(
            server=stepped(server, shared, delta, optimizer),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(
        starting(top, optimizer, "fedbabu"), round, name="fedbabu", personal=tuned(tune or local)
    )
