"""For `ray up` on AWS: a simulated cloud on loopback, an operator whose `ssh` and `rsync` reach nobody."""

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
REGION = "eu-central-1"
ACCOUNT = "123456789012"
IMAGE = "registry.example/fedray@sha256:" + "0" * 64
OPERATOR = "203.0.113.7/32"
RECORDER = "moto-api/recorder"
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f operator"
# answers what a machine with a container engine would, and keeps what it was asked
STAND_IN = """#!{python}
import json, os, pathlib, sys
asked = " ".join(sys.argv[1:])
with open(os.environ["STAND_IN_LOG"], "a") as log:
    log.write(json.dumps([pathlib.Path(sys.argv[0]).name, asked]) + "\\n")
answers = {{"command -v docker": "docker", "json .Config.Env": '["HOME=/var/lib/fedray"]', "printenv HOME":
           "/var/lib/fedray", "/proc/meminfo": "MemAvailable: 8000000 kB", ".Runtimes": "map[runc:{{}}]"}}
print(next((said for what, said in answers.items() if what in asked), ""))
"""
# a worker is started by the head's autoscaler, through this class of Ray's; here in the head's stead
START_WORKERS = """
import sys, yaml
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.tags import (TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_NODE_STATUS,
                                 TAG_RAY_USER_NODE_TYPE)
config = _bootstrap_config(yaml.safe_load(open(sys.argv[1])))
provider = _get_node_provider(config["provider"], config["cluster_name"])
tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_NODE_STATUS: "uninitialized", TAG_RAY_LAUNCH_CONFIG: "x"}
for kind in sys.argv[2:]:
    node = config["available_node_types"][kind]["node_config"]
    made = provider.create_node(node, {**tags, TAG_RAY_USER_NODE_TYPE: kind}, 1)
    provider.non_terminated_nodes({})
    provider.set_node_tags(next(iter(made)), {TAG_RAY_NODE_STATUS: "setting-up"})
"""


@contextlib.contextmanager
def simulated_cloud(folder: Path) -> Iterator[str]:
    """Start a moto server of one's own; yield its address, and end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "MOTO_EC2_LOAD_DEFAULT_AMIS": "false",
        "MOTO_RECORDER_FILEPATH": str(folder / "recording"),
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=5)
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


class Operator:
    """A home with secrets, keys and stand-ins, from which `ray` speaks to the simulated cloud."""

    def __init__(self, home: Path, url: str, file: str) -> None:
        self.home, self.url, self.template = home, url, CLUSTER / file
        self.name = file.removesuffix(".yaml").replace("aws", "fedray")
        self.file = home / "my.local.yaml"
        self.log = home / "asked-of-machines"
        path = f"{home / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = os.environ | {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "simulated",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SECRET_ACCESS_KEY": "simulated",
            "HOME": str(home),
            "STAND_IN_LOG": str(self.log),
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "NO_PROXY": "127.0.0.1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._furnish()

    def _furnish(self) -> None:
        for folder in ("bin", ".ssh", ".fedray/cluster/handout/pool"):
            (self.home / folder).mkdir(parents=True)
        for name in ("ssh", "rsync"):
            (self.home / "bin" / name).write_text(STAND_IN.format(python=sys.executable))
            (self.home / "bin" / name).chmod(0o755)
        for name in ("token", "ca.crt", "node.crt", "node.key"):
            (self.home / ".fedray/cluster/handout/pool" / name).write_text(name)
        (self.home / ".ssh" / "fedray.pem").write_text("ssh is a stand-in")
        (self.home / "key.pub").write_text(SSH_KEY)

    def client(self, kind: str) -> Any:
        """Return a client of the simulated cloud."""
        keys = {"aws_access_key_id": "simulated", "aws_secret_access_key": "simulated"}
        return boto3.client(kind, REGION, endpoint_url=self.url, **keys)

    def run(self, *command: str) -> str:
        """Run a command; return its output. Fails where it does."""
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def script(self, name: str, *words: str) -> str:
        """Run a script of cluster/."""
        return self.run(sys.executable, str(CLUSTER / name), *words)

    def prepare(self) -> None:
        """Make a subnet that gives public addresses on its own, and run aws_prepare.py on it."""
        ec2 = self.client("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.8.0/24")["Subnet"]["SubnetId"]
        ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
        self.script(
            "aws_prepare.py",
            str(self.template),
            "--out",
            str(self.file),
            "--subnet",
            subnet,
            "--ami",
            "ami-0cd",
            "--image",
            IMAGE,
            "--public-key",
            str(self.home / "key.pub"),
            "--ssh-from",
            OPERATOR,
        )

    def record(self, what: str) -> None:
        """Tell the recorder of the simulated cloud what to do."""
        asked = urllib.request.Request(f"{self.url}/{RECORDER}/{what}", method="POST")
        urllib.request.urlopen(asked, timeout=10)

    def calls(self) -> list[tuple[str, dict[str, str]]]:
        """Return what the cloud was asked since the recording began: action, as policies name it, words."""
        with urllib.request.urlopen(f"{self.url}/{RECORDER}/download-recording", timeout=10) as answer:
            rows = [json.loads(line) for line in answer.read().decode().splitlines()]
        found = []
        for row in rows:
            body = base64.b64decode(row["body"]).decode() if row["body_encoded"] else row["body"]
            asked = dict(urllib.parse.parse_qsl(body or ""))
            service = row["headers"]["Authorization"].split("Credential=")[1].split("/")[3]
            found.append((f"{service}:{asked['Action']}", asked))
        return found

    def machines(self) -> dict[str, dict[str, Any]]:
        """Return the cluster's instances that live, by the name of their type in the file."""
        mine = [
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
            {"Name": "tag:ray-cluster-name", "Values": [self.name]},
        ]
        groups = self.client("ec2").describe_instances(Filters=mine)["Reservations"]
        return {tags(one)["ray-user-node-type"]: one for group in groups for one in group["Instances"]}

    def told_machines(self, what: str) -> list[str]:
        """Return what ssh and rsync were asked that contains some text."""
        lines = [json.loads(line)[1] for line in self.log.read_text().splitlines()]
        return [words for words in lines if what in words]


def tags(instance: dict[str, Any]) -> dict[str, str]:
    """Return an instance's tags."""
    return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
