"""Test hosts on one machine: machines in network namespaces, in regions joined by links.

    with Hosts({"hq": ["head"], "eu": ["a", "b"]}, links={("hq", "eu"): wide_area()}) as hosts:
        hosts["a"].run("hostname")
        hosts.link("hq", "eu").cut()

Each host has its own network, processes, mounts, host name, shared memory, /tmp, /run, home and sshd; the
rest of the disk is that of this machine. Names of hosts resolve on all hosts. See wiring.py for what is
started; nothing of it is left when the block ends or this process dies.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.testbed import inside
from experiments.testbed.link import Link, wide_area
from experiments.testbed.wiring import address_of

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
PROGRAMS = {"ip": "iproute2", "ethtool": "ethtool", "sshd": "openssh-server", "ssh-keygen": "openssh-client",
            "nsenter": "util-linux", "rsync": "rsync"}  # fmt: skip
PASSED_ON = ("FEDRAY_DATA", "LANG", "MKL_CBWR", "OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE",
             "PYTHONPATH")  # fmt: skip
SSH_OPTIONS = ("-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR")
NEED_ROOT, STARTS_WITHIN_S, ENDS_WITHIN_S = 0, 120.0, 60.0
LIMIT_S = 120.0  # of a command on a host, unless said otherwise
Pair = tuple[str, str]  # of regions


def why_not() -> str:
    """Return why test hosts cannot be made here, for a test to skip with; "" where they can."""
    if not sys.platform.startswith("linux"):
        return "test hosts need Linux: they are network namespaces"
    if os.geteuid() != NEED_ROOT:
        return "test hosts need root: network, pid and mount namespaces"
    missing = [f"{name} ({package})" for name, package in PROGRAMS.items() if not program(name)]
    if missing:
        return f"test hosts need {', '.join(missing)}. Fix: apt-get install the package in brackets"
    words = [program("unshare"), "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "true"]
    tried = subprocess.run(words, capture_output=True, text=True, check=False)
    return f"test hosts need namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def program(name: str) -> str:
    """Return the path of a program of the system, "" where there is none."""
    return shutil.which(name, path=os.pathsep.join(SYSTEM)) or ""


class Host:
    """One test host."""

    def __init__(self, described: Mapping[str, Any], first: int, environment: Mapping[str, str]) -> None:
        self.name, self.address = str(described["name"]), str(described["address"])
        self.region, self.first = str(described["region_name"]), first
        self.environment = dict(environment)  # of commands; change it before they start

    def words(self, *command: str) -> list[str]:
        """Return a command line of this machine that runs a command on the host, in root's home there."""
        enter = [program("nsenter"), f"--target={self.first}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        return [*enter, "--", "/usr/bin/env", "-C", inside.HOME, *command]

    def start(self, *command: str, **options: Any) -> "subprocess.Popen[Any]":
        """Start a command on the host; options are those of `Popen`, `env` being added to the host's.

        It ends with the host; to end it before, kill a process of `pids`, not the one returned here.
        """
        environment = self.environment | options.pop("env", {})
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(self.words(*command), env=environment, start_new_session=True, **options)

    def run(self, *command: str, limit_s: float = LIMIT_S, check: bool = True, **options: Any) -> str:
        """Run a command on the host and return what it prints. Raises RuntimeError where it fails or takes
        longer than the limit.
        """
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what runs on the host is in the group too
            out, err = process.communicate()
            raise RuntimeError(
                f"{self.name}: `{' '.join(command)}` took over {limit_s:.0f} s:\n{out[-2000:]}{err[-2000:]}"
            ) from None
        if check and process.returncode:
            raise RuntimeError(f"{self.name}: `{' '.join(command)}` ended with {process.returncode}:\n"
                               f"{out[-2000:]}{err[-2000:]}")  # fmt: skip
        return str(out)

    def pids(self, *words: str) -> dict[int, str]:
        """Return the processes of the host whose command line has all these words: pids of this machine."""
        space, found = _pid_space(self.first), {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _pid_space(int(entry.name)) == space:
                with suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if line and all(word in line for word in words):
                        found[int(entry.name)] = line.strip()
        return found

    def kill(self, *words: str, number: int = signal.SIGKILL) -> list[int]:
        """Send a signal to the processes of `pids`, SIGKILL by default; return those that got it."""
        if not words:
            raise ValueError("name what to kill; `Hosts.restart` ends a whole host")
        hit = []
        for pid in self.pids(*words):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                hit.append(pid)
        return hit

    def path(self, path: str) -> Path:
        """Return where a path of the host, on its own /tmp for example, is found from here."""
        return Path(f"/proc/{self.first}", "root", path.lstrip("/"))

    def read(self, path: str) -> str:
        """Return the text of a file of the host."""
        return self.path(path).read_text(errors="replace")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file on the host: its own /tmp, /run and /dev/shm are those of the host."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)


def _pid_space(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return f"gone {pid}"


class Hosts:
    """Test hosts by region, as a context manager."""

    def __init__(
        self,
        regions: Mapping[str, Sequence[str]],
        *,
        links: Mapping[Pair, Mapping[str, Any]] | None = None,
        shared: Sequence[str | Path] = (),
        environment: Mapping[str, str] | None = None,
        shm_mib: int = 1024,
        tmp_mib: int = 2048,
        has_sshd: bool = True,
        network: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        """Describe the hosts. Pairs of regions without an entry in `links` are joined without any delay.

        `shared` are paths below /tmp, /run or /dev/shm that the hosts see as well; the repository, the
        environment of Python and FEDRAY_DATA are. `environment` is added to that of all commands and shells.
        `network` are settings of the hosts' kernel below /proc/sys/net, such as {"ipv4/tcp_retries2": "8"}.
        """
        names = [name for hosts in regions.values() for name in hosts]
        if len(set(names)) != len(names) or not 0 < len(names) <= 250:
            raise ValueError(f"give 1 to 250 hosts with different names, not {names}")
        self.regions = {region: tuple(hosts) for region, hosts in regions.items()}
        self._numbers = {region: number for number, region in enumerate(regions, 1)}
        self._settings = self._paired(links or {})
        self._shared, self._environment = [str(path) for path in shared], dict(environment or {})
        self._sizes = {"shm_mib": shm_mib, "tmp_mib": tmp_mib}
        self._has_sshd, self._network, self._seed = has_sshd, dict(network or {}), seed
        self.hosts: dict[str, Host] = {}
        self.links: dict[frozenset[str], Link] = {}

    def _paired(self, links: Mapping[Pair, Mapping[str, Any]]) -> dict[Pair, dict[str, Any]]:
        unknown = [pair for pair in links if len(set(pair)) != 2 or not set(pair) <= set(self.regions)]
        if unknown:
            raise ValueError(f"links {unknown}: name two of the regions {', '.join(self.regions)}")
        given = {frozenset(pair): dict(setting) for pair, setting in links.items()}
        every = [(a, b) for a in self.regions for b in self.regions if self._numbers[a] < self._numbers[b]]
        return {pair: given.get(frozenset(pair), {}) for pair in every}

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __iter__(self) -> Any:
        return iter(self.hosts.values())

    def link(self, source: str, target: str) -> Link:
        """Return the link between two regions, seen from the first."""
        found = self.links[frozenset((source, target))]
        return found if found.sides == (source, target) else found.reversed()

    @property
    def key(self) -> str:
        """Path of the private key with which root may log in on every host."""
        return str(self.folder / "key")

    @property
    def pid(self) -> int:
        """Process id of what owns the hosts."""
        return self._process.pid

    def __enter__(self) -> "Hosts":
        reason = why_not()
        if reason:
            raise RuntimeError(reason)
        self.folder = Path(tempfile.mkdtemp(prefix="fedray-testbed-"))
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "testbed", "-f", self.key]
        subprocess.run([program(key[0]), *key[1:]], check=True, stdin=subprocess.DEVNULL)
        self._line, other = socket.socketpair()
        search = {"PATH": os.pathsep.join(SYSTEM), "PYTHONPATH": str(ROOT)}
        with other, open(self.folder / "wiring.log", "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "experiments.testbed.wiring", str(other.fileno())],
                env=search, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(other.fileno(),),
                cwd="/", start_new_session=True,
            )  # fmt: skip
        self._answers = self._line.makefile("r")
        self._line.settimeout(STARTS_WITHIN_S)
        spec = self._spec()
        firsts = self._ask(spec)["firsts"]
        for host in spec["hosts"]:
            self.hosts[host["name"]] = Host(host, firsts[host["name"]], spec["environment"])
        for link in spec["links"]:
            self.links[frozenset(link["sides"])] = Link(tuple(link["sides"]), link["door"])

    def _spec(self) -> dict[str, Any]:
        placed = [(region, name) for region, names in self.regions.items() for name in names]
        hosts = [
            {"name": name, "region_name": region, "region": self._numbers[region], "number": number,
             "address": address_of(self._numbers[region], number), **self._sizes}
            for number, (region, name) in enumerate(placed, 1)
        ]  # fmt: skip
        links = [
            {"sides": pair, "regions": [self._numbers[region] for region in pair], "setting": setting,
             "seed": self._seed + number, "door": str(self.folder / f"link{number}")}
            for number, (pair, setting) in enumerate(self._settings.items())
        ]  # fmt: skip
        kept = [str(self.folder), str(ROOT), sys.prefix, sys.base_prefix, *self._shared]
        kept += [os.environ["FEDRAY_DATA"]] if os.environ.get("FEDRAY_DATA") else []
        sshd = program("sshd") if self._has_sshd else ""
        return {"folder": str(self.folder), "hosts": hosts, "links": links, "kept": kept, "sshd": sshd,
                "network": self._network, "environment": self._of_commands()}  # fmt: skip

    def _of_commands(self) -> dict[str, str]:
        own = [str(Path(sys.executable).parent), *SYSTEM]
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        fixed = {"PATH": os.pathsep.join(own), "HOME": inside.HOME, "USER": "root", "TERM": "dumb"}
        quiet = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
        return quiet | passed | fixed | self._environment

    def _ask(self, request: Any) -> Any:
        self._line.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._answers.readline() or "{}")
        if "error" in answer or not answer:
            log = (self.folder / "wiring.log").read_text()[-2000:]
            raise RuntimeError(f"test hosts: {answer.get('error', 'their process ended')}\n{log}")
        return answer

    def restart(self, name: str) -> None:
        """Turn a host off, at once, and on again: its processes, memory and /tmp are gone, its name and
        address stay.
        """
        self.hosts[name].first = self._ask({"restart": name})["first"]

    def ssh(self, source: str, target: str, *command: str, **options: Any) -> str:
        """Run a command on a host through the sshd there, coming from another host."""
        words = ["ssh", *SSH_OPTIONS, "-i", self.key, f"root@{target}", *command]
        return self.hosts[source].run(*words, **options)

    def close(self) -> None:
        """End everything and wait until it is gone. Closing twice does nothing."""
        if hasattr(self, "_line"):
            self._answers.close()
            self._line.close()
            try:
                self._process.wait(ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.hosts, self.links = {}, {}


__all__ = ["Host", "Hosts", "Link", "wide_area", "why_not"]
