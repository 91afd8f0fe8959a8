"""status.json: what a run is doing now, refreshed at most once a second, and what can be said of it later.

The run's own process writes it. `read` tells a run that goes on from one whose process is gone: the process
id and when it started say so on the same machine, the age of the heartbeat from another one.
"""

import functools
import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "status.json"
SILENT_S = 20.0  # without a heartbeat, after which a run on another machine is called silent
RECENT = 10  # rounds whose mean tells how long the rest will take


@functools.cache
def machine() -> str:
    """Return a name of this machine, or container, that says nothing about it."""
    try:
        told = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        told = platform.node()
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def started_at(pid: int) -> str:
    """Return when a process started, in the kernel's own count; "" where it is gone or cannot be asked."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in ("Z", "X") else fields[19]


def is_alive(pid: int, started: str) -> bool:
    """Tell whether the process of a run is still there, and not another of its number."""
    if Path("/proc/self/stat").exists():
        return started_at(pid) == started != ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read(folder: Path) -> dict[str, Any]:
    """Return what a run is doing, or how it ended.

    `state` is running, done, failed, interrupted, crashed (its process is gone), silent (on another machine,
    without a heartbeat) or unknown.
    """
    path, file = folder / FILE, folder / "STATUS"
    state, _, reason = file.read_text().partition("\n") if file.exists() else ("unknown", "", "")
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    now = time.time()
    found |= {"run": str(folder), "state": state, "reason": reason.strip(), "now": now}
    if found.get("heartbeat"):
        found["heartbeat_age_s"] = max(0.0, now - found["heartbeat"])
    if state == "running":
        found["state"] = _of_running(found)
    if found["state"] in ("crashed", "silent", "interrupted", "failed"):
        found["go_on"] = f"fedray resume {folder}"
    if found.get("checkpoint"):
        found["checkpoint"]["age_s"] = max(0.0, now - found["checkpoint"]["time"])
    for host in found.get("hosts", ()):
        host["seen_age_s"] = None if host.get("seen") is None else max(0.0, now - host["seen"])
    return found


def _of_running(found: Mapping[str, Any]) -> str:
    if "pid" not in found:
        return "running"  # it has not begun to write, or was made by a fedray before this file
    if found["machine"] == machine():
        return "running" if is_alive(found["pid"], found["started"]) else "crashed"
    return "running" if found["heartbeat_age_s"] < SILENT_S else "silent"
