"""Start Ray, or join one. Loads neither torch nor anything else of the runtime.

Never an implicit address: `address="local"` starts a Ray of our own, another address joins a cluster that
runs. A Ray that this process has started is used again by the next federation, so that a sweep starts it
once.
"""

import contextlib
import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions as ray_errors

from fedray.errors import ClusterError, FedrayError, HostError
from fedray.runtime.ray_environment import WORKER_ENVIRONMENT

if TYPE_CHECKING:
    from fedray.runtime.ray_door import SiteAt

JOIN_S = 20.0  # the cluster has answered all questions by then, so this is Ray's own work
STARTING = (ConnectionError, RuntimeError, ValueError, TimeoutError, ray_errors.RayError)
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def start_ray(
    address: str, num_cpus: int | None = None, sites: "Callable[[], Mapping[str, SiteAt]]" = dict
) -> None:
    """Start a Ray of our own (`local`) or join the one at `address`; do nothing where this process has one
    already.

    A cluster is asked at its door first: see ray_door.py; then its nodes, for their code and the data of the
    `sites` of a site map, which are asked for when it is joined: a run builds its data set meanwhile. Raises
    HostError where it does not start or answer, ClusterError where it may not be joined.
    """
    if ray.is_initialized():
        return
    if address != "local":
        join_checked(address, sites)
        return
    _keep_the_token()
    with _worker_environment(), _named(address):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray.init(address="local", num_cpus=num_cpus or os.cpu_count(), include_dashboard=False, **QUIET)


def _keep_the_token() -> None:
    """Refuse to start a Ray of our own that asks for no token: it listens on every address of the machine.

    What its processes send each other stays on the machine, so it needs no TLS.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() == "token":
        return
    from fedray.runtime.credentials import INSECURE  # loads cryptography

    if os.environ.get(INSECURE) != "1":
        raise ClusterError(
            f"RAY_AUTH_MODE={mode}: Ray would listen on every address of this machine and ask nobody for a "
            f"token. Fix: unset RAY_AUTH_MODE; where nobody else reaches this machine, {INSECURE}=1"
        )


def join_checked(address: str, sites: "Callable[[], Mapping[str, SiteAt]]") -> None:
    """Join the cluster at an address after asking it, and then each node for its code and its sites' data."""
    from fedray.runtime import ray_door, ray_nodes

    door = ray_door.enter(address)
    join(address)
    try:
        ray_nodes.require(door, sites())
    except FedrayError:
        ray.shutdown()
        raise


def join(address: str, limit_s: float = JOIN_S) -> None:
    """Join the cluster at an address. Raises HostError where that fails or is not over in time."""
    with _worker_environment(), _named(address), _limited(limit_s):
        ray.init(address=address, **QUIET)


@contextlib.contextmanager
def _limited(limit_s: float) -> Iterator[None]:
    """Raise TimeoutError after a limit; in the main thread alone, where waiting can be broken off."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(*_: object) -> None:
        raise TimeoutError(f"not over within {limit_s:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _named(address: str) -> Iterator[None]:
    """Turn what Ray raises while it starts or joins into HostError."""
    try:
        yield
    except Exception as error:
        # of a node that is not up in time Ray raises an Exception without a class of its own
        if type(error) is not Exception and not isinstance(error, STARTING):
            raise
        check = "`fedray doctor`" if address == "local" else f"`fedray cluster check --address {address}`"
        raise HostError(
            f"Ray at {address!r} did not start or answer ({type(error).__name__}): check it with {check}; "
            "runtime=in_process needs no Ray"
        ) from error


@contextlib.contextmanager
def _worker_environment() -> Iterator[None]:
    """Set what workers inherit, and give the environment back afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    saved = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
