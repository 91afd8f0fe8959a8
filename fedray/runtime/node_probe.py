"""What is asked on each node of a cluster. Sent as source, so that a node with another fedray answers too.

Only the standard library at the top, and functions that need nothing else of this file than each other.
What comes back are versions, sizes, counts and modes: never a name of a file, never a value.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def look(cluster: str, address: str, folders: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what this node is like; `folders` are those of the sites that belong here.

    A figure that the system does not give is named under `unread`, with the kind of the error.
    """
    unread: dict[str, str] = {}

    def figure(name: str, read: Callable[[], Any], otherwise: Any = None) -> Any:
        try:
            return read()
        except OSError as error:
            unread[name] = type(error).__name__
            return otherwise

    return {
        "ray": ray_version(),
        "python": platform.python_version(),
        "user": user(),
        "fedray": figure("fedray", fedray_code, ("", "")),
        "disk_free": figure("disk_free", disk_free),
        "shared": figure("shared", shared_memory),
        "open_files": figure("open_files", open_files),
        "other_rays": figure("other_rays", lambda: other_rays(cluster), 0),
        "reports_usage": os.environ.get("RAY_USAGE_STATS_ENABLED", "1") not in ("0", "false"),
        "credentials": figure("credentials", lambda: credentials_there(address), []),
        "folders": {site: count_entries(site, folder) for site, folder in folders.items()},
        "unread": unread,
    }


def user() -> str:
    """Return the user that this process runs as: its name, where the system knows one, and its number."""
    if os.name == "nt":
        return os.environ.get("USERNAME", "of this process")
    import pwd

    number = os.getuid()
    try:
        return f"{pwd.getpwuid(number).pw_name} (uid {number})"
    except KeyError:
        return f"uid {number}"


def disk_free() -> int:
    """Return the bytes that are free in Ray's folder."""
    return shutil.disk_usage(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).free


def shared_memory() -> tuple[int, int] | None:
    """Return the size of /dev/shm and how much of it is free; None where there is none."""
    return shutil.disk_usage("/dev/shm")[::2] if os.path.isdir("/dev/shm") else None


def ray_version() -> str:
    """Return the version of Ray that is installed."""
    return importlib.metadata.version("ray")


def fedray_code() -> tuple[str, str]:
    """Return fedray's version and a digest of its source; empty where it cannot be imported."""
    try:
        import fedray
    except ImportError:
        return "", ""
    root = Path(fedray.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return str(fedray.__version__), digest.hexdigest()[:12]


def open_files() -> tuple[int, int] | None:
    """Return how many files a process may have open: its own limit, and up to where it may raise it."""
    if os.name == "nt":
        return None
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)


def other_rays(cluster: str) -> int:
    """Count the raylets on this machine that belong to another cluster; 0 where the system does not tell."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words: list[str] = []
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            words = path.read_bytes().decode(errors="replace").split("\0")
        if words and os.path.basename(words[0]) == "raylet":
            found |= {word for word in words if word.startswith("--gcs-address=")}
    return len(found - {f"--gcs-address={cluster}"})


def credentials_there(address: str) -> list[tuple[str, str, str, str]]:
    """Return what is wrong with this node's own token and certificate, where its fedray can tell."""
    try:
        from fedray.runtime.credentials import examine, from_environment
    except ImportError:
        return []  # said under versions
    found = examine(from_environment(), [address])
    return [(each.check, each.status, each.message, each.fix) for each in found if each.status != "PASS"]


def count_entries(site: str, folder: str | None) -> int | str:
    """Return the number of entries of a site's folder; `unsaid` where nobody names one, `missing`,
    `unreadable` for the user here, or `failing` where the file system gives an error.

    A site map names it, or the node's own environment: the folder there, or the one of the site's name in it.
    """
    own = os.environ.get("FEDRAY_SITE_DATA")
    if not folder and own:
        folder = os.path.join(own, site) if os.path.isdir(os.path.join(own, site)) else own
    if not folder:
        return "unsaid"
    try:
        os.stat(folder)  # unlike os.path.exists it tells a folder that is shut from one that is not there
        found = len(os.listdir(folder)) if os.path.isdir(folder) else 1
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except PermissionError:
        return "unreadable"
    except OSError:
        return "failing"
    needed = os.R_OK | os.X_OK if os.path.isdir(folder) else os.R_OK
    return found if os.access(folder, needed) else "unreadable"


def clock() -> float:
    """Return this node's clock."""
    return time.time()


def reach_all(targets: Sequence[tuple[str, int]], limit_s: float) -> list[str]:
    """Return for each port why it cannot be reached from here, or an empty text; all are tried at once."""
    from concurrent.futures import ThreadPoolExecutor

    def knock(target: tuple[str, int]) -> str:
        return reach(*target, limit_s)

    with ThreadPoolExecutor(min(64, len(targets)) or 1) as pool:
        return list(pool.map(knock, targets))


def reach(host: str, port: int, limit_s: float) -> str:
    """Return why a TCP connection to a port fails, or an empty text."""
    try:
        socket.create_connection((host, port), limit_s).close()
    except socket.gaierror:
        return f"the name {host} is not known"
    except ConnectionRefusedError:
        return f"{host} answers, but nothing listens on port {port}"
    except TimeoutError:
        return f"{host} did not answer on port {port} within {limit_s:.0f} s"
    except OSError as error:
        return f"{host} cannot be reached on port {port} ({error.strerror or type(error).__name__})"
    return ""
