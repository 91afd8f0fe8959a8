"""status.json: what a run is doing now, refreshed at most once a second, and what can be said of it later.

The run's own process writes it. `read` tells a run that goes on from one whose process is gone: the process
id and when it started say so on the same machine, the age of the heartbeat from another one. While a run is
being resumed, until it begins to write, resuming.json says so.
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedray.observe import lines

FILE = "status.json"
SILENT_S = 20.0  # without a heartbeat, after which a run on another machine is called silent
RESUMING = "resuming.json"
MOST_RESUMING_S = 600.0  # on another machine, whose processes cannot be asked
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


def write(path: Path, told: Mapping[str, Any]) -> None:
    """Write a file by one rename; where the disk is full the old one stays, and no half one."""
    temporary = path.with_name(f"{path.name}.part")
    try:
        with temporary.open("w") as file:
            file.write(json.dumps(told) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a name that is on the disk before its bytes is an empty file
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def resuming(folder: Path) -> Iterator[None]:
    """Let `fedray status` say that a run is being resumed, until it begins or this fails."""
    told = {"pid": os.getpid(), "started": started_at(os.getpid()), "machine": machine(), "time": time.time()}
    write(folder / RESUMING, told)
    try:
        yield
    finally:
        has_begun(folder)


def has_begun(folder: Path) -> None:
    """Note that a run writes its own status again."""
    with contextlib.suppress(OSError):
        (folder / RESUMING).unlink(missing_ok=True)


def read(folder: Path) -> dict[str, Any]:
    """Return what a run is doing, or how it ended.

    `state` is running, done, failed, interrupted, resuming (not yet begun again), crashed (its process is
    gone), silent (on another machine, without a heartbeat) or unknown. `unreadable` names status.json where
    it is there and holds no status.
    """
    file = folder / "STATUS"
    state, _, reason = file.read_text().partition("\n") if file.exists() else ("unknown", "", "")
    told = _told(folder / FILE)
    found: dict[str, Any] = _otherwise(folder) if told is None else told
    now = time.time()
    found |= {"run": str(folder), "state": state or "unknown", "reason": reason.strip(), "now": now}
    if found.get("heartbeat"):
        found["heartbeat_age_s"] = max(0.0, now - found["heartbeat"])
    if state == "running":
        found["state"] = _of_running(found)
    if _is_resuming(folder, now):
        found |= {"state": "resuming", "reason": "", "before": found["state"]}
    if found["state"] in ("crashed", "silent", "interrupted", "failed"):
        found["go_on"] = f"fedray resume {folder}"
    if found.get("checkpoint"):
        found["checkpoint"]["age_s"] = max(0.0, now - found["checkpoint"]["time"])
    for host in found.get("hosts", ()):
        host["seen_age_s"] = None if host.get("seen") is None else max(0.0, now - host["seen"])
    return found


def _told(path: Path) -> dict[str, Any] | None:
    """Return what a file of ours says, {} where there is none, None where it cannot be read."""
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def _otherwise(folder: Path) -> dict[str, Any]:
    """Return what is known of a run whose status.json cannot be read: when it was written, and the rounds."""
    rounds = [row["round"] for row in lines.read(folder / "rounds.jsonl")[0] if "round" in row]
    return {"unreadable": FILE, "heartbeat": (folder / FILE).stat().st_mtime,
            "done": max(rounds, default=-1) + 1}


def _is_resuming(folder: Path, now: float) -> bool:
    told = _told(folder / RESUMING)
    if not told:
        return False
    if told["machine"] == machine():
        return is_alive(told["pid"], told["started"])
    return bool(now - told["time"] < MOST_RESUMING_S)


def _of_running(found: Mapping[str, Any]) -> str:
    if "heartbeat_age_s" not in found:
        return "running"  # it has not begun to write, or was made by a fedray before this file
    if found.get("machine") == machine():
        return "running" if is_alive(found["pid"], found["started"]) else "crashed"
    return "running" if found["heartbeat_age_s"] < SILENT_S else "silent"
