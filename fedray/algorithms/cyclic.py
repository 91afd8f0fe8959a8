"""Cyclic weight transfer: the model travels from site to site, and each trains it further.

Source: Chang et al., Distributed deep learning networks among institutions for medical imaging, JAMIA 2018,
"cyclical weight transfer". One round is one visit. The order is the schedule's: `synchronous(cohort=1,
sampling="cyclic")` visits the sites in the order of their ids, `sampling="shuffled"` in an order drawn anew
for every pass through all sites. A site that fails is retried, or skipped with on_failure="skip". The sites
keep nothing. Nothing is averaged: the server sees each site's update as it is, so the update is gathered, and
`egress` says that it is visible.
"""

from collections.abc import Mapping
from typing import Any

import fedray as fr
from fedray import tree
from fedray.algorithms.fedavg import FedAvgState
from fedray.errors import ScheduleError


def handed_on(state: FedAvgState, deltas: Mapping[str, Any]) -> FedAvgState:
    """Return the state after a visit. Raises ScheduleError where several sites were visited at once."""
    if len(deltas) != 1:
        raise ScheduleError(
            f"cyclic: the model visits one site a round, and {len(deltas)} were asked: "
            'use synchronous(cohort=1, sampling="cyclic") or sampling="shuffled"'
        )
    (delta,) = deltas.values()
    return FedAvgState(tree.add(state.params, delta), {}, state.round + 1)


def cyclic(local: Any) -> fr.Algorithm:
    """Train the model at one site after the other."""

    def round(server: Any, site: Any) -> fr.Outputs:
        update = fr.map(local, fr.broadcast(server.params), site.data, site.rng)
        return fr.Outputs(
            server=fr.apply(handed_on, server, fr.gather(update.delta)),
            metrics=fr.mean(update.metrics, weight=update.num_examples),
        )

    return fr.Algorithm(lambda params: FedAvgState(params, {}), round, name="cyclic")
