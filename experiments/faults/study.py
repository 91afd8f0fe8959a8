"""What is trained under faults: 8 generated hospitals in two regions, on the cluster or in this process.

The hospitals are on three nodes: four in a pack and one alone in `eu`, three in a pack in `us`; each region
has an aggregator of its own.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import fedray as fr
from experiments.faults import gates
from fedray.cluster.site_map import REGION_LABEL, ROLE_LABEL, SiteMap
from fedray.learn import optimizer
from fedray.runtime.checkpoint import Checkpoints

SITES = tuple(f"h{number:03d}" for number in range(1, 9))
ALGORITHMS = ("scaffold", "ditto", "fedadam")
HOST_LABEL, REGIONAL = "fedray.host", "regional"
HOMES = dict.fromkeys(SITES[:4], "eu2") | {SITES[4]: "eu1"} | dict.fromkeys(SITES[5:], "us1")
LABELS = {
    "head": {REGION_LABEL: "hq"},
    "eu1": {REGION_LABEL: "eu", ROLE_LABEL: REGIONAL, HOST_LABEL: "eu1"},
    "eu2": {REGION_LABEL: "eu", HOST_LABEL: "eu2"},
    "us1": {REGION_LABEL: "us", HOST_LABEL: "us1"},
}
SEED, COHORT, RUN, EVERY = 5, 0.75, "chaos", 2


def pack_of(site: str) -> str:
    """Return the name of a site's pack."""
    return {"eu2": "eu.pack0", "eu1": "eu.pack1", "us1": "us.pack0"}[HOMES[site]]


def site_map() -> SiteMap:
    """Return where the sites and the aggregators of their regions are."""
    sites = {
        site: {"region": LABELS[host][REGION_LABEL], "labels": {HOST_LABEL: host}}
        for site, host in HOMES.items()
    }
    regions = {"eu": {"aggregator": {REGION_LABEL: "eu", ROLE_LABEL: REGIONAL}}, "us": {}}
    return SiteMap.of({"regions": regions, "sites": sites})


@dataclass(frozen=True)
class Opener:
    """Open a site, at a gate."""

    inner: Any
    site: str

    def __call__(self) -> Any:
        gates.gate("open", -1, self.site)
        return self.inner()


@cache
def hospitals() -> Any:
    """Return the data."""
    made = fr.data.synthetic_icu(num_sites=len(SITES), scale=0.02, seed=3)
    named = dict(zip(SITES, made, strict=True))
    return replace(made, sites={site: Opener(made[name], site) for site, name in named.items()},
                   sizes={site: made.sizes[name] for site, name in named.items()}, regions={})  # fmt: skip


@cache
def model() -> Any:
    """Return the model."""
    return fr.learn.logistic(len(hospitals().features))


@dataclass(frozen=True)
class Gated:
    """A local update whose sites pass a gate each time that they train, and fail where they are `lost`."""

    inner: Any
    lost: frozenset[tuple[str, int]] = frozenset()

    @property
    def lr(self) -> Any:
        """The learning rate, which some algorithms read."""
        return self.inner.lr

    def __call__(self, params: Any, data: Any, rng: Any, **extra: Any) -> Any:
        """Train one site."""
        self._pass(rng)
        return self.inner(params, data, rng, **extra)

    def rows(self, group: Any, params: Any, data: Any, rng: Any, **extra: Any) -> Any:
        """Train the sites of a group."""
        for key in rng.value.items:
            self._pass(key)
        return self.inner.rows(group, params, data, rng, **extra)

    def _pass(self, key: Any) -> None:
        if (key.site, key.round) in self.lost:
            raise ArithmeticError("lost, as on the cluster")
        if key.site in SITES and key.label == "":
            gates.gate("train", key.round, key.site)


def algorithm(name: str, lost: Collection[tuple[str, int]] = ()) -> Any:
    """Return an algorithm whose sites, or whose server, keep state."""
    local = Gated(fr.learn.sgd(model(), lr=0.05, epochs=1, batch_size=16), frozenset(lost))
    if name == "scaffold":
        return fr.algorithms.scaffold(local, len(SITES))
    if name == "ditto":
        return fr.algorithms.ditto(local, prox=0.5)
    return fr.algorithms.fedavg(local, optimizer.adam(0.05))


def schedule(deadline_s: float | None = None) -> Any:
    """Return the schedule of a run."""
    return fr.synchronous(cohort=COHORT, quorum=0.2, on_failure="skip", deadline_s=deadline_s)


@cache
def cohort(round: int) -> tuple[str, ...]:
    """Return whom a round asks."""
    return tuple(schedule().cohort_of(round, SEED, SITES, {}))


def train(federation: Any, name: str, rounds: int, folder: str, *, lost: Collection[tuple[str, int]] = (),
          every_s: float = 1e9, deadline_s: float | None = None, **more: Any) -> Any:  # fmt: skip
    """Train; the same call on the cluster and in this process."""
    checkpoint = Checkpoints(folder, every_s=every_s, is_shared=True)
    evaluate = {"valid": fr.algorithms.evaluation(model(), split="valid", per_site=False)}
    return fr.fit(algorithm(name, lost), federation, init=model().init(0), rounds=rounds, seed=SEED,
                  schedule=schedule(deadline_s), evaluate=evaluate, every=EVERY, checkpoint=checkpoint,
                  **more)  # fmt: skip
