"""`cluster/node.sh`: how it starts Ray, what it refuses, that it ends what it started. Ray is a stand-in."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from fedray.cluster import ports
from fedray.runtime.ray_environment import WORKER_ENVIRONMENT

NODE = Path(__file__).resolve().parents[3] / "cluster" / "node.sh"
SECRETS = ("token", "ca.crt", "node.crt", "node.key")
RAY = """#!/bin/sh
printf '%s\\n' "$@" > "$STAND_IN/flags"
env > "$STAND_IN/env"
echo life >> "$STAND_IN/lives"
trap 'sleep 0.5; kill $!; exit 0' TERM  # in its own time, as Ray does
sleep "${STAND_IN_S:-0}" &
wait
"""


@pytest.fixture
def machine(tmp_path):
    """A folder with secrets and a stand-in for ray, and the environment that points to them."""
    (tmp_path / "secrets").mkdir()
    for name in SECRETS:
        (tmp_path / "secrets" / name).write_text(name)
    ray = tmp_path / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text(RAY)
    ray.chmod(0o755)
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "FEDRAY_"))}
    return keep | {
        "PATH": f"{ray.parent}:{os.environ['PATH']}", "STAND_IN": str(tmp_path), "HOME": str(tmp_path),
        "FEDRAY_SECRETS": str(tmp_path / "secrets"), "FEDRAY_NODE_IP": "10.0.8.7",
        "FEDRAY_STATE": str(tmp_path / "state"), "FEDRAY_HEAD": "10.0.8.1",
    }  # fmt: skip


def node(machine, *words):
    return subprocess.run(
        [NODE, *words], env=machine, capture_output=True, text=True, timeout=30, check=False
    )


def flags(machine):
    return set(Path(machine["STAND_IN"], "flags").read_text().splitlines())


def environment(machine):
    lines = Path(machine["STAND_IN"], "env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.mark.parametrize("role", ["head", "worker"])
def test_ray_is_started_with_token_tls_and_the_environment_of_workers(machine, role):
    assert node(machine, "run", role).returncode == 0
    secrets = machine["FEDRAY_SECRETS"]
    wanted = {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{secrets}/token", "RAY_USE_TLS": "1",
        "RAY_TLS_CA_CERT": f"{secrets}/ca.crt", "RAY_TLS_SERVER_CERT": f"{secrets}/node.crt",
        "RAY_TLS_SERVER_KEY": f"{secrets}/node.key", "RAY_health_check_failure_threshold": "20",
        **WORKER_ENVIRONMENT,
    }  # fmt: skip
    assert {name: environment(machine).get(name) for name in wanted} == wanted


def test_head_listens_on_its_address_and_keeps_the_dashboard_on_loopback(machine):
    node(machine, "run", "head", "--", "--autoscaling-config=here")
    wanted = {"start", "--block", "--head", f"--port={ports.GCS}", "--node-ip-address=10.0.8.7",
              "--dashboard-host=127.0.0.1", f"--dashboard-port={ports.DASHBOARD}",
              "--autoscaling-config=here"}  # fmt: skip
    assert wanted <= flags(machine)


def test_worker_joins_the_head_with_its_labels(machine):
    machine |= {"FEDRAY_LABELS": "fedray.region=eu,fedray.site=h001"}
    node(machine, "run", "worker")
    wanted = {"--block", f"--address=10.0.8.1:{ports.GCS}", "--labels=fedray.region=eu,fedray.site=h001"}
    assert wanted <= flags(machine)
    assert "--head" not in flags(machine)


def test_every_port_is_the_one_of_the_list(machine):
    node(machine, "run", "worker")
    given = {name: int(value) for name, _, value in (flag.partition("=") for flag in flags(machine))
             if name.endswith("-port")}  # fmt: skip
    assert given == {
        "--node-manager-port": ports.NODE_MANAGER, "--object-manager-port": ports.OBJECT_MANAGER,
        "--dashboard-agent-grpc-port": ports.AGENT_GRPC, "--runtime-env-agent-port": ports.RUNTIME_ENV_AGENT,
        "--metrics-export-port": ports.METRICS, "--dashboard-agent-listen-port": ports.AGENT_HTTP,
        "--min-worker-port": ports.WORKERS[0], "--max-worker-port": ports.WORKERS[1],
    }  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_node_without_a_secret_does_not_start(machine, name):
    Path(machine["FEDRAY_SECRETS"], name).write_text("")
    done = node(machine, "run", "worker")
    assert done.returncode == 2 and f"{name} is missing or empty. Fix:" in done.stderr
    assert not Path(machine["STAND_IN"], "lives").exists()


@pytest.mark.parametrize(("words", "what"), [
    (["run"], "no role"), (["run", "aggregator"], "there is no role 'aggregator'"),
    (["begin"], "there is no 'begin'"),
])  # fmt: skip
def test_words_that_it_does_not_know_are_refused_with_a_fix(machine, words, what):
    done = node(machine, *words)
    assert done.returncode == 2 and what in done.stderr and "Fix:" in done.stderr


def test_worker_without_a_head_is_refused(machine):
    del machine["FEDRAY_HEAD"]
    done = node(machine, "run", "worker")
    assert done.returncode != 0 and "FEDRAY_HEAD is not set. Fix:" in done.stderr


@pytest.mark.parametrize(("settings", "what"), [
    ({"FEDRAY_HEAD": "h:7000", "FEDRAY_GCS_PORT": "6379"}, "FEDRAY_HEAD is h:7000, and FEDRAY_GCS_PORT 6379"),
    ({"FEDRAY_HEAD": "10.0.8.1:x"}, "'x' is no port"),
    ({"FEDRAY_DRAIN_S": "soon"}, "FEDRAY_DRAIN_S is 'soon'"),
    ({"FEDRAY_DRAIN_S": "010"}, "FEDRAY_DRAIN_S is '010'"),
    ({"FEDRAY_CLOUD": "azure"}, "FEDRAY_CLOUD is 'azure'. Fix: aws or gcp"),
])  # fmt: skip
def test_setting_that_cannot_be_meant_is_refused_at_the_start(machine, settings, what):
    done = node(machine | settings, "run", "worker")
    assert done.returncode == 2 and what in done.stderr and "Fix:" in done.stderr
    assert not Path(machine["STAND_IN"], "lives").exists()


def test_port_of_the_head_is_taken_from_its_address(machine):
    node(machine | {"FEDRAY_HEAD": "10.0.8.1:7000"}, "run", "worker")
    assert "--address=10.0.8.1:7000" in flags(machine)


def kept(machine):
    """Return the pid of what `keep` has left in the background."""
    return int(Path(machine["FEDRAY_STATE"], "pid").read_text().split()[0])


KEPT = {"STAND_IN_S": "60", "FEDRAY_DRAIN_S": "0", "FEDRAY_WAIT_S": "1", "FEDRAY_NODE_IP": "127.0.0.9"}


def test_node_that_does_not_come_up_is_told_to_go_on_and_a_stop_ends_it(machine):
    machine |= KEPT
    done = node(machine, "keep", "worker")
    process = psutil.Process(kept(machine))
    assert done.returncode == 2 and process.is_running()
    assert "It goes on trying. Fix: what they say, or node.sh stop ends it" in done.stderr
    assert node(machine, "stop").returncode == 0
    psutil.wait_procs([process], timeout=10)
    assert not process.is_running()


@pytest.mark.parametrize("listening", [[ports.GCS], [ports.NODE_MANAGER], [ports.GCS, ports.NODE_MANAGER]])
def test_head_is_up_when_its_node_manager_listens_too(machine, listening):
    machine |= KEPT
    with contextlib.ExitStack() as opened:
        for port in listening:
            opened.enter_context(socket.create_server(("127.0.0.9", port)))
        done = node(machine, "keep", "head")
    node(machine, "stop")
    assert (done.returncode == 0) == (len(listening) == 2), done.stderr


def test_stop_ends_no_other_process_of_the_same_number(machine):
    other = subprocess.Popen(["bash", "-c", "sleep 60; : node"])
    Path(machine["FEDRAY_STATE"]).mkdir()
    Path(machine["FEDRAY_STATE"], "pid").write_text(f"{other.pid} 1\n")
    try:
        assert node(machine, "stop").returncode == 0 and other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_env_shows_no_token(machine):
    machine |= {"RAY_AUTH_TOKEN": "do-not-show"}
    done = node(machine, "env")
    assert "RAY_USE_TLS=1" in done.stdout and "do-not-show" not in done.stdout


def test_node_that_dies_is_started_again_and_a_stop_ends_all_of_it(machine):
    machine |= {"FEDRAY_DRAIN_S": "0"}
    process = subprocess.Popen([NODE, "again", "worker"], env=machine, stderr=subprocess.DEVNULL)
    lives = Path(machine["STAND_IN"], "lives")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (lives.exists() and lives.read_text().count("life") >= 2):
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert lives.read_text().count("life") >= 2
    psutil.wait_procs(children, timeout=5)
    assert [child for child in children if child.is_running()] == []


def test_stop_gives_ray_its_signal_and_waits_for_it(machine):
    machine |= {"STAND_IN_S": "60", "FEDRAY_DRAIN_S": "0"}
    process = subprocess.Popen([NODE, "run", "head"], env=machine)
    started = Path(machine["STAND_IN"], "lives")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not started.exists():
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.terminate()
    assert process.wait(timeout=15) == 0
    psutil.wait_procs(children, timeout=5)
    assert [child for child in children if child.is_running()] == []
