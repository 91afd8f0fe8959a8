"""Real Ray nodes started by `cluster/node.sh` on loopback, with a token and mutual TLS.

A node that dies joins again; one whose cloud takes it back drains and stays away; a stop leaves no process.
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
PATIENCE_S = 90.0
# what the head knows of its nodes: address, is alive, is draining, and whether it has the label
NODES = """
import sys
from ray._raylet import GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo
head = GcsClient(address=sys.argv[1])
draining = head.get_draining_nodes()
for node_id, node in head.get_all_node_info(timeout=20).items():
    alive = node.state == GcsNodeInfo.GcsNodeState.ALIVE
    print(node.node_manager_address, alive, node_id.hex() in draining, node.labels.get("fedray.site", "-"))
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


def until(true, what, patience_s=PATIENCE_S):
    """Wait until something is true; return the seconds that it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < patience_s, f"not within {patience_s} s: {what}"
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
    for words in (["init"], ["node", "here", "127.0.0.1", "127.0.0.2"]):
        subprocess.run(
            [CLUSTER / "tls" / "handout.sh", *words], env=environment, check=True, stdout=subprocess.DEVNULL
        )
    (gcs_port,) = free_ports(1)
    environment |= {"FEDRAY_SECRETS": str(folder / "authority" / "handout" / "here"), "FEDRAY_DRAIN_S": "2",
                    "FEDRAY_GCS_PORT": str(gcs_port), "FEDRAY_HEAD": "127.0.0.1"}  # fmt: skip
    head = Machine(folder, "127.0.0.1", gcs_port, environment)
    head.start("run", "head", "--include-dashboard=false", "--min-worker-port=0", "--max-worker-port=0")
    yield head, Machine(folder, "127.0.0.2", gcs_port, environment)
    assert head.stop() == []
    subprocess.run(["rm", "-rf", folder], check=True)


def known(head):
    """Return what the head says of its nodes, a line each; nothing while it does not answer."""
    told = subprocess.run(
        [NODE, "env"], env=head.environment, capture_output=True, text=True, check=True
    ).stdout
    environment = head.environment | dict(line.split("=", 1) for line in told.splitlines())
    asked = [sys.executable, "-c", NODES, f"127.0.0.1:{head.gcs_port}"]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.splitlines()


def test_node_that_dies_joins_again_and_one_that_is_taken_back_stays_away(cluster):
    head, worker = cluster
    alive, draining = "127.0.0.2 True False h001", "127.0.0.2 True True h001"
    with metadata_service() as (address, paths):
        worker.environment |= {"FEDRAY_LABELS": "fedray.region=eu,fedray.site=h001", "FEDRAY_CLOUD": "aws",
                               "FEDRAY_METADATA": address}  # fmt: skip
        until(lambda: "127.0.0.1 True False -" in known(head), "head is up")
        worker.start("again", "worker", "--min-worker-port=0", "--max-worker-port=0")
        joined_s = until(lambda: alive in known(head), "worker has joined")

        (raylet,) = worker.raylets()
        raylet.kill()
        until(lambda: alive not in known(head), "the head has seen the raylet die")
        again_s = until(lambda: alive in known(head), "worker has joined again")
        assert worker.raylets() and worker.raylets()[0].pid != raylet.pid

        paths.add("/latest/meta-data/spot/instance-action")
        left_s = until(lambda: not {alive, draining} & set(known(head)), "worker has drained and left")
        print(f"joined {joined_s:.1f} s, again {again_s:.1f} s, left on notice {left_s:.1f} s")
        until(lambda: "takes this machine back" in worker.log.read_text(), "it stays away")
        assert worker.raylets() == []
    assert worker.stop() == []
