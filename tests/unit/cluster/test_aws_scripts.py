"""What `ray up` on AWS stands on is made narrow, is made again without harm, and is taken back whole."""

import importlib.util
import json
import sys
from pathlib import Path

import boto3
import pytest
import yaml
from moto import mock_aws

from fedray.cluster import ports

CLUSTER = Path(__file__).resolve().parents[3] / "cluster"
REGION = "eu-central-1"
IMAGE = "registry.example/fedray@sha256:" + "0" * 64
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f operator"


def load(name):
    """Import a script of cluster/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, CLUSTER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


aws_prepare, aws_left = load("aws_prepare"), load("aws_left")


class Account:
    """A simulated account with a subnet, and the words that prepare a cluster in it."""

    def __init__(self, tmp_path):
        self.ec2, self.iam = boto3.client("ec2", REGION), boto3.client("iam", REGION)
        vpc = self.ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        self.subnet = self.ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.8.0/24")["Subnet"]["SubnetId"]
        self.wide = self.ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.64.0/20")["Subnet"]["SubnetId"]
        self.out = tmp_path / "my.local.yaml"
        self.key = tmp_path / "key.pub"
        self.key.write_text(SSH_KEY)

    def prepare(self, *words, file="aws.yaml", subnet=None, image=IMAGE):
        asked = ["--out", str(self.out), "--subnet", subnet or self.subnet, "--ami", "ami-0cd",
                 "--image", image, "--public-key", str(self.key), *words]  # fmt: skip
        return aws_prepare.main([str(CLUSTER / file), *asked])

    def group(self):
        named = [{"Name": "group-name", "Values": ["fedray"]}]
        return self.ec2.describe_security_groups(Filters=named)["SecurityGroups"][0]

    def rules(self):
        return set(aws_prepare.rules_of(self.group()))

    def left(self):
        return aws_left.left(self.ec2, self.iam, "fedray")


@pytest.fixture(scope="module")
def simulation():
    """A simulated cloud in this process: nothing is asked over a network."""
    with pytest.MonkeyPatch.context() as patch, mock_aws() as cloud:
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # a second per test
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        yield cloud


@pytest.fixture
def account(simulation, tmp_path):
    """A new account of the simulated cloud; clients keep their models, half a second apiece."""
    simulation.reset()
    return Account(tmp_path)


def test_group_lets_in_its_own_nodes_peers_and_operators_alone(account):
    assert account.prepare("--ssh-from", "203.0.113.7/32", "--peer", "10.20.0.0/16") == 0
    group = account.group()["GroupId"]
    ray = [(ports.GCS, ports.AGENT_GRPC), ports.WORKERS]
    assert account.rules() == {
        *(("tcp", *pair, who) for pair in ray for who in (group, "10.20.0.0/16")),
        ("tcp", 22, 22, group), ("tcp", 22, 22, "203.0.113.7/32"),
        ("icmp", 3, 4, group), ("icmp", 3, 4, "10.20.0.0/16"),
    }  # fmt: skip


def test_preparing_again_takes_rules_away_that_were_not_asked_for(account):
    account.prepare("--ssh-from", "203.0.113.7/32")
    everybody = {"IpRanges": [{"CidrIp": "0.0.0.0/0"}], "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
    account.ec2.authorize_security_group_ingress(
        GroupId=account.group()["GroupId"],
        IpPermissions=[{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, **everybody}],
    )
    account.prepare("--ssh-from", "198.51.100.0/24")
    shells = {who for _, first, _, who in account.rules() if first == 22}
    assert shells == {account.group()["GroupId"], "198.51.100.0/24"}


def test_file_is_filled_and_its_policy_lies_beside_it(account):
    account.prepare()
    config = yaml.safe_load(account.out.read_text())
    for node in config["available_node_types"].values():
        machine = node["node_config"]
        assert machine["ImageId"] == "ami-0cd" and machine["SubnetIds"] == [account.subnet]
        assert machine["SecurityGroupIds"] == [account.group()["GroupId"]]
    assert config["docker"]["image"] == IMAGE
    policy = account.out.with_suffix(".iam.json").read_text()
    assert json.loads(policy)["Statement"]
    words = ("REGION", "ACCOUNT", "CLUSTER", "SUBNET", "SECURITY_GROUP")
    assert [word for word in words if word in policy] == []
    assert f"arn:aws:ec2:{REGION}:123456789012:subnet/{account.subnet}" in policy


def test_heads_role_may_start_workers_and_workers_may_not(account):
    account.prepare()

    def allowed(role):
        held = account.iam.get_role_policy(RoleName=role, PolicyName="fedray")["PolicyDocument"]
        return {action for each in held["Statement"] for action in aws_list(each["Action"])}

    assert "ec2:RunInstances" in allowed("fedray-head")
    assert {action.split(":")[0] for action in allowed("fedray-worker")} == {"ecr"}


def aws_list(value):
    return [value] if isinstance(value, str) else value


@pytest.mark.parametrize(("words", "what"), [
    (["--ssh-from", "0.0.0.0/0"], "half the internet"), (["--ssh-from", "office"], "'office' is no network"),
])  # fmt: skip
def test_networks_that_cannot_be_meant_are_refused(account, capsys, words, what):
    assert account.prepare(*words) == 2
    assert what in capsys.readouterr().err and not account.out.exists()


def test_image_by_tag_is_refused(account, capsys):
    assert account.prepare(image="registry.example/fedray:latest") == 2
    assert "is a tag, and tags move" in capsys.readouterr().err


def test_subnet_too_wide_for_one_certificate_is_refused(account, capsys):
    assert account.prepare(subnet=account.wide) == 2
    assert "10.0.64.0/20" in capsys.readouterr().err


def test_file_whose_names_belong_to_another_cluster_is_refused(account, tmp_path, capsys):
    other = (CLUSTER / "aws.yaml").read_text().replace("cluster_name: fedray", "cluster_name: other")
    (tmp_path / "other.yaml").write_text(other)
    assert account.prepare(file=tmp_path / "other.yaml") == 2
    assert "KeyName is fedray. Fix: other" in capsys.readouterr().err


def run_instance(account):
    tags = [{"ResourceType": kind, "Tags": [{"Key": "ray-cluster-name", "Value": "fedray"}]}
            for kind in ("instance", "volume")]  # fmt: skip
    disk = [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8, "DeleteOnTermination": False}}]
    made = account.ec2.run_instances(
        ImageId="ami-0cd", MinCount=1, MaxCount=1, SubnetId=account.subnet, TagSpecifications=tags,
        SecurityGroupIds=[account.group()["GroupId"]], BlockDeviceMappings=disk,
    )  # fmt: skip
    return made["Instances"][0]["InstanceId"]


def test_what_costs_is_listed_first_and_is_not_removed_while_it_lives(account, capsys):
    account.prepare()
    instance = run_instance(account)
    capsys.readouterr()
    assert aws_left.main(["fedray", "--region", REGION]) == 1
    assert capsys.readouterr().out.splitlines()[0].startswith(f"costs  instance           {instance} running")
    assert aws_left.main(["fedray", "--region", REGION, "--remove"]) == 2
    assert "Fix: ray down" in capsys.readouterr().err
    assert account.group()


def test_disk_that_outlives_its_instance_is_found(account):
    account.prepare()
    account.ec2.terminate_instances(InstanceIds=[run_instance(account)])
    paid = [one.kind for one in account.left() if one.is_paid]
    assert paid == ["volume"]


def test_nothing_is_left_after_removal(account, capsys):
    account.prepare()
    assert {one.kind for one in account.left()} == {"instance profile", "key pair", "role", "security group"}
    assert aws_left.main(["fedray", "--region", REGION, "--remove"]) == 0
    assert account.left() == [] and "nothing is left" in capsys.readouterr().out


def test_another_cluster_is_not_touched(account):
    account.prepare()
    account.prepare(file="aws-private.yaml")
    aws_left.remove(account.ec2, account.iam, "fedray")
    kept = aws_left.left(account.ec2, account.iam, "fedray-private")
    assert {one.kind for one in kept} == {"instance profile", "key pair", "role", "security group"}


def test_a_missing_key_is_said_in_a_line_with_where_it_comes_from(tmp_path, monkeypatch, capsys):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    assert aws_left.main(["fedray", "--region", REGION]) == 2
    said = capsys.readouterr().err
    assert said.startswith("aws_left: AWS says: ") and "AWS_PROFILE" in said and "Traceback" not in said
