"""FedAMP: every site has a model in the cloud, drawn to the models of sites that are like it.

Source: Huang et al., Personalized cross-silo federated learning on non-IID data, AAAI 2021, Algorithm 1:
  u_i = (1 - sum_j xi_ij) w_i + sum_j xi_ij w_j,   xi_ij = alpha A'(||w_i - w_j||^2),
  A(x) = 1 - e^{-x/sigma},   w_i = argmin f_i(w) + lambda/(2 alpha) ||w - u_i||^2.
The site keeps w_i. The server must SEE each site's model (a `gather`), so that neither secure sums nor a
policy that forbids gathers go with it. Deviations: the minimum is approached by `local` from w_i; only sites
of the cohort are drawn together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

import fedray as fr
from fedray import tree
from fedray.algorithms.baselines import LocalOnlyState
from fedray.settings import check_numbers
from fedray.tree import Flat


@dataclass(frozen=True)
class Clouds:
    """u_i of every site, from all w_i."""

    alpha: float
    sigma: float

    def __call__(self, models: Mapping[str, Any]) -> dict[str, Flat]:
        """Return {site: u_i}."""
        names = sorted(models)
        w = torch.cat([tree.flatten(models[name]).buffer for name in names])
        apart = torch.cdist(w.double(), w.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
        xi = self.alpha * torch.exp(-apart / self.sigma) / self.sigma
        xi.fill_diagonal_(0.0)
        xi += torch.diag(1 - xi.sum(1))
        schema = tree.flatten(models[names[0]]).schema
        drawn = (xi @ w.double()).to(w)
        return {name: Flat(drawn[i : i + 1], schema) for i, name in enumerate(names)}


def fedamp(local: Any, alpha: float = 0.05, sigma: float = 1.0, prox: float = 0.05) -> fr.Algorithm:
    """Draw the models of like sites together; `prox` is lambda. u_i is a mean where alpha <= sigma/(sites -
    1).

    Raises ValueError on settings that are not above 0.
    """
    check_numbers("fedamp", above=0, alpha=alpha, sigma=sigma, prox=prox)

    def init(params: Any) -> LocalOnlyState:
        return LocalOnlyState(tree.flatten(params))

    def round(server: Any, site: Any) -> fr.Outputs:
        clouds = fr.apply(Clouds(alpha, sigma), fr.gather(site.state, name="model"))
        update = fr.map(
            local, site.state, site.data, site.rng, anchor=fr.scatter(clouds), prox=prox / alpha
        )
        return fr.Outputs(
            server=LocalOnlyState(server.params, server.round + 1),
            site=site.state + update.delta,
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(
        init, round, lambda server: server.params, "fedamp", personal=lambda params, site: site.state
    )
