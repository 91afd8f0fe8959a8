"""Fine-tuning after training: a site's own model is the global one after some local training.

Source: Wang et al., Federated evaluation of on-device personalization, 2019; Yu, Bagdasaryan and Shmatikov,
Salvaging federated learning by local adaptation, 2020, section 3.1 (fine-tuning, and freeze-base: only some
layers). Training is federated averaging; the sites keep nothing. Each personal evaluation fine-tunes anew
from the global model it is given, on the site's training rows; what comes out stays at the site.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import fedray as fr
from fedray.algorithms.fedavg import fedavg
from fedray.learn import parts
from fedray.learn.optimizer import ServerOptimizer


def fine_tuning(
    local: Any,
    tune: Any = None,
    trained: Sequence[str] | None = None,
    optimizer: ServerOptimizer | None = None,
    weighted: bool = True,
) -> fr.Algorithm:
    """Train by federated averaging; a site's own model comes from `tune` (`local` unless one is given).

    `trained` names the parameters that fine-tuning may move; without, it moves all. What it names must be a
    part of the model, else the first parameters are refused with a ValueError.
    """
    plain = fedavg(local, optimizer, weighted, name="fine_tuning")
    moved = None if trained is None else parts.named(trained, "trained")

    def init(params: Any) -> Any:
        if moved is not None:
            moved.check(params, "fine_tuning")
        return plain.init(params)

    return replace(plain, init=init, personal=tuned(tune or local, moved))


def tuned(local: Any, moved: parts.Part | None = None) -> Any:
    """Return the model that a site gets from the global one by local training on its own rows."""
    rest = None if moved is None else moved.rest

    def own(params: Any, site: Any) -> Any:
        start = params if rest is None else fr.map(parts.Still(rest), params)
        found = start + fr.map(local, start, site.data, site.stream("fine-tuning")).delta
        return found if rest is None else fr.map(parts.put, params, found)

    return own
