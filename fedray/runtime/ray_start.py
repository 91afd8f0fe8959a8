"""Start Ray, or join one. Loads neither torch nor anything else of the runtime.

Never an implicit address: `address="local"` starts a Ray of our own, another address joins a cluster that
runs. A Ray that this process has started is used again by the next federation, so that a sweep starts it
once.
"""

import logging
import os
import secrets
from typing import Any

import ray

from fedray.errors import HostError
from fedray.runtime.ray_environment import WORKER_ENVIRONMENT


def start_ray(address: str, num_cpus: int | None = None) -> None:
    """Start a Ray of our own (`local`) or join the one at `address`; do nothing where this process has one
    already.

    Raises HostError where it does not start or answer.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    saved = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)  # inherited by the workers, given back below
    try:
        if address == "local":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            ray.init(address="local", num_cpus=num_cpus or os.cpu_count(), include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise HostError(
            f"Ray at {address!r} did not start or answer ({type(error).__name__}): check it with "
            "`fedray doctor`; runtime=in_process needs no Ray"
        ) from error
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
