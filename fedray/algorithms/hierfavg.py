"""HierFAVG: sites are averaged in their region, and regions from time to time.

Source: Liu, Zhang, Song, Letaief, Client-edge-cloud hierarchical federated learning, ICC 2020, Algorithm 1:
after kappa_1 local steps  w^l <- sum_{i in C^l} |D_i| w_i / |D^l|  at the edge server of each region l, and
after every kappa_2 of these  w <- sum_l |D^l| w^l / |D|  at the cloud. kappa_1 are the steps of `local`, and
kappa_2 is `period`: period - 1 rounds average in the regions, the next over all. A region is what the
federation declares (`simulate(regions=...)`, or the data set). The sites keep nothing; the server keeps the
model of each region, in the place of the edge servers, so that a site that was away goes on from its
region's present model. What leaves are sums, one for each region, and one over all in a global round.
Deviations: |D_i| are the rows of the sites that were counted, so that with some of the sites asked weights
still add up to 1. A region without a counted site keeps its model, and in a global round it does not enter
(what it learnt since the last one is lost): ask all sites then. Evaluated is the cloud's model, of the last
global round. With period=1 this is federated averaging, to the bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import fedray as fr
from fedray import tree
from fedray.settings import check_whole


@dataclass(frozen=True)
class HierFavgState:
    """The model of the last global round, the models of regions that have moved on from it, and the number of
    the next round.
    """

    params: Any
    regions: dict[str, Any] = field(default_factory=dict)
    round: int = 0


def models(state: HierFavgState) -> dict[str, Any]:
    """Return the model of each region; "" stands for those that have none of their own."""
    return {**state.regions, "": state.params}


def at_edges(state: HierFavgState, deltas: Mapping[str, Any]) -> HierFavgState:
    """Return the state after a round in the regions."""
    moved = {r: tree.add(state.regions.get(r, state.params), delta) for r, delta in deltas.items()}
    return HierFavgState(state.params, {**state.regions, **moved}, state.round + 1)


def at_cloud(state: HierFavgState, delta: Any, rows: Mapping[str, float]) -> HierFavgState:
    """Return the state after a global round: the mean over sites of (their region's model + their delta)."""
    params, total = tree.add(state.params, delta), sum(rows.values())
    for region in sorted(state.regions.keys() & rows.keys()):
        ahead = tree.sub(state.regions[region], state.params)
        params = tree.add(params, tree.scale(ahead, rows[region] / total))
    return HierFavgState(params, {}, state.round + 1)


def hierfavg(local: Any, period: int = 5) -> fr.Algorithm:
    """Average in the regions, and over all sites in every `period`-th round.

    Raises ValueError on a period below 1.
    """
    check_whole("hierfavg", period=period)

    def trained(server: Any, site: Any) -> Any:
        x = fr.scatter(fr.apply(models, server), by="region")
        update = fr.map(local, x, site.data, site.rng)
        return update, fr.mean(update.metrics, weight=update.num_examples)

    def regional(server: Any, site: Any) -> fr.Outputs:
        update, metrics = trained(server, site)
        deltas = fr.mean(update.delta, weight=update.num_examples, by="region")
        return fr.Outputs(server=fr.apply(at_edges, server, deltas), metrics=metrics)

    def everywhere(server: Any, site: Any) -> fr.Outputs:
        update, metrics = trained(server, site)
        delta = fr.mean(update.delta, weight=update.num_examples)
        rows = fr.sum(update.num_examples, name="rows", by="region")
        return fr.Outputs(server=fr.apply(at_cloud, server, delta, rows), metrics=metrics)

    if period == 1:
        return fr.Algorithm(HierFavgState, everywhere, name="hierfavg")
    return fr.Algorithm(HierFavgState, regional, name="hierfavg", every={period: everywhere})
