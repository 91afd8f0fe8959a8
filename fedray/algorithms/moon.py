"""MOON: local training whose features stay near those of the global model and far from the last local ones.

Source: Li, He and Song, Model-contrastive federated learning, CVPR 2021, Algorithm 1. The local loss is
  f + mu mean -log( e^{cos(z, z_glob)/tau} / (e^{cos(z, z_glob)/tau} + e^{cos(z, z_prev)/tau}) )
z being the features of the model in training, z_glob those of the model received, z_prev those of the site's
model after its last round, both without gradient. Models are averaged by rows. The site keeps its last model.
Deviations: features are those that the last layer reads, in evaluation mode (no dropout, kept statistics);
before its first round a site's last model is the common start. Not vectorised: three models see every batch.
"""

from collections.abc import Callable
from typing import Any

import fedray as fr
from fedray.algorithms.fedavg import FedAvgState
from fedray.learn import objectives, parts
from fedray.learn.optimizer import ServerOptimizer, sgd
from fedray.settings import check_numbers

OTHERS = parts.Part(("received", "previous"))


def three(received: Any, previous: Any) -> Any:
    """Return the model to be trained, beside the two that its features are compared with."""
    return parts.Still(OTHERS)(parts.beside(received, received=received, previous=previous))


def moon(
    local: Any,
    mu: float = 1.0,
    temperature: float = 0.5,
    features: Callable[[Any, Any], Any] | None = None,
    optimizer: ServerOptimizer | None = None,
    weighted: bool = True,
) -> fr.Algorithm:
    """Federated averaging with the model-contrastive loss of strength `mu`.

    `features(params, batch)` gives (rows, width); without, what the last layer of the model of `local` reads.
    Raises ValueError where that is not known, `mu` is negative or `temperature` not above 0.
    """
    check_numbers("moon", least=0, mu=mu)
    check_numbers("moon", above=0, temperature=temperature)
    found = features or objectives.features_of(local, "moon")
    contrast = objectives.pursuing(local, objectives.Contrast(found, mu, temperature), "moon")
    optimizer = optimizer or sgd(1.0)

    def init(params: Any) -> FedAvgState:
        params = OTHERS.keep_free(params, "moon")
        return FedAvgState(params, optimizer.init(params))

    def round(server: Any, site: Any) -> fr.Outputs:
        x = fr.broadcast(server.params)
        update = fr.map(contrast, fr.map(three, x, site.state), site.data, site.rng)
        moved = fr.map(OTHERS.rest, update.delta)
        delta = fr.mean(moved, weight=update.num_examples if weighted else None, name="delta")
        step = fr.apply(optimizer.step, server.params, server.optimizer, delta, server.round)
        return fr.Outputs(
            server=FedAvgState(step.params, step.state, server.round + 1),
            site=x + moved,
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(init, round, lambda server: server.params, name="moon")
