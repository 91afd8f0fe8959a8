"""`ray up` and `ray down` with the files of AWS, against a simulated cloud on loopback (moto).

Ray asks EC2 for real. The machines that it is given do not exist, so `ssh` and `rsync` are stand-ins that
keep what they were asked: what Ray asked EC2 for, and what it would have run on the machines, is then held
against the files' promises and the policies.
"""

import json
import sys

import pytest

from tests.cluster.aws_cloud import (
    ACCOUNT,
    IMAGE,
    OPERATOR,
    REGION,
    START_WORKERS,
    Operator,
    simulated_cloud,
    tags,
)
from tests.cluster.iam import as_list, permits, questions

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
WORKERS = ("site", "site_spot", "regional")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a simulated cloud."""
    with simulated_cloud(tmp_path_factory.mktemp("cloud")) as url:
        yield url


@pytest.fixture(scope="module")
def operator(server, tmp_path_factory):
    """The operator after aws_prepare.py, `ray up`, and a worker of each kind started as the head would."""
    one = Operator(tmp_path_factory.mktemp("operator"), server, "aws.yaml")
    one.prepare()
    one.record("reset-recording")
    one.record("start-recording")
    one.run("ray", "up", "-y", "--no-config-cache", str(one.file))
    one.calls_of_operator = one.calls()
    one.run(sys.executable, "-c", START_WORKERS, str(one.file), *WORKERS)
    one.calls_of_head = one.calls()[len(one.calls_of_operator) :]
    return one


@pytest.fixture(scope="module")
def private(server, tmp_path_factory):
    """The operator of the private file: machines of each kind, started by Ray's class without `ray up`."""
    one = Operator(tmp_path_factory.mktemp("private"), server, "aws-private.yaml")
    one.prepare()
    one.record("reset-recording")
    one.record("start-recording")
    one.run(sys.executable, "-c", START_WORKERS, str(one.file), "head", *WORKERS)
    one.calls_of_operator = one.calls()
    return one


def refused(policy, calls, cluster):
    """Return what a policy does not allow of the calls."""
    asked = [question for call in calls for question in questions(*call, REGION, ACCOUNT, cluster)]
    assert asked
    return [question for question in asked if not permits(policy, question)]


def policy_of_operator(operator):
    return json.loads(operator.file.with_suffix(".iam.json").read_text())


def policy_of_head(operator):
    role = operator.client("iam").get_role_policy(RoleName=f"{operator.name}-head", PolicyName="fedray")
    return role["PolicyDocument"]


def test_head_is_of_the_type_role_and_tags_of_the_file(operator):
    head = operator.machines()["head"]
    assert head["InstanceType"] == "m7i.large" and head["ImageId"] == "ami-0cd"
    assert head["IamInstanceProfile"]["Arn"].endswith(f"instance-profile/{operator.name}-head")
    assert tags(head)["project"] == "fedray" and tags(head)["ray-node-type"] == "head"


def test_workers_are_of_their_type_and_may_not_start_machines(operator):
    machines = operator.machines()
    assert machines["site"]["InstanceType"] == machines["site_spot"]["InstanceType"] == "m7i.xlarge"
    for kind in WORKERS:
        worn = machines[kind]["IamInstanceProfile"]["Arn"]
        assert worn.endswith(f"instance-profile/{operator.name}-worker")
    assert machines["site_spot"].get("InstanceLifecycle") == "spot"
    assert "InstanceLifecycle" not in machines["site"]


def test_every_machine_is_in_the_clusters_group_and_nobody_else_gets_in(operator):
    # as asked: with interfaces, the simulation adds the default group to what it tells of a machine
    starts = [words for action, words in [*operator.calls_of_operator, *operator.calls_of_head]
              if action == "ec2:RunInstances"]  # fmt: skip
    groups = [value for words in starts for name, value in words.items() if "SecurityGroupId." in name]
    assert len(groups) == len(starts) == 1 + len(WORKERS)
    (group,) = operator.client("ec2").describe_security_groups(GroupIds=list(set(groups)))["SecurityGroups"]
    assert group["GroupName"] == operator.name
    opened = {
        (entry["IpProtocol"], entry["FromPort"], entry["ToPort"], source.get("CidrIp", source.get("GroupId")))
        for entry in group["IpPermissions"]
        for kind in ("IpRanges", "Ipv6Ranges", "UserIdGroupPairs", "PrefixListIds")
        for source in entry.get(kind, [])
    }
    own = group["GroupId"]
    assert opened == {
        ("tcp", 22, 22, OPERATOR),
        ("tcp", 22, 22, own),
        ("tcp", 6379, 6382, own),
        ("tcp", 10002, 10999, own),
        ("icmp", 3, 4, own),
    }


def test_ray_makes_no_group_role_or_key_of_its_own(operator):
    changes = {action for action, _ in operator.calls_of_operator if ":Describe" not in action}
    assert changes == {"ec2:RunInstances", "ec2:CreateTags"}


def test_private_machines_have_no_public_address(private, operator):
    assert set(private.machines()) == {"head", *WORKERS}
    assert not any("PublicIpAddress" in one for one in private.machines().values())
    assert all(
        "PublicIpAddress" in one for one in operator.machines().values()
    )  # in a subnet of the same kind


def test_private_machines_are_in_their_clusters_group_and_are_allowed_by_its_policy(private):
    named = [{"Name": "group-name", "Values": [private.name]}]
    (group,) = private.client("ec2").describe_security_groups(Filters=named)["SecurityGroups"]
    starts = [words for action, words in private.calls_of_operator if action == "ec2:RunInstances"]
    asked = [value for words in starts for name, value in words.items() if "SecurityGroupId." in name]
    assert asked == [group["GroupId"]] * (1 + len(WORKERS))
    assert refused(policy_of_operator(private), private.calls_of_operator, private.name) == []


def test_operators_policy_allows_what_ray_up_asked_for(operator):
    assert refused(policy_of_operator(operator), operator.calls_of_operator, operator.name) == []


def test_heads_policy_allows_what_starting_workers_asked_for(operator):
    started = [call for call in operator.calls_of_head if call[0] in ("ec2:RunInstances", "ec2:CreateTags")]
    assert len([action for action, _ in started if action == "ec2:RunInstances"]) == len(WORKERS)
    assert refused(policy_of_head(operator), started, operator.name) == []


def test_policy_refuses_a_machine_of_another_cluster_subnet_or_role(operator):
    (start,) = [words for action, words in operator.calls_of_operator if action == "ec2:RunInstances"]
    policy = policy_of_operator(operator)
    names = [name.replace("Key", "Value") for name, value in start.items() if value == "ray-cluster-name"]
    names += [name for name in start if name.endswith("SubnetId")]
    assert len(names) == 3  # the tag of the machine, that of its disks, and the subnet
    for name in [*names, "IamInstanceProfile.Name"]:
        other = ("ec2:RunInstances", start | {name: "other"})
        assert refused(policy, [other], operator.name), name


def test_policy_grants_nothing_that_neither_ray_nor_the_lister_asks_for(operator):
    granted = {
        action for one in policy_of_operator(operator)["Statement"] for action in as_list(one["Action"])
    }
    by_lister = {
        "ec2:DescribeVolumes",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeAddresses",
        "iam:GetRole",
        "ec2:DescribeKeyPairs",
        "ec2:DescribeSpotInstanceRequests",
        "iam:GetInstanceProfile",
    }
    in_passing = {"iam:PassRole", "ec2:TerminateInstances"}  # of RunInstances; of `ray down`, below
    assert granted - by_lister - in_passing <= {action for action, _ in operator.calls_of_operator}


def test_head_is_started_with_token_tls_labels_and_no_public_dashboard(operator):
    (start,) = operator.told_machines("fedray-node keep head")
    for word in (
        "RAY_AUTH_MODE=token",
        "RAY_USE_TLS=1",
        "RAY_health_check_failure_threshold=20",
        "docker exec",
        "RAY_OVERRIDE_LABELS",
        "fedray.region",
        "aggregator",
        "ray_bootstrap_config.yaml",
    ):
        assert word in start
    assert operator.told_machines("dashboard-host") == operator.told_machines("0.0.0.0") == []


def test_container_is_the_pinned_image_without_privilege(operator):
    (run,) = operator.told_machines("docker run")
    for word in (
        IMAGE,
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "/srv/fedray/data:ro",
        "fedray-secrets",
    ):
        assert word in run


def test_down_ends_every_machine_and_leaves_nothing_that_costs(operator):
    assert len(operator.machines()) == 1 + len(WORKERS)
    before = len(operator.calls())
    operator.run("ray", "down", "-y", str(operator.file))
    calls = operator.calls()[before:]
    assert operator.machines() == {}
    assert "ec2:TerminateInstances" in {action for action, _ in calls}
    assert refused(policy_of_operator(operator), calls, operator.name) == []
    before = len(operator.calls())
    listed = operator.script("aws_left.py", operator.name, "--region", REGION)
    assert " 0 of them cost money" in listed
    assert refused(policy_of_operator(operator), operator.calls()[before:], operator.name) == []
    removed = operator.script("aws_left.py", operator.name, "--region", REGION, "--remove")
    assert removed.endswith("nothing is left\n")
