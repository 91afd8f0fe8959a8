"""CFL: clustered federated learning, which divides the sites in two where one model stops to serve them all.

Source: Sattler, Mueller, Samek, Clustered federated learning: Model-agnostic distributed multitask
optimization under privacy constraints, IEEE TNNLS 2021, its bipartitioning (Algorithm 1) and its federated
form with weight updates. Every cluster c is averaged by itself, and divided where its model rests and its
sites do not:
  ||mean_c D_i|| < eps1 and max_c ||D_i|| > eps2:  c1, c2 = argmin of the largest cosine between D_i, D_j
  across; kept where sqrt((1 - that cosine) / 2) > gamma.
The server must SEE each site's update (a `gather`), so that secure sums and a policy that forbids gathers do
not go with it. It keeps a model a cluster; the sites keep nothing. Deviations: a cluster is averaged over its
sites asked, and divided in a round that counts all that were ever counted in it; a new site joins the first
cluster; BatchNorm statistics are averaged and enter no cosine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fedray as fr
from fedray import tree
from fedray.algorithms.afl import BySite
from fedray.settings import check_numbers
from fedray.tree import Flat

ROUNDING = 1e-7  # equal updates have a cosine of 1 to within 1e-15, so a distance of 1e-8


@dataclass(frozen=True)
class Clusters:
    """The models, and the cluster of each site."""

    models: tuple[Any, ...]
    members: dict[str, int]


@dataclass(frozen=True)
class CflState:
    """The clusters, and the number of the next round."""

    params: Clusters
    round: int = 0


def model_of(clusters: Clusters, site: str) -> Any:
    """Return the model of a site's cluster."""
    return clusters.models[clusters.members.get(site, 0)]


def models_by_site(clusters: Clusters) -> BySite:
    """Return {site: the model of its cluster}."""
    known = {site: clusters.models[place] for site, place in clusters.members.items()}
    first = clusters.models[0]
    return BySite(known or {"": first}, first)  # listed in the first round too, so that its bytes are counted


def halves(alike: Tensor) -> tuple[list[int], list[int]]:
    """Return the two groups whose largest similarity across is smallest; the first holds place 0.

    The most alike are joined until two groups are left (Algorithm 1).
    """
    count = len(alike)
    group = list(range(count))
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    left = count
    for i, j in sorted(pairs, key=lambda pair: -float(alike[pair])):
        if left > 2 and group[i] != group[j]:
            group = [group[i] if place == group[j] else place for place in group]
            left -= 1
    first = [i for i in range(count) if group[i] == group[0]]
    return first, [i for i in range(count) if group[i] != group[0]]


@dataclass(frozen=True)
class Divide:
    """The server's step: average every cluster, and divide those whose sites disagree."""

    eps1: float
    eps2: float
    gamma: float

    def __call__(self, before: Clusters, deltas: Mapping[str, Any]) -> Clusters:
        """Return the next clusters."""
        models = list(before.models)
        members = {**dict.fromkeys(deltas, 0), **before.members}
        for place in range(len(before.models)):
            names = [site for site in sorted(members) if members[site] == place]
            here = [site for site in names if site in deltas]
            if not here:
                continue
            rows = [tree.flatten(deltas[site]) for site in here]
            mean = torch.cat([row.buffer for row in rows]).double().mean(0, keepdim=True)
            schema = rows[0].schema
            models[place] = tree.add(models[place], Flat(mean.to(rows[0].buffer), schema))
            away = self._second_half(torch.cat([row.buffer[:, : schema.trainable] for row in rows]).double())
            if away and here == names:
                members.update({here[i]: len(models) for i in away})
                models.append(models[place])
        return Clusters(tuple(models), members)

    def _second_half(self, rows: Tensor) -> Sequence[int]:
        """Return the rows that leave the cluster; none where it stays whole."""
        norms = rows.norm(dim=1)
        if len(rows) < 2 or not (rows.mean(0).norm() < self.eps1 and norms.max() > self.eps2):
            return []
        unit = rows / norms.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
        alike = unit @ unit.T
        first, second = halves(alike)
        across = float(alike[first][:, second].max())
        return second if max(0.0, (1 - across) / 2) ** 0.5 > max(self.gamma, ROUNDING) else []


def cfl(local: Any, eps1: float = 0.01, eps2: float = 0.1, gamma: float = 0.0) -> fr.Algorithm:
    """Train one model, and more where sites pull it to different sides.

    `eps1` bounds the norm of a cluster's mean update at rest, `eps2` that of a single site that is not;
    `gamma` asks for more distance between the halves. Raises ValueError on negative numbers.
    """
    check_numbers("cfl", least=0, eps1=eps1, eps2=eps2, gamma=gamma)

    def round(server: Any, site: Any) -> fr.Outputs:
        mine = fr.scatter(fr.apply(models_by_site, server.params))
        update = fr.map(local, mine, site.data, site.rng)
        clusters = fr.apply(Divide(eps1, eps2, gamma), server.params, fr.gather(update.delta))
        return fr.Outputs(
            server=CflState(clusters, server.round + 1),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(
        lambda params: CflState(Clusters((tree.flatten(params),), {})),
        round,
        name="cfl",
        personal=lambda params, site: fr.map(model_of, params, site.id),
    )
