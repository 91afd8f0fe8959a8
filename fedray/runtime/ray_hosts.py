"""Start the actors of hosts where on the cluster they belong.

Ray lets an actor wait for ever for a node that is not there, so a host with a place is started only where a
living node fits it; `nowhere` tells the others, whose sites are away.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import ray

from fedray.runtime.federation import HostSpec
from fedray.runtime.place import Node, living
from fedray.runtime.ray_actors import HostActor, with_control

TRACE = 0.001  # of a CPU: Ray spreads actors by what they need, and puts one that needs nothing anywhere


def living_nodes() -> list[Node]:
    """Return the living nodes of the cluster."""
    nodes: Any = ray.nodes  # untyped in Ray
    return living(nodes())


def nowhere(specs: Iterable[HostSpec]) -> set[str]:
    """Return the names of the hosts whose place no living node has."""
    pinned = [spec for spec in specs if spec.place is not None]
    nodes = living_nodes() if pinned else []
    return {
        spec.name for spec in pinned if spec.place and not any(spec.place.fits(node) for node in nodes)
    }


def start_hosts(specs: Sequence[HostSpec]) -> dict[str, Any]:
    """Start an actor for each host that has a node, all at once."""
    without = nowhere(specs)
    return {
        spec.name: with_control(HostActor).options(**_options(spec)).remote(spec)
        for spec in specs
        if spec.name not in without
    }


def _options(spec: HostSpec) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_cpus": TRACE, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD",
    }  # fmt: skip
    if spec.gpu_share:
        options["num_gpus"] = spec.gpu_share
    return options | (spec.place.options if spec.place else {})
