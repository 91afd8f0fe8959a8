"""The part of `fedray doctor` that needs Ray: start one of our own, run one task, stop it."""

import time

import ray
from ray import exceptions as ray_errors

from fedray.errors import HostError
from fedray.runtime.ray_start import start_ray

TASK_PATIENCE_S = 60.0


def _double(number: int) -> int:
    return 2 * number


def check_ray() -> dict[str, float]:
    """Start Ray, run a task, stop Ray; return the seconds of each.

    A Ray that this process has already is used and left running. Raises HostError where a step fails.
    """
    was_there = ray.is_initialized()
    started = time.monotonic()
    start_ray("local", num_cpus=1)
    ready = time.monotonic()
    try:
        answer = ray.get(ray.remote(_double).remote(21), timeout=TASK_PATIENCE_S)
    except (ray_errors.RayError, TimeoutError) as error:
        raise HostError(f"Ray started, but a task did not run ({type(error).__name__})") from error
    finally:
        done = time.monotonic()
        if not was_there:
            ray.shutdown()
    if answer != 42:
        raise HostError(f"a task on Ray returned {answer} instead of 42")
    return {"start_s": ready - started, "task_s": done - ready, "stop_s": time.monotonic() - done}
