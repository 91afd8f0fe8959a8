"""The files of `ray up`: Ray's schema takes them; every node starts with token and TLS, nothing is public."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).resolve().parents[3] / "cluster"
CLOUDS = ["aws.yaml", "aws-private.yaml", "gcp.yaml"]
FILES = [*CLOUDS, *(["local.yaml"] if (CLUSTER / "local.yaml").exists() else [])]
IN_EVERY_COMMAND = ["RAY_AUTH_MODE=token", "RAY_USE_TLS=1", "RAY_health_check_failure_threshold=20"]
# a process of its own: the unit tests stay free of ray
VALIDATE = """
import sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
for path in sys.argv[1:]:
    validate_config(prepare_config(yaml.safe_load(open(path))))
    print("valid", path)
"""


def read(name):
    return yaml.safe_load((CLUSTER / name).read_text("utf-8"))


def validate(*paths):
    command = [sys.executable, "-c", VALIDATE, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_rays_schema_takes_every_file():
    done = validate(*(CLUSTER / name for name in FILES))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("valid") == len(FILES)


def test_rays_schema_refuses_a_word_that_it_does_not_know(tmp_path):
    wrong = read("aws.yaml") | {"security": "narrow"}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    assert "security" in validate(tmp_path / "wrong.yaml").stderr


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("role", ["head", "worker"])
def test_every_start_command_names_token_tls_and_the_threshold(name, role):
    commands = read(name)[f"{role}_start_ray_commands"]
    (start,) = [command for command in commands if "keep" in command]
    assert [word for word in IN_EVERY_COMMAND if word not in shlex.split(start)] == []
    assert f"fedray-node keep {role}" in start


@pytest.mark.parametrize("name", CLOUDS)
def test_nothing_of_a_file_is_public(name):
    text = "\n".join(re.sub(r"#.*", "", line) for line in (CLUSTER / name).read_text("utf-8").splitlines())
    assert "0.0.0.0" not in text
    assert "accessConfigs" not in text
    assert "ray start" not in text  # node.sh writes it, with its ports and the dashboard on loopback


@pytest.mark.parametrize("name", CLOUDS)
def test_every_node_type_has_labels_of_region_and_role(name):
    config = read(name)
    labels = {kind: node["labels"] for kind, node in config["available_node_types"].items()}
    assert {of["fedray.region"] for of in labels.values()} == {config["provider"]["region"]}
    roles = {kind: of["fedray.role"] for kind, of in labels.items()}
    assert roles["head"] == "aggregator" and roles["regional"] == "regional" and roles["site"] == "site"


@pytest.mark.parametrize("name", CLOUDS)
def test_more_nodes_than_allowed_are_never_asked_for(name):
    config = read(name)
    types = config["available_node_types"]
    assert sum(node.get("min_workers", 0) for node in types.values()) <= config["max_workers"]
    assert config["idle_timeout_minutes"] <= 30


@pytest.mark.parametrize("name", ["aws.yaml", "aws-private.yaml"])
def test_machines_of_aws_are_encrypted_tagged_and_keep_no_disk(name):
    config = read(name)
    for node in config["available_node_types"].values():
        machine = node["node_config"]
        (disk,) = machine["BlockDeviceMappings"]
        assert disk["Ebs"]["Encrypted"] and disk["Ebs"]["DeleteOnTermination"]
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        volumes = next(tags for tags in machine["TagSpecifications"] if tags["ResourceType"] == "volume")
        assert {"Key": "ray-cluster-name", "Value": config["cluster_name"]} in volumes["Tags"]
    assert config["provider"]["cache_stopped_nodes"] is False


def test_machines_of_the_private_file_ask_for_no_public_address():
    config = read("aws-private.yaml")
    assert config["provider"]["use_internal_ips"] is True
    for node in config["available_node_types"].values():
        (interface,) = node["node_config"]["NetworkInterfaces"]
        assert interface["AssociatePublicIpAddress"] is False


def test_spot_machines_drain_on_their_notice():
    for name, cloud in [("aws.yaml", "aws"), ("aws-private.yaml", "aws"), ("gcp.yaml", "gcp")]:
        assert f"FEDRAY_CLOUD={cloud}" in " ".join(read(name)["worker_start_ray_commands"])
    market = read("aws.yaml")["available_node_types"]["site_spot"]["node_config"]["InstanceMarketOptions"]
    assert market["MarketType"] == "spot"


@pytest.mark.parametrize("name", ["iam-policy.json", "iam-head.json", "iam-worker.json"])
def test_no_statement_of_a_policy_allows_everything(name):
    for statement in json.loads((CLUSTER / name).read_text("utf-8"))["Statement"]:
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        assert [action for action in actions if "*" in action] == []
        if statement["Resource"] == "*":  # only what has no resource: looking, and signing in to a registry
            assert all(re.match(r"ec2:Describe|ecr:GetAuthorizationToken", action) for action in actions)


@pytest.mark.parametrize("name", ["iam-policy.json", "iam-head.json", "iam-worker.json"])
def test_every_statement_of_a_policy_is_explained(name):
    told = (CLUSTER / "README.md").read_text("utf-8")
    sids = [statement["Sid"] for statement in json.loads((CLUSTER / name).read_text("utf-8"))["Statement"]]
    assert [sid for sid in sids if f"`{sid}`" not in told] == []
