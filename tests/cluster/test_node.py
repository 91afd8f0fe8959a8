"""Real Ray nodes started by `cluster/node.sh` on loopback, with a token and mutual TLS.

A node that dies joins again; one whose cloud takes it back drains and stays away; a stop leaves no process.
The two machines are 127.0.0.2 and 127.0.0.3: Ray takes 127.0.0.1 for "find my address".
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
NODE = CLUSTER / "node.sh"
PATIENCE_S = 120.0
# keeps what the head knows of living nodes in a file: id, address and the label
WATCH = """
import os, sys, time
from ray._raylet import GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo
address, place = sys.argv[1:]
while True:
    try:
        head = GcsClient(address=address)
        while True:
            with open(place + ".new", "w") as file:
                for node_id, node in head.get_all_node_info(timeout=20).items():
                    if node.state == GcsNodeInfo.GcsNodeState.ALIVE:
                        site, address = node.labels.get("fedray.site", "-"), node.node_manager_address
                        print(node_id.hex(), address, site, file=file)
            os.replace(place + ".new", place)
            time.sleep(0.3)
    except Exception as error:
        print("not yet:", type(error).__name__, file=sys.stderr, flush=True)
        time.sleep(0.5)
"""
pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    found = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return found


def until(true, what, told=str, patience_s=PATIENCE_S):
    """Wait until something is true; return the seconds it took. Where it is not, show what `told` returns."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < patience_s, f"not within {patience_s} s: {what}\n{told()}"
        time.sleep(0.3)
    return time.monotonic() - began


@contextmanager
def metadata_service():
    """Yield a cloud's metadata service on loopback, and the set of paths that exist on it."""
    paths = {"/latest/api/token"}

    class Answer(BaseHTTPRequestHandler):
        def _answer(self):
            self.send_response(200 if self.path in paths else 404)
            self.end_headers()

        do_GET = do_PUT = _answer

        def log_message(self, *words):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Machine:
    """One of two machines, which differ in their loopback address and their ports alone."""

    def __init__(self, folder, address, gcs_port, environment):
        self.address, self.gcs_port = address, gcs_port
        self.environment = environment | {"FEDRAY_NODE_IP": address, "TMPDIR": str(folder)}
        self.log = folder / f"log-{address}"
        names = ("node-manager-port", "object-manager-port", "dashboard-agent-grpc-port",
                 "runtime-env-agent-port", "metrics-export-port", "dashboard-agent-listen-port")  # fmt: skip
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.flags = [f"--{name}={port}" for name, port in ports.items()]
        self.flags += ["--num-cpus=1", "--object-store-memory=100000000", f"--temp-dir={folder}/r"]
        self.process = None

    def start(self, verb, role, *flags):
        words = [NODE, verb, role, "--", *self.flags, *flags]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(words, env=self.environment, stdout=log, stderr=log)

    def said(self):
        """Return the end of what it has logged."""
        return self.log.read_text()[-3000:]

    def raylets(self):
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in family if one.name() == "raylet"]

    def stop(self):
        """Ask it to stop; return the processes that are left."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        _, left = psutil.wait_procs(family, timeout=20)
        for one in left:
            one.kill()
        return left


@pytest.fixture(scope="module")
def cluster():
    """A head and a worker on loopback, ended and swept up afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fr-", dir="/tmp"))  # short: Ray puts sockets below it
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "FEDRAY_"))}
    root = str(CLUSTER.parent)
    environment = keep | {"PATH": path, "PYTHONPATH": root, "FOLDER": str(folder / "authority")}
    for words in (["init"], ["node", "here", "127.0.0.2", "127.0.0.3"]):
        subprocess.run(
            [CLUSTER / "tls" / "handout.sh", *words], env=environment, check=True, stdout=subprocess.DEVNULL
        )
    (gcs_port,) = free_ports(1)
    environment |= {"FEDRAY_SECRETS": str(folder / "authority" / "handout" / "here"), "FEDRAY_DRAIN_S": "2",
                    "FEDRAY_GCS_PORT": str(gcs_port), "FEDRAY_HEAD": "127.0.0.2"}  # fmt: skip
    head = Machine(folder, "127.0.0.2", gcs_port, environment)
    head.start("again", "head", "--include-dashboard=false", "--min-worker-port=0", "--max-worker-port=0")
    worker = Machine(folder, "127.0.0.3", gcs_port, environment)
    try:
        yield head, worker
        assert head.stop() == []
    finally:
        for machine in (worker, head):
            if machine.process and machine.process.poll() is None:
                machine.stop()
    subprocess.run(["rm", "-rf", folder], check=True)


@contextmanager
def watched(head):
    """Yield a function that returns the ids of living nodes, as the head says, at an address with a site."""
    told = subprocess.run([NODE, "env"], env=head.environment, capture_output=True, text=True, check=True)
    environment = head.environment | dict(line.split("=", 1) for line in told.stdout.splitlines())
    place = head.log.with_name("nodes")
    asked = [sys.executable, "-c", WATCH, f"127.0.0.2:{head.gcs_port}", str(place)]
    with open(head.log.with_name("watch"), "w") as log:
        process = subprocess.Popen(asked, env=environment, stdout=log, stderr=log)

    def known(address, site="-"):
        rows = place.read_text().splitlines() if place.exists() else []
        return {words[0] for words in map(str.split, rows) if words[1:] == [address, site]}

    try:
        yield known
    finally:
        process.kill()
        process.wait()


def test_node_that_dies_joins_again_and_one_that_is_taken_back_stays_away(cluster):
    head, worker = cluster
    with metadata_service() as (address, paths), watched(head) as known:
        worker.environment |= {"FEDRAY_LABELS": "fedray.region=eu,fedray.site=h001", "FEDRAY_CLOUD": "aws",
                               "FEDRAY_METADATA": address}  # fmt: skip
        until(lambda: known("127.0.0.2"), "head is up", head.said)
        worker.start("again", "worker", "--min-worker-port=0", "--max-worker-port=0")
        joined_s = until(lambda: known("127.0.0.3", "h001"), "worker has joined", worker.said)
        first = known("127.0.0.3", "h001")

        (raylet,) = worker.raylets()
        raylet.kill()
        again_s = until(lambda: known("127.0.0.3", "h001") - first, "worker has joined again", worker.said)
        second = known("127.0.0.3", "h001") - first
        assert worker.raylets()[0].pid != raylet.pid

        paths.add("/latest/meta-data/spot/instance-action")
        left_s = until(lambda: not second & known("127.0.0.3", "h001"), "worker has left", worker.said)
        until(lambda: "takes this machine back" in worker.log.read_text(), "it stays away", worker.said)
        assert worker.raylets() == []
    print(f"joined {joined_s:.1f} s, again {again_s:.1f} s, left on notice {left_s:.1f} s")
    assert worker.stop() == []
