"""The cluster on test hosts that faults are done to, its drivers, and its processes by name.

Four hosts: the head with the aggregator and the drivers, two in `eu`, one in `us`, with token, mutual TLS, a
GCS in Redis, and the settings that fedray ships for clusters over a wide area. Checkpoints are on a file
system of their own that all hosts see and that can be filled.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.faults import gates, study
from experiments.testbed import Host, Hosts, kernel, wide_area
from experiments.testbed.ray_on_hosts import RayOnHosts

HEAD, HOME = "head", "hq"
REGIONS = {HOME: [HEAD], "eu": ["eu1", "eu2"], "us": ["us1"]}
FAR = wide_area(rtt_s=0.02, bits_per_s=200e6)
DISK_MIB = 32
LONGEST_RTO = "ipv4/tcp_rto_max_ms"  # since Linux 6.15; as cluster/node.sh sets it
PATIENT_TCP = {LONGEST_RTO: "5000"} if Path("/proc/sys/net", LONGEST_RTO).exists() else {}
ACTORS = ("ray::HostActor", "ray::StandingActor")
NUM_ACTORS = 6  # the aggregator, two regions, three packs
STARTS_WITHIN_S = 120.0


class Ended(Exception):
    """A driver has ended before what was waited for."""


class Late(Exception):
    """What was waited for did not come in time."""


class Driver:
    """A driver on the head, and all that it has told."""

    def __init__(self, host: Host, address: str, log: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self.log = log
        words = [sys.executable, "-m", "experiments.faults.driver", address]
        with log.open("a") as stderr:
            self.process: Any = host.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                           stderr=stderr, text=True)  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                self.events.append(json.loads(line))

    def tell(self, asked: dict[str, Any]) -> None:
        """Ask for a run. Raises Ended where the driver has."""
        try:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Ended(self.said()) from error

    @property
    def has_ended(self) -> bool:
        """Tell whether the process is gone and all that it said was read."""
        return self.process.poll() is not None and not self._reader.is_alive()

    def said(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def end(self, limit_s: float = 60.0) -> None:
        """Let it close its federation and end; end it where it does not."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def wait(is_so: Callable[[], Any], limit_s: float, what: str, every_s: float = 0.01) -> Any:
    """Wait until something is so, and return it. Raises Late."""
    limit = time.monotonic() + limit_s
    while not (found := is_so()):
        if time.monotonic() > limit:
            raise Late(f"{what}: not within {limit_s:g} s")
        time.sleep(every_s)
    return found


class Field:
    """The cluster, as a context manager."""

    def __init__(self, seed: int = 0) -> None:
        self._stack = contextlib.ExitStack()
        self._seed = seed
        self._processes: dict[str, tuple[str, int]] = {}  # name -> host, and its process id there
        self._driver: Driver | None = None

    def __enter__(self) -> "Field":
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedray-chaos-")))
            self.disk = self.folder / "disk"
            self.disk.mkdir()
            kernel.unshare(kernel.NEW_MOUNTS)  # what is mounted goes with this process
            kernel.mount("none", "/", flags=kernel.RECURSIVE | kernel.PRIVATE)
            kernel.mount("tmpfs", str(self.disk), "tmpfs", options=f"size={DISK_MIB}m")
            stack.callback(subprocess.run, ["umount", str(self.disk)], check=True)
            links = {(HOME, "eu"): FAR, (HOME, "us"): FAR, ("eu", "us"): FAR}
            made = Hosts(REGIONS, links=links, shared=[self.folder], has_sshd=False,
                         network=PATIENT_TCP, seed=self._seed)  # fmt: skip
            self.hosts = stack.enter_context(made)
            environment = {gates.FOLDER: str(self.folder)}
            self.cluster = RayOnHosts(self.hosts, HEAD, labels=study.LABELS, has_tls=True, has_redis=True,
                                      environment=environment)  # fmt: skip
            self.cluster.start()
            stack.callback(self.end_driver)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *failed: Any) -> None:
        self._stack.__exit__(*failed)

    def driver(self) -> Driver:
        """Return the driver; a new one where there is none."""
        if self._driver is None or self._driver.has_ended:
            self._driver = Driver(self.hosts[HEAD], self.cluster.address, self.folder / "driver.log")
        return self._driver

    def end_driver(self) -> None:
        """End the driver, and with it the federation."""
        if self._driver is not None:
            self._driver.end()

    def heal(self) -> None:
        """Let every link be as it was."""
        for region in REGIONS:
            if region != HOME:
                self.link(region).set(is_cut=False, doubled=0.0, latency_s=FAR["latency_s"])

    def learn(self, folder: Path) -> None:
        """Learn from marks which process is who."""
        for mark in gates.marks(folder):
            if mark["point"] == gates.HERE:
                self._processes[mark["who"]] = (mark["host"], mark["pid"])

    def pid(self, name: str) -> int:
        """Return the process id, on this machine, of the aggregator, a region or a pack. Raises Late where it
        is not there.
        """
        host, inner = self._processes[name]
        found = [pid for pid in self.hosts[host].pids(*ACTORS[0][:5]) if _inner(pid) == inner]
        if not found:
            raise Late(f"{name} is not there")
        return found[0]

    def actors(self) -> list[int]:
        """Return the processes of the run on all hosts."""
        return [pid for host in self.hosts for name in ACTORS for pid in host.pids(name)]

    def link(self, region: str) -> Any:
        """Return the link between the head and a region."""
        return self.hosts.link(HOME, region)


def _inner(pid: int) -> int:
    """Return the process id that a process has on its host."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid"):
                return int(line.split()[-1])
    except OSError:
        pass
    return -1


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
