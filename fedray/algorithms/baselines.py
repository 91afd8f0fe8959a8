"""The baselines that every study needs: what a hospital gets alone, and what one exchange gives.

The third, pooled training, is a federation of one site that holds all rows: `fr.data.pooled(dataset)`, which
exists in simulation only.
"""

from dataclasses import dataclass
from typing import Any

import fedray as fr
from fedray.algorithms.fedavg import fedavg


@dataclass(frozen=True)
class LocalOnlyState:
    """The common start of all sites, and the number of the next round."""

    params: Any
    round: int = 0


def local_only(local: Any) -> fr.Algorithm:
    """Train a model at each site on its own rows alone. Only the training metrics leave."""

    def round(server: Any, site: Any) -> fr.Outputs:
        mine = fr.map(local, site.state, site.data, site.rng)
        return fr.Outputs(
            server=LocalOnlyState(server.params, server.round + 1),
            site=site.state + mine.delta,
            metrics=fr.mean(mine.metrics, weight=mine.num_examples),
        )

    return fr.Algorithm(
        LocalOnlyState,
        round,
        lambda server: server.params,
        "local_only",
        personal=lambda params, site: site.state,
    )


def one_shot(local: Any) -> fr.Algorithm:
    """Average models that were trained to the end at each site: run it for one round, with many local steps.

    Source: the one-round case of McMahan et al., AISTATS 2017, Algorithm 1.
    """
    return fedavg(local, name="one_shot")
