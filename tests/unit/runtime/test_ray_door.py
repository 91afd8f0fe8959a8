"""The door of a cluster as far as no Ray is needed: what is refused, and what a port that is none says."""

import contextlib
import json
import platform
import socket
import threading
import time
from dataclasses import dataclass

import pytest
import ray

from fedray.errors import ClusterError, ConfigError, HostError
from fedray.runtime import ray_door, ray_gcs, ray_start
from fedray.runtime.credentials import INSECURE, Credentials, from_environment
from fedray.runtime.findings import FAIL
from fedray.runtime.handshake import greet, parse, shake
from fedray.runtime.place import Place
from fedray.runtime.versions import MATCH_LEVEL

OURS = ".".join(platform.python_version_tuple()[:2])
PATIENCE_S = 10.0  # what the preflight may take to name a cause


@dataclass
class At:
    """A line of a site map."""

    place: Place
    data: str | None = None


def node(address="10.0.0.2", **labels):
    named = {f"fedray.{key}": value for key, value in labels.items()}
    return ray_gcs.Node(address, address, 1, 2, named, False)


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.mark.parametrize("address", ["auto", "10.0.0.1", "ray://10.0.0.1:1", "10.0.0.1:0", ":6379", "h:x"])
def test_address_that_is_none_is_refused_with_an_example(address):
    with pytest.raises(ConfigError, match=r"is no address of a Ray cluster. Fix: HOST:PORT"):
        parse(address)


def test_address_of_both_kinds_is_parsed():
    assert parse("head.example:6379") == ("head.example", 6379)
    assert parse("[fd00::2]:6379") == ("fd00::2", 6379)


@pytest.mark.parametrize(("settings", "missing"), [
    ({}, "a token and mutual TLS"),
    ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"}, "mutual TLS"),
    ({"RAY_AUTH_TOKEN": "t", "RAY_USE_TLS": "1"}, "a token"),
])  # fmt: skip
def test_cluster_on_a_network_is_refused_before_it_is_asked(settings, missing):
    began = time.monotonic()
    with pytest.raises(ClusterError) as refused:
        ray_door.enter("203.0.113.1:6379", {"HOME": "/nowhere", **settings})
    assert time.monotonic() - began < 1.0, "nothing was asked: that address never answers"
    (problem,) = refused.value.problems
    assert f"a cluster on a network is not joined without {missing}. Fix: " in problem and INSECURE in problem


def test_override_goes_without_and_says_so():
    found = list(ray_door._secure(["10.0.0.1"], Credentials(), {INSECURE: "1"}))
    assert [each.status for each in found] == ["NOTE"] and f"{INSECURE}=1" in found[0].message


def test_loopback_needs_neither():
    assert list(ray_door._secure(["127.0.0.1", "localhost", "::1"], Credentials(), {})) == []


@pytest.mark.parametrize(("settings", "is_refused"), [
    ({"RAY_AUTH_MODE": "disabled"}, True),
    ({"RAY_AUTH_MODE": "disabled", INSECURE: "1"}, False),
    ({"RAY_AUTH_MODE": "token"}, False),
    ({}, False),
])  # fmt: skip
def test_ray_of_our_own_is_not_started_without_a_token(monkeypatch, settings, is_refused):
    for name in ("RAY_AUTH_MODE", INSECURE):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    refusal = pytest.raises(ClusterError, match=r"ask nobody for a token. Fix: unset RAY_AUTH_MODE")
    with refusal if is_refused else contextlib.nullcontext():
        ray_start._keep_the_token()


def test_port_where_nothing_listens_is_named(listener):
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(ClusterError, match=rf"nothing listens on port {port}. Fix: start Ray on the head"):
        ray_door.enter(f"127.0.0.1:{port}", {"HOME": "/nowhere"})


def test_name_that_is_not_known_is_named():
    (found,) = ray_door._reached("no-such-host.invalid", 6379)
    assert found.status == FAIL and "is not known" in found.message


def test_port_of_something_else_is_told_from_a_head(listener):
    def serve():
        talk, _ = listener.accept()
        talk.recv(1)
        talk.sendall(b"SSH-2.0-something\r\n")
        talk.close()

    began = time.monotonic()
    threads = [threading.Thread(target=serve, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    with pytest.raises(ClusterError, match=r"not as the head of a Ray cluster"):
        ray_door.enter(f"127.0.0.1:{listener.getsockname()[1]}", {"HOME": "/nowhere"})
    assert time.monotonic() - began < PATIENCE_S


def test_port_that_accepts_and_says_nothing_is_left_within_the_limit(listener):
    began = time.monotonic()
    answer = greet("127.0.0.1", listener.getsockname()[1], None, 0.3)
    assert time.monotonic() - began < 2.0 and not answer.speaks_tls and answer.refusal == "TimeoutError"


def test_plain_port_fails_where_tls_is_on_here(listener, tmp_path):
    from fedray.cluster import certs

    def serve():
        talk, _ = listener.accept()
        talk.recv(1)
        talk.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")  # as a plain gRPC server does
        talk.close()

    certs.make_authority(tmp_path)
    certs.make_node(tmp_path, "h", ["127.0.0.1"])
    home = tmp_path / "nodes" / "h"
    files = {"CERT": home / "node.crt", "KEY": home / "node.key"}
    settings = {f"RAY_TLS_SERVER_{name}": str(path) for name, path in files.items()}
    settings |= {"RAY_USE_TLS": "1", "RAY_TLS_CA_CERT": str(home / "ca.crt")}
    threading.Thread(target=serve, daemon=True).start()
    found = list(shake("127.0.0.1", listener.getsockname()[1], from_environment(settings), "the head"))
    assert [each.status for each in found] == [FAIL] and found[0].message.startswith("the head speaks no TLS")


def test_site_whose_labels_no_node_has_is_named_with_the_labels_there_are():
    nodes = [node(site="h001", region="eu"), node("10.0.0.3", site="h002", region="eu")]
    sites = {name: At(Place(labels=(("fedray.site", name),))) for name in ("h001", "h003")}
    (finding,) = ray_door.unmatched(nodes, sites)
    assert finding.message == "site h003: no node has fedray.site=h003; nodes have h001, h002"
    assert finding.fix.startswith("ray start --labels=fedray.site=h003")


def test_sentence_on_one_trust_domain_is_that_of_the_trust_statement():
    from fedray.core import trust

    assert ray_door.ONE_DOMAIN == trust.ONE_DOMAIN


@pytest.mark.parametrize(("python", "settings", "status"), [
    (platform.python_version(), {}, "PASS"),
    (f"{OURS}.999", {}, FAIL),
    (f"{OURS}.999", {MATCH_LEVEL: "patch"}, FAIL),
    (f"{OURS}.999", {MATCH_LEVEL: "minor"}, "NOTE"),
    ("3.1.0", {MATCH_LEVEL: "minor"}, FAIL),
])  # fmt: skip
def test_another_patch_level_of_python_at_the_head_is_noted_where_ray_is_told_to_take_it(
    python, settings, status
):
    kept = json.dumps({"ray_version": ray.__version__, "python_version": python}).encode()
    assert ray_door._versions(kept, settings).status == status


def test_another_ray_is_refused_whatever_the_level_of_python():
    kept = json.dumps({"ray_version": "1.0", "python_version": f"{OURS}.999"}).encode()
    found = ray_door._versions(kept, {MATCH_LEVEL: "minor"})
    assert found.status == FAIL and "Ray 1.0 at the head" in found.message


@pytest.mark.parametrize("error", [Exception("The current node timed out during startup"), RuntimeError()])
def test_what_ray_raises_while_it_starts_is_a_host_error(error):
    with pytest.raises(HostError, match="did not start or answer"), ray_start._named("local"):
        raise error


def test_what_is_no_failure_of_ray_is_left_as_it_is():
    with pytest.raises(ClusterError, match="as it is"), ray_start._named("local"):
        raise ClusterError("as it is")
