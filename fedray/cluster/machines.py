"""What the nodes of a cluster are like as machines: disk, shared memory, open files, clocks, other Rays."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fedray.runtime.findings import FAIL, NOTE, PASS, Finding
from fedray.runtime.ray_gcs import Node

GIB = 2**30
DISK = 2 * GIB  # Ray's own logs and spilled objects, and a run's checkpoints
SHARED = GIB // 2  # below it Ray puts its objects on disk
OPEN_FILES = 4096  # an actor takes 43 on its node, and some at the head
SKEW_S = 1.0  # logs and timelines of nodes are merged by their clocks, and certificates start by them

Look = Mapping[str, Any]


def examine(nodes: Sequence[Node], looked: Mapping[str, Look], is_here: bool = False) -> Iterator[Finding]:
    """Yield what nodes lack, and one line for each check that all of them pass."""
    checks: tuple[tuple[str, str, Callable[[Look], tuple[str, str]], str], ...] = (
        ("disk", "disk_free", _disk, f"{_gib(DISK)} and more free"),
        ("shared memory", "shared", _shared, f"/dev/shm has {_gib(SHARED)} and more free"),
        ("open files", "open_files", _files, f"{OPEN_FILES} and more"),
    )
    for name, figure, look_at, fine in checks:
        wrong = [(node, *(_unread(figure, looked[node.id]) or look_at(looked[node.id]))) for node in nodes]
        lacking = [(node, what, fix) for node, what, fix in wrong if what]
        yield from (Finding(name, FAIL, f"{node.name}: {what}", fix) for node, what, fix in lacking)
        if nodes and not lacking:
            yield Finding(name, PASS, fine if is_here else f"{fine} on {len(nodes)} nodes")
    for node in nodes:
        yield from _others(node, looked[node.id])
        if not is_here:
            yield from _credentials(node, looked[node.id])


def _unread(figure: str, look: Look) -> tuple[str, str] | None:
    """Return what keeps a figure from being read on a node and the fix, or None where it was read."""
    error = look["unread"].get(figure)
    if error is None:
        return None
    what, fix = {
        "disk_free": ("Ray's folder", "make the folder that RAY_TMPDIR names there, or unset it"),
        "shared": ("/dev/shm", "mount it, or let Ray's user into it"),
        "open_files": ("the limit of open files", "look at the node's limits"),
        "credentials": ("its token or certificate", "let Ray's user there read them"),
    }[figure]
    return f"{what} cannot be looked at ({error})", fix


def _disk(look: Look) -> tuple[str, str]:
    if look["disk_free"] >= DISK:
        return "", ""
    return (
        f"{_less(look['disk_free'], DISK)} free in Ray's folder, {_gib(DISK)} wanted",
        "free some, or ray start --temp-dir",
    )


def _shared(look: Look) -> tuple[str, str]:
    if look["shared"] is None or look["shared"][1] >= SHARED:
        return "", ""
    total, free = look["shared"]
    fix = "in a container: --shm-size=2g; else mount -o remount,size=2g /dev/shm"
    return f"/dev/shm has {_less(free, SHARED)} of {_gib(total)} free, Ray wants {_gib(SHARED)}", fix


def _files(look: Look) -> tuple[str, str]:
    limit = look["open_files"]
    if limit is None or limit[0] < 0 or limit[0] >= OPEN_FILES:  # -1: no limit
        return "", ""
    return (
        f"a process may have {limit[0]} files open",
        "ulimit -n 65536 before ray start (LimitNOFILE= in a unit)",
    )


def _others(node: Node, look: Look) -> Iterator[Finding]:
    if look["other_rays"]:
        yield Finding(
            "other Ray",
            NOTE,
            f"{node.name}: {look['other_rays']} more Ray there",
            "give each Ray its own --temp-dir and ports, and end it by its process",
        )
    if look["reports_usage"] and node.is_head:
        yield Finding(
            "telemetry",
            FAIL,
            f"{node.name}: Ray may report its usage to its makers",
            "export RAY_USAGE_STATS_ENABLED=0 before ray start --head",
        )


def _credentials(node: Node, look: Look) -> Iterator[Finding]:
    """Yield what a node says of its own token and certificate."""
    if wrong := _unread("credentials", look):
        yield Finding("token", FAIL, f"{node.name}: {wrong[0]}", wrong[1])
    for check, status, message, fix in look["credentials"]:
        yield Finding(check, status, f"{node.name}: {message}", fix)


def clocks(nodes: Sequence[Node], skews: Mapping[str, tuple[float, float]]) -> Iterator[Finding]:
    """Yield each node whose clock is off by more than SKEW_S for certain, or how far the worst is."""
    worst = 0.0
    for node in nodes:
        if node.id not in skews:
            yield Finding(
                "clock", NOTE, f"{node.name}: not read in time", "run it again when the node is idle"
            )
            continue
        ahead, doubt = skews[node.id]
        worst = max(worst, abs(ahead) + doubt)
        if abs(ahead) - doubt > SKEW_S:
            where = "ahead of" if ahead > 0 else "behind"
            yield Finding(
                "clock",
                FAIL,
                f"{node.name}: {abs(ahead):.1f} s {where} this machine's, {SKEW_S:.0f} s is tolerated",
                "timedatectl set-ntp true on both",
            )
    if worst <= SKEW_S and skews:
        yield Finding(
            "clock", PASS, f"within {worst * 1e3:.0f} ms of this machine's ({SKEW_S:.0f} s is tolerated)"
        )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _less(size: int, wanted: int) -> str:
    """Return a size in words that read as less than another, with as many digits as that takes."""
    if _gib(size) != _gib(wanted):
        return _gib(size)
    return f"{size / GIB:.3f} GiB" if round(size / GIB, 3) < wanted / GIB else f"{size} B"
