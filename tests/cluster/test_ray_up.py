"""cluster/local.yaml as it is shipped, on four machines: ray up, exec, submit, down, the eICU demo."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.testbed import Hosts, why_not, wide_area
from experiments.testbed.ray_on_hosts import credentials

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600),
              pytest.mark.skipif(bool(why_not()), reason=why_not())]  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
REGIONS = {"hq": ["laptop", "head"], "eu": ["worker1"], "us": ["worker2"]}
MACHINES = {"10.0.0.1": "head", "10.0.0.2": "worker1", "10.0.0.3": "worker2"}  # of local.yaml
ROLES = {"head": "aggregator", "worker1": "site", "worker2": "site"}
NO_V2 = {"RAY_UP_enable_autoscaler_v2": "0"}
DEMO = "fedray run experiment=eicu_demo"


@pytest.fixture
def hosts(fedray_data, tmp_path):
    links = {("hq", "eu"): wide_area(rtt_s=0.02), ("hq", "us"): wide_area(rtt_s=0.08)}
    with Hosts(REGIONS, links=links, shared=[tmp_path]) as made:  # a folder that all machines see, for runs
        provide(made)
        yield made


def provide(hosts):
    """Do what local.yaml asks its reader to do: addresses, labels, token, certificates."""
    filled = {file: (ROOT / "cluster" / file).read_text() for file in ("local.yaml", "local/nodes.txt")}
    filled["local/environment.sh"] = (ROOT / "cluster/local/environment.sh").read_text()
    changes = {address: hosts[name].address for address, name in MACHINES.items()}
    changes |= {"ubuntu": "root", "~/.ssh/id_ed25519": hosts.key}
    for old, new in changes.items():
        assert old in filled["local.yaml"]
        filled = {file: text.replace(old, new) for file, text in filled.items()}
    for file, text in filled.items():
        hosts["laptop"].write(f"/tmp/home/cluster/{file}", text)
    addresses = [hosts[name].address for name in MACHINES.values()]
    secrets = credentials({"all": addresses})["all"]
    for file, text in {"token": "5" * 64, **secrets}.items():
        hosts["laptop"].write(f"/tmp/home/.fedray/cluster/handout/all/{file}", text, mode=0o600)


def on_laptop(hosts, *command, limit_s=240):
    words = ("env", "-C", "/tmp/home/cluster", *command)
    return hosts["laptop"].run(*words, env=NO_V2, limit_s=limit_s)


def of_ray(hosts):
    """Return the hosts on which a process of Ray runs."""
    return {host.name for host in hosts if host.pids("/site-packages/ray/")}


def in_process(folder):
    """Build the hospitals in folder/data, train in this machine's own process, and return the hash."""
    words = [*DEMO.split(), "runtime=in_process", "report=none", f"runs_dir={folder}/runs"]
    program = Path(sys.executable).parent / "fedray"
    subprocess.run([program, *words[1:], f"data_dir={folder}/data"], check=True, capture_output=True)
    return json.loads(next(folder.glob("runs/*/result.json")).read_text())["params_sha256"]


def test_a_cluster_of_ssh_hosts_comes_up_trains_the_demo_with_equal_bits_and_goes(hosts, tmp_path):
    expected = in_process(tmp_path)
    for name in MACHINES.values():  # each machine has its hospitals' data on its own disk
        shutil.copytree(tmp_path / "data", hosts[name].path("/tmp/data"))
    on_laptop(hosts, "ray", "up", "-y", "--no-config-cache", "local.yaml")
    head, folders = f"{hosts['head'].address}:6379", f"data_dir=/tmp/data runs_dir={tmp_path}/on_cluster"
    wait = "python -m experiments.testbed.nodes $FEDRAY_HEAD 3 90"
    run = f"{DEMO} runtime=ray_cluster runtime.address=$FEDRAY_HEAD report=none {folders}"
    said = on_laptop(hosts, "ray", "exec", "--no-config-cache", "local.yaml", f"{wait} && {run}")
    nodes = json.loads(next(line for line in said.splitlines() if line.startswith("[{")))
    roles = {node["address"]: node["labels"].get("fedray.role") for node in nodes if node["is_alive"]}
    assert roles == {hosts[name].address: ROLES[name] for name in MACHINES.values()}
    files = list(tmp_path.glob("on_cluster/2*/result.json"))  # beside `latest`
    assert [json.loads(file.read_text())["params_sha256"] for file in files] == [expected]

    script = (Path(__file__).parent / "eicu_on_cluster.py").read_text()
    hosts["laptop"].write("/tmp/home/cluster/study.py", script)
    words = ["ray", "submit", "--no-config-cache", "local.yaml", "study.py", head, *folders.split()]
    said = on_laptop(hosts, *words)
    told = json.loads(next(line for line in said.splitlines() if line.startswith('{"sha256"')))
    assert told["sha256"] == expected
    assert sum(told["hospitals"].values()) == 185
    assert set(told["hospitals"]) == {hosts[name].address for name in MACHINES.values()}

    on_laptop(hosts, "ray", "down", "-y", "local.yaml")
    assert "head" not in of_ray(hosts)
    for name in ("worker1", "worker2"):  # as local.yaml says
        hosts.ssh("laptop", name, "bash -lic 'ray stop'")
    limit = time.monotonic() + 30
    while of_ray(hosts) and time.monotonic() < limit:
        time.sleep(0.2)
    assert of_ray(hosts) == set()
