"""IFCA: several global models, and every site trains the one that fits it best.

Source: Ghosh, Chung, Yin, Ramchandran, An efficient framework for clustered federated learning, NeurIPS 2020,
Algorithm 1: a site finds j = argmin_j F_i(x_j) and trains x_j. With s_ij = 1 where i chose j, else 0:
  option II (model averaging): x_j <- sum_i s_ij y_i / sum_i s_ij; a model that nobody chose stays,
  option I (gradient averaging): x_j <- x_j - gamma/m sum_i s_ij g_i over ALL m sites asked, g_i the gradient
  at x_j: let `local` take one full-batch step.
The sites keep nothing. Deviation: s_ij and y_i - x_j travel as one sum per model, so that only numbers of
sites become known and secure sums stay possible; a lone site sends as many models as there are.
Not vectorised: the choice reads each site's rows once a model; the local steps are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import fedray as fr
from fedray import tree
from fedray.algorithms.scaling import check_has
from fedray.rng import SERVER, Key
from fedray.settings import check_numbers, check_whole


@dataclass(frozen=True)
class IfcaState:
    """The models, and the number of the next round."""

    params: tuple[Any, ...]
    round: int = 0


@dataclass(frozen=True)
class Chosen:
    """The model that fits a site best, and one number per model: 1 at its place, else 0."""

    params: Any
    places: dict[str, int]


@dataclass(frozen=True)
class Choose:
    """Choose the model with the smallest loss; the first of equal ones."""

    loss: Callable[[Any, Any], float]

    def __call__(self, models: Sequence[Any], data: Any) -> Chosen:
        """Return the model and its place."""
        losses = [self.loss(model, data) for model in models]
        best = losses.index(min(losses))
        return Chosen(models[best], {str(place): int(place == best) for place in range(len(models))})


def follow(model: Any, total: Any, count: float) -> Any:
    """Return a model after the mean of its sites' updates; as it is where there is none."""
    return tree.add(model, tree.scale(total, 1.0 / float(count))) if count else model


def starts(params: Any, num_clusters: int, spread: float, seed: int) -> tuple[Any, ...]:
    """Return the first models: those given, or others drawn around one.

    Raises ValueError where another number of models is given.
    """
    if isinstance(params, (list, tuple)):
        if len(params) != num_clusters:
            raise ValueError(f"ifca: {len(params)} models are given for num_clusters={num_clusters}")
        return tuple(tree.flatten(model) for model in params)
    models = []
    for place in range(num_clusters):
        generator, model = Key(seed, 0, SERVER, f"ifca.{place}").generator(), tree.flatten(params).clone()
        for leaf in model.schema.leaves:
            if leaf.offset < model.schema.trainable:
                noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
                model[leaf.name].add_(noise.to(model.buffer), alpha=spread)
        models.append(model)
    return tuple(models)


def ifca(
    local: Any, num_clusters: int = 2, option: str = "II", weighted: bool = False, spread: float = 0.1,
    seed: int = 0
) -> fr.Algorithm:
    """Train `num_clusters` models, each by the sites that it fits best.

    `fit` takes a list of first models as `init`, or one, around which they are then drawn at normal distances
    of `spread`: equal models would stay equal. `local` has `loss(params, data)`; `weighted` weighs a
    cluster's mean by rows.
    Raises ValueError on another option or no cluster.
    """
    if option not in ("I", "II"):
        raise ValueError(f"ifca: option={option!r}: choose 'I' or 'II'")
    check_whole("ifca", num_clusters=num_clusters)
    check_numbers("ifca", least=0, spread=spread)
    check_has(local, "ifca", "loss")

    def round(server: Any, site: Any) -> fr.Outputs:
        chosen = fr.map(Choose(local.loss), fr.broadcast(server.params), site.data)
        update = fr.map(local, chosen.params, site.data, site.rng)
        everyone = fr.sum(update.num_examples, name="rows") if weighted else fr.count(site)
        models = []
        for place in range(num_clusters):
            share = chosen.places[str(place)] * (update.num_examples if weighted else 1)
            members = fr.sum(share, name=f"members.{place}")
            total = fr.sum(update.delta * share, name=f"delta.{place}")
            over = members if option == "II" else everyone
            models.append(fr.apply(follow, server.params[place], total, over))
        return fr.Outputs(
            server=IfcaState(tuple(models), server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(
        lambda params: IfcaState(starts(params, num_clusters, spread, seed)),
        round,
        name="ifca",
        personal=lambda params, site: fr.map(Choose(local.loss), params, site.data).params,
    )
