"""What all tests share: one Ray for the session, the folder of real data, and the markers they set."""

import contextlib
import gc
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
MARKED_BY_FIXTURE = {"ray_session": "ray", "fedray_data": "data"}
ACTORS_END_S = 20.0  # a killed actor's process is reported dead by Ray's own server a little later


def pytest_configure() -> None:
    """Keep absl, which dp-accounting brings, from closing pytest's stream when logging is configured anew."""
    with contextlib.suppress(ImportError):
        from absl import logging

        logging.get_absl_handler().python_handler.stream = sys.__stderr__


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures that they use, so that `-m "not ray"` never starts Ray."""
    for item in items:
        for fixture, marker in MARKED_BY_FIXTURE.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)


def pytest_collection_finish() -> None:
    """Take what is imported by now out of every later garbage collection: a tenth of the suite's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def folder_of_tracebacks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let sites that fail in tests leave their tracebacks where the tests' other files are."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FEDRAY_TRACEBACKS", str(tmp_path_factory.mktemp("hosts") / "tracebacks"))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def fedray_data() -> Path:
    """Return the folder of real data, or skip the test."""
    folder = os.environ.get("FEDRAY_DATA")
    if not folder:
        pytest.skip("FEDRAY_DATA is not set: it names the folder of eicu-demo and heart-disease")
    if not Path(folder).is_dir():
        pytest.fail(f"FEDRAY_DATA={folder} is not a folder")
    return Path(folder)


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start one local Ray for all tests of the session, and check at its end that no actor is left."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home folder
    patch.setenv("PYTHONPATH", str(ROOT))  # workers import test modules by name
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             object_store_memory=512 * 2**20)
    yield
    try:
        left = actors_alive(ACTORS_END_S) if ray.is_initialized() else []
    finally:
        ray.shutdown()
        patch.undo()
    assert not left, f"actors outlive the tests that started them: {', '.join(left)}"


def actors_alive(patience_s: float) -> list[str]:
    """Return the class names of the actors that Ray still runs once none is left or patience is over."""
    from ray._private.state import state  # the public list needs the dashboard

    deadline = time.monotonic() + patience_s
    while True:
        table = state.actor_table(None).values()
        left = sorted(str(actor["ActorClassName"]) for actor in table if actor["State"] != "DEAD")
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def are_gone(pids: Iterable[int]) -> bool:
    """Return whether all processes are gone, which is waited for: Ray returns before what it kills ends."""
    pids = list(pids)
    deadline = time.monotonic() + ACTORS_END_S
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(psutil.pid_exists, pids))
