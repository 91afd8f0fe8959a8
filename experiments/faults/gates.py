"""Gates: in every process of the cluster, each point of a round is marked, and one of them is held.

A gate writes a line, {"point", "round", "who", "pid", "host", "at", "is_held"}, into `marks` of the folder
that `now.json` names, and goes on. Where it is the one that `now.json` asks for it waits, once, until the
file `open` is there: so a fault that is seen before `open` is made has hit inside the point. Points inside
fedray are reached by wrapping its methods, in processes whose environment has FEDRAY_CHAOS alone; what the
methods do is not changed.
"""

import functools
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "FEDRAY_CHAOS"  # of `now.json`, which every host sees
MOST_HELD_S, LOOK_S = 120.0, 0.01
EVALUATION = "evaluation"
HERE = "here"  # marked in each process when it is set up, so that it is found by its name


def gate(point: str, round: int, who: str) -> None:
    """Pass a gate: mark it, and wait at the one that is asked for."""
    asked = wanted()
    if asked is None:
        return
    folder = Path(asked["folder"])
    is_held = [point, round, who] == [asked["point"], asked["round"], asked["who"]] and _claim(folder)
    _mark(folder, point, round, who, is_held=is_held)
    limit = time.monotonic() + MOST_HELD_S
    while is_held and not (folder / "open").exists() and time.monotonic() < limit:
        time.sleep(LOOK_S)
    if is_held:
        _mark(folder, "left " + point, round, who)


def wanted() -> dict[str, Any] | None:
    """Return what is asked of the gates now, None where nothing is."""
    if FOLDER not in os.environ:
        return None
    try:
        found: dict[str, Any] | None = json.loads((Path(os.environ[FOLDER]) / "now.json").read_text())
    except FileNotFoundError:
        return None
    return found


def ask(
    shared: Path, folder: Path, point: str = "", round: int = -1, who: str = "", twice_in: int | None = None
) -> None:
    """Let gates mark in a folder from now on, one of them be held, and the calls of a round be sent twice."""
    wanted = {"folder": str(folder), "point": point, "round": round, "who": who, "twice_in": twice_in}
    part = shared / "now.json.part"
    part.write_text(json.dumps(wanted))
    part.replace(shared / "now.json")


def forget(shared: Path) -> None:
    """Let every gate be passed without a mark."""
    (shared / "now.json").unlink(missing_ok=True)


def _claim(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "claimed", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _mark(folder: Path, point: str, round: int, who: str, **more: Any) -> None:
    line = {"point": point, "round": round, "who": who, "pid": os.getpid(), "host": socket.gethostname(),
            "at": time.time(), **more}  # fmt: skip
    descriptor = os.open(folder / "marks", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
    finally:
        os.close(descriptor)


def marks(folder: Path) -> list[dict[str, Any]]:
    """Return what was marked so far."""
    try:
        lines = (folder / "marks").read_text().split("\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines[:-1]]


def install() -> None:
    """Wrap the methods of fedray that a round passes through."""
    from fedray.runtime import pack, ray_transport, region, storage

    _wrap(region.Region, "ask", _region_asks)
    for owner in (region.Region, pack.Pack):
        _wrap(owner, "hello", _is_here)
        _wrap(owner, "load", _is_here)
    _wrap(pack.Pack, "run", _pack_runs)
    _wrap(storage.Folder, "write", _writes)
    _wrap(ray_transport.RayTransport, "submit", _submits)


def _wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def outer(self: Any, *args: Any) -> Any:
        return around(functools.partial(inner, self), self, *args)

    setattr(owner, name, outer)


def _is_here(inner: Any, host: Any, *args: Any) -> Any:
    gate(HERE, -1, host.name)
    return inner(*args)


def _region_asks(inner: Any, region: Any, call: Any, downlink: Any) -> Any:
    gate("ask", call.round, region.name)
    answer = inner(call, downlink)
    gate("gathered", call.round, region.name)
    return answer


def _pack_runs(inner: Any, pack: Any, call: Any, downlink: Any) -> Any:
    load = pack._plans.get(call.plan)
    if load is not None and load.plan.name.startswith(EVALUATION):
        gate("evaluate", call.round, pack.name)
        return inner(call, downlink)
    gate("received", call.round, pack.name)
    answer = inner(call, downlink)
    gate("answered", call.round, pack.name)
    return answer


def _writes(inner: Any, folder: Any, name: str, data: bytes) -> Any:
    kind, _, number = name.removesuffix(".json").partition("-")
    if kind == "server" and number.isdigit():  # the last file of a checkpoint
        gate("write", int(number), "aggregator")
    return inner(name, data)


def _submits(inner: Any, transport: Any, host: str, method: str, *args: Any) -> Any:
    call = inner(host, method, *args)
    asked = wanted()
    if asked is not None and method == "run" and args[0].round == asked["twice_in"]:
        again = transport._actors[host].ask.remote(call.number, method, *call.args)
        _mark(Path(asked["folder"]), "twice", args[0].round, host, reference=again.hex())
    return call


if FOLDER in os.environ:
    install()
