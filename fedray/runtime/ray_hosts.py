"""Start the actors of hosts, and say where on the cluster they belong."""

from collections.abc import Sequence
from typing import Any

from fedray.runtime.federation import HostSpec
from fedray.runtime.ray_actors import HostActor, with_control


def start_hosts(specs: Sequence[HostSpec]) -> dict[str, Any]:
    """Start an actor for each host, all at once."""
    # a trace of a CPU: Ray spreads actors by what they need, and puts one that needs nothing anywhere
    options = {"num_cpus": 0.001, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
    return {
        spec.name: with_control(HostActor).options(**options, **_gpus(spec)).remote(spec) for spec in specs
    }


def _gpus(spec: HostSpec) -> dict[str, float]:
    return {"num_gpus": spec.gpu_share} if spec.gpu_share else {}
