"""A Ray cluster on test hosts, started as on real machines: `ray start` on each, token, TLS, labels.

    with Hosts({"hq": ["head"], "eu": ["a", "b"]}, links=...) as hosts:
        cluster = RayOnHosts(hosts, "head", labels={"a": {"fedray.site": "h1"}}, has_tls=True)
        cluster.start()
        cluster.python("head", "-m", "my.driver", cluster.address)
        cluster.kill("a", "raylet")

Nothing here has to be stopped: all of it ends with the hosts. A driver runs on a host, as a process of its
own: this process never joins the cluster.
"""

import json
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.testbed.hosts import Hosts
from fedray.cluster import certs
from fedray.runtime.ray_environment import WORKER_ENVIRONMENT

PORT, REDIS_PORT = 6379, 6390
SECRETS = "/run/fedray-secrets"  # on each host: token, ca.crt, node.crt, node.key
SECRET_FILES = ("ca.crt", "node.crt", "node.key")
LOG = "/tmp/ray-start.log"
PATIENT = {"RAY_health_check_failure_threshold": "20"}  # as fedray ships: a cut of a minute ends no node
TLS = {
    "RAY_USE_TLS": "1",
    "RAY_TLS_CA_CERT": f"{SECRETS}/ca.crt",
    "RAY_TLS_SERVER_CERT": f"{SECRETS}/node.crt",
    "RAY_TLS_SERVER_KEY": f"{SECRETS}/node.key",
}
QUICK = {  # for tests that wait until a node is given up: 8.5 s
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
PROCESSES = {  # what a process of Ray has in its command line
    "service": "while :; do ray start",
    "raylet": "/raylet/raylet ",
    "gcs": "/gcs/gcs_server ",
    "start": "/bin/ray start ",
    "worker": "ray::",
}
STARTS_WITHIN_S = 120.0


def credentials(addresses: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Return ca.crt, node.crt and node.key of each name, as text, made as `fedray cluster certs` does."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        certs.make_authority(folder)
        for name, own in addresses.items():
            certs.make_node(folder, name, own)
        return {name: {file: (folder / "nodes" / name / file).read_text() for file in SECRET_FILES}
                for name in addresses}  # fmt: skip


class RayOnHosts:
    """Ray on some test hosts; see the module's text."""

    def __init__(
        self,
        hosts: Hosts,
        head: str,
        *,
        labels: Mapping[str, Mapping[str, str]] | None = None,
        health: Mapping[str, str] = PATIENT,
        has_token: bool = True,
        has_tls: bool = False,
        has_redis: bool = False,
        num_cpus: int = 1,
        object_store_mib: int = 256,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.hosts, self.head = hosts, head
        self.labels = {name: dict(found) for name, found in (labels or {}).items()}
        self.address = f"{hosts[head].address}:{PORT}"
        self.has_redis = has_redis
        self._sizes = [f"--num-cpus={num_cpus}", f"--object-store-memory={object_store_mib * 2**20}"]
        mode = {"RAY_AUTH_MODE": "token" if has_token else "disabled"}
        shared = {**WORKER_ENVIRONMENT, **mode, **health, **(environment or {})}
        if has_token:
            shared["RAY_AUTH_TOKEN_PATH"] = f"{SECRETS}/token"
        if has_tls:
            shared |= TLS
        if has_redis:
            shared["RAY_gcs_rpc_server_reconnect_timeout_s"] = "120"
        token = secrets.token_hex(32)
        made = credentials({host.name: [host.address] for host in hosts}) if has_tls else {}
        for host in hosts:
            host.environment |= shared
            for name, text in {"token": token, **made.get(host.name, {})}.items():
                host.write(f"{SECRETS}/{name}", text, mode=0o600)

    def start(self, *names: str) -> None:
        """Start the head and nodes on all hosts, or on those named, and wait until they have joined."""
        self.start_head()
        nodes = names or tuple(host.name for host in self.hosts if host.name != self.head)
        for name in nodes:
            self.start_node(name)
        self.wait_for_nodes(1 + len(nodes))

    def start_head(self, is_kept: bool = True) -> None:
        """Start the head, again and again where it does not come up or ends, unless `is_kept` is false."""
        host = self.hosts[self.head]
        own = {}
        if self.has_redis:
            if not host.pids("redis-server"):
                words = f"--port {REDIS_PORT} --bind 127.0.0.1 --save '' --appendonly no --dir /tmp"
                host.start("redis-server", *shlex.split(words), stdout=subprocess.DEVNULL)
            own = {"RAY_REDIS_ADDRESS": f"127.0.0.1:{REDIS_PORT}", "RAY_external_storage_namespace": "fedray"}
        words = self._words(self.head, "--head", f"--port={PORT}", "--include-dashboard=false")
        host.start("bash", "-c", _service(words, is_kept), env=own)

    def start_node(self, name: str, is_kept: bool = True) -> None:
        """Start a node, as a service would: again and again when it ends, unless `is_kept` is false."""
        words = self._words(name, f"--address={self.address}")
        self.hosts[name].start("bash", "-c", _service(words, is_kept))

    def _words(self, name: str, *words: str) -> str:
        labels = ",".join(f"{key}={value}" for key, value in self.labels.get(name, {}).items())
        told = [f"--labels={labels}"] if labels else []
        where = f"--node-ip-address={self.hosts[name].address}"
        return shlex.join(["ray", "start", "--block", where, *words, *self._sizes, *told])

    def wait_for_nodes(self, count: int, limit_s: float = STARTS_WITHIN_S) -> list[dict[str, Any]]:
        """Wait until exactly so many nodes are alive; return all that the cluster knows of.

        Raises RuntimeError after the limit, with the end of what `ray start` said on each host.
        """
        return self._nodes(str(count), str(limit_s), limit_s=limit_s)

    def wait_for_another(self, name: str, before: Sequence[str], limit_s: float = STARTS_WITHIN_S) -> None:
        """Wait until a host has a living node that is none of those `before`, by id; its old one may take
        long to be given up. Raises RuntimeError as `wait_for_nodes` does.
        """
        self._nodes(self.hosts[name].address, str(limit_s), *before, limit_s=limit_s)

    def known_nodes(self) -> list[dict[str, Any]]:
        """Return all nodes that the cluster knows of, dead ones too."""
        return self._nodes(self.hosts[self.head].address, str(STARTS_WITHIN_S), limit_s=STARTS_WITHIN_S)

    def _nodes(self, *words: str, limit_s: float) -> list[dict[str, Any]]:
        module = ("-m", "experiments.testbed.nodes", self.address)
        try:
            return list(json.loads(self.python(self.head, *module, *words, limit_s=limit_s + 30)))
        except RuntimeError as error:
            said = [f"-- {host.name}\n{self.said(host.name)}" for host in self.hosts]
            raise RuntimeError("\n".join([str(error), *said])) from None

    def said(self, name: str) -> str:
        """Return the end of what `ray start` said on a host."""
        try:
            return self.hosts[name].read(LOG)[-1500:]
        except FileNotFoundError:
            return ""

    def python(self, name: str, *words: str, limit_s: float = STARTS_WITHIN_S, **options: Any) -> str:
        """Run Python on a host and return what it prints."""
        return self.hosts[name].run(sys.executable, *words, limit_s=limit_s, **options)

    def kill(self, name: str, *kinds: str) -> list[int]:
        """Kill processes of Ray on a host, by SIGKILL: "raylet", "gcs", "worker", "start", and the
        "service" that starts it again.
        """
        return [pid for kind in kinds for pid in self.hosts[name].kill(PROCESSES[kind])]

    def kill_head(self) -> list[int]:
        """Kill all of Ray on the head, by SIGKILL, as if the machine's power went; a Redis there lives on."""
        host = self.hosts[self.head]
        hit = self.kill(self.head, "service", "start", "raylet", "gcs", "worker")
        hit += host.kill("/site-packages/ray/")  # agents, log monitor
        limit = time.monotonic() + 10
        while set(hit) & set(host.pids("ray")) and time.monotonic() < limit:
            time.sleep(0.05)
        return hit

    def log_files(self, name: str) -> list[Path]:
        """Return the files of Ray's log on a host, of all its sessions."""
        found = self.hosts[name].path("/tmp/ray").glob("session_2*/logs/*")
        return sorted(path for path in found if path.is_file())


def _service(words: str, is_kept: bool) -> str:
    """Return a line of a shell that starts a node, again and again as a service would, or once."""
    loop = f"while :; do {words}; sleep 2; done" if is_kept else f"exec {words}"
    return f"{{ {loop}; }} >>{LOG} 2>&1"
