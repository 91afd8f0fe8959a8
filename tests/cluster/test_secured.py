"""What can be wrong with a cluster is named within ten seconds, by `fedray cluster check` and by a run.

One real cluster of two nodes for the file, with token and mutual TLS, at an address that is not loopback.
"""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray

from experiments.faults.judge import slowness
from fedray.cluster import certs
from fedray.runtime import ray_door
from fedray.runtime.credentials import INSECURE, from_environment
from fedray.runtime.findings import FAIL

pytestmark = [pytest.mark.ray, pytest.mark.cluster]
REPOSITORY = Path(__file__).resolve().parents[2]
NAMED_S = 10.0
PATIENCE_S = 120.0
SECRET = "PATIENT-VALUE-4711"


@dataclass
class Secured:
    """The cluster, what a process of it has in its environment, and the process that holds it."""

    address: str
    environment: dict[str, str]
    holder: subprocess.Popen
    folder: Path

    def tell(self, line):
        self.holder.stdin.write(line + "\n")
        self.holder.stdin.flush()
        assert self.holder.stdout.readline().strip() == "done"


def in_time(seconds):
    """Tell whether a process of its own was in time, with its share of processors on a busy machine."""
    return seconds < NAMED_S * slowness()


def own_address():
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family == socket.AF_INET and not ray_door.is_loopback(each.address):
                return each.address
    pytest.skip("this machine has no address but loopback")


def credentials(folder, name, token):
    home = folder / "nodes" / name
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(home / "node.crt"),
        "RAY_TLS_SERVER_KEY": str(home / "node.key"),
        "RAY_TLS_CA_CERT": str(home / "ca.crt"),
    }


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    address, folder = own_address(), tmp_path_factory.mktemp("secured")
    for authority in ("ours", "theirs"):
        certs.make_authority(folder / authority)
        certs.make_node(folder / authority, "all", [address])
        certs.make_token(folder / authority / "token")
    (folder / "data").mkdir()
    (folder / "data" / SECRET).write_text(SECRET)
    dropped = ("RAY_AUTH_TOKEN", "RAY_ADDRESS", INSECURE, "FEDRAY_SITE_DATA")
    environment = {name: value for name, value in os.environ.items() if name not in dropped} | {
        **credentials(folder / "ours", "all", folder / "ours" / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(REPOSITORY),
    }
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.secured", address],
        env={**environment, "FEDRAY_SITE_DATA": str(folder / "data")},
        cwd=REPOSITORY,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "stderr").open("w"),
    )
    try:
        told = holder.stdout.readline().strip()
        assert told, (folder / "stderr").read_text()[-3000:]
        yield Secured(told, environment, holder, folder)
    finally:
        holder.stdin.close()
        holder.wait(PATIENCE_S)


def changed(secured, other):
    """Return the environment with other values; an empty one takes a name out."""
    return {name: value for name, value in {**secured.environment, **other}.items() if value}


def at_the_door(secured, **other):
    """Return what fails at the door with another environment; it must be known in time."""
    environment = changed(secured, other)
    began = time.monotonic()
    door = ray_door.Door(secured.address)
    found = list(ray_door.knock(door, from_environment(environment), environment))
    assert time.monotonic() - began < NAMED_S
    return [each for each in found if each.status == FAIL]


def command(secured, *words, **other):
    """Run the command; return exit code, what it said, and its seconds."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "fedray", *words], cwd=secured.folder, text=True,
                          env=changed(secured, other), capture_output=True, timeout=PATIENCE_S,
                          check=False)  # fmt: skip
    assert SECRET not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


def check(secured, *words, **other):
    return command(secured, "cluster", "check", "--address", secured.address, *words, **other)


def test_sound_cluster_passes_every_check(secured):
    code, said, _ = check(secured, "--all-pairs", "--json")
    told = json.loads(said.splitlines()[-1])
    assert code == 0 and told["ok"], said
    passed = {each["check"] for each in told["checks"] if each["status"] == "PASS"}
    assert passed >= {"token", "tls", "head", "versions", "node", "dashboard", "ports", "disk", "clock"}
    assert passed >= {"shared memory", "open files"}


@pytest.mark.parametrize(("other", "check", "message"), [
    ({"RAY_AUTH_TOKEN_PATH": "theirs/token"}, "token", "the head refuses the token here: it has another"),
    ({"RAY_AUTH_MODE": ""}, "secure", "a cluster on a network is not joined without a token"),
    ({"RAY_AUTH_MODE": "", INSECURE: "1"}, "token", "the head asks for a token, and none is in use here"),
    ({"RAY_USE_TLS": ""}, "secure", "a cluster on a network is not joined without mutual TLS"),
    ({"RAY_USE_TLS": "", INSECURE: "1"}, "tls", "the head asks for TLS, and RAY_USE_TLS is not set here"),
])  # fmt: skip
def test_wrong_credential_is_named_at_the_door(secured, other, check, message):
    if other.get("RAY_AUTH_TOKEN_PATH"):
        other = {"RAY_AUTH_TOKEN_PATH": str(secured.folder / other["RAY_AUTH_TOKEN_PATH"])}
    (finding,) = at_the_door(secured, **other)
    assert (finding.check, finding.message) == (check, message) and finding.fix


def test_foreign_certificate_is_named_at_the_door(secured):
    foreign = credentials(secured.folder / "theirs", "all", secured.folder / "ours" / "token")
    (finding,) = at_the_door(secured, **foreign)
    assert finding.check == "tls" and "shows a certificate of another authority" in finding.message


def test_certificate_of_ours_that_the_cluster_does_not_trust_is_named(secured):
    foreign = credentials(secured.folder / "theirs", "all", secured.folder / "ours" / "token")
    both = secured.folder / "both.crt"
    both.write_text("".join((secured.folder / name / "ca.crt").read_text() for name in ("ours", "theirs")))
    (finding,) = at_the_door(secured, **{**foreign, "RAY_TLS_CA_CERT": str(both)})
    assert finding.message.startswith("the head refuses the certificate here")


def test_wrong_version_of_ray_is_named_at_the_door(secured, monkeypatch):
    real = ray.__version__
    monkeypatch.setattr(ray, "__version__", "2.59.0")
    (finding,) = at_the_door(secured)
    assert finding.check == "versions" and finding.message == f"Ray {real} at the head, 2.59.0 here"
    assert "one version everywhere: pip install 'ray[default]==2.59.0'" in finding.fix


def run(secured, *words, **other):
    return command(secured, "run", "experiment=debug", "report=none", "runtime=ray_cluster",
                   f"runtime.address={secured.address}", *words, **other)  # fmt: skip


@pytest.mark.parametrize(("other", "message"), [
    ({"RAY_AUTH_TOKEN_PATH": "theirs/token"}, "token: the head refuses the token here: it has another"),
    ({"RAY_USE_TLS": ""}, "secure: a cluster on a network is not joined without mutual TLS"),
])  # fmt: skip
def test_run_names_a_wrong_credential_in_its_first_lines(secured, other, message):
    other = {name: str(secured.folder / value) if value else value for name, value in other.items()}
    code, said, seconds = run(secured, **other)
    lines = [line for line in said.splitlines() if line.strip()]
    assert code == 2 and any(message in line for line in lines[:4]), said
    assert any("fix: " in line for line in lines[:5]) and in_time(seconds)


def test_site_map_whose_data_are_missing_ends_a_run_before_a_site_is_opened(secured):
    path, contract = secured.folder / "missing.yaml", secured.folder / "contract.yaml"
    path.write_text("sites:\n  h001: {data: /nowhere/at/all}\n")
    contract.write_text("name: vitals\noutcome: died\ncolumns: [{name: age}, {name: died, role: outcome}]\n")
    program = ("import sys; import fedray as fr; data = fr.data.at_sites(sys.argv[3], ['h001']); "
               "fr.connect(sys.argv[2], data, address=sys.argv[1])")  # fmt: skip
    words = [secured.address, str(path), str(contract)]
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=secured.folder,
                          env=secured.environment, text=True, capture_output=True, timeout=PATIENCE_S,
                          check=False)  # fmt: skip
    assert done.returncode == 1 and "One trust domain: All nodes of this Ray cluster" in done.stderr
    assert "ClusterError: data: site h001 on" in done.stderr and "/nowhere" not in done.stderr


def test_missing_label_and_missing_data_are_named_by_the_check(secured):
    pytest.importorskip("fedray.cluster.site_map")
    site_map = secured.folder / "site-map.yaml"
    site_map.write_text("sites:\n  h001: {data: /nowhere/at/all}\n  h002: {}\n")
    code, said, seconds = check(secured, "--site-map", str(site_map))
    assert code == 1 and in_time(seconds)
    assert "site h002: no node has fedray.site=h002; nodes have h001" in said
    assert "site h001 on" in said and "its data folder is not there" in said


def test_data_are_looked_for_on_the_node_of_their_site(secured):
    pytest.importorskip("fedray.cluster.site_map")
    site_map = secured.folder / "site-map.yaml"
    site_map.write_text("sites:\n  h001: {}\n  head: {labels: {fedray.role: aggregator}}\n")
    _, said, _ = check(secured, "--site-map", str(site_map))
    assert "1 of 2 sites have data on their node" in said, "the second node's environment names a folder"
    assert "nobody says where the data of head lie (1 of 2)" in said


@pytest.fixture(scope="module")
def with_another_fedray(secured):
    """Return the cluster with a third node for a while, whose fedray is another."""
    package = secured.folder / "other" / "fedray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "0.0.1"\n')
    secured.tell(f"add {package.parent}")
    yield secured
    secured.tell("remove")


def failures(secured):
    code, said, seconds = check(secured, "--json")
    assert code == 1 and in_time(seconds), said
    return [each for each in json.loads(said.splitlines()[-1])["checks"] if each["status"] == FAIL]


def test_other_fedray_on_a_node_is_named_by_the_check(with_another_fedray):
    (failed,) = failures(with_another_fedray)
    assert failed["check"] == "versions" and "(h009): fedray 0.0.1, " in failed["message"]


def test_other_fedray_on_a_node_ends_a_run_in_its_first_lines(with_another_fedray):
    code, said, seconds = run(with_another_fedray)
    assert code == 2 and "(h009): fedray 0.0.1, " in said and in_time(seconds)


def test_node_that_hangs_is_named_and_not_waited_for(with_another_fedray):
    with_another_fedray.tell("stop")
    (failed,) = failures(with_another_fedray)
    assert "(h009) takes connections and says nothing for 3 s" in failed["message"]
