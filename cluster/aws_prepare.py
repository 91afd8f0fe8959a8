#!/usr/bin/env python3
"""Make what a cluster on AWS stands on, and fill its file in: security group, roles, key.

    python cluster/aws_prepare.py cluster/aws.yaml --out cluster/my.local.yaml --ami ami-0cd \
        --subnet subnet-0ab --image registry.example/fedray@sha256:... --ssh-from 203.0.113.7/32 \
        --public-key ~/.ssh/fedray.pem.pub

Run it once per cluster, as an administrator, and again to change who may reach the nodes. It writes the
filled file and, beside it, the policy with the least rights that `ray up` needs. `aws_left.py --remove` takes
all of it back.
"""

import argparse
import ipaddress
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from fedray.cluster import ports
from fedray.errors import ConfigError, FedrayError

HERE = Path(__file__).resolve().parent
EC2_MAY_USE_IT = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}
Rule = tuple[str, int, int, str]  # protocol, first port, last port, and a CIDR or the id of a group


def rules(group: str, ssh_from: Sequence[str], peers: Sequence[str]) -> set[Rule]:
    """Return who may open a connection to a node: its own kind, peers on Ray's ports, operators on SSH."""
    inside = {("tcp", first, last, who) for first, last in ports.BETWEEN_NODES for who in (group, *peers)}
    shells = {("tcp", ports.SSH, ports.SSH, who) for who in (group, *ssh_from)}  # the head sets workers up
    too_big = {("icmp", 3, 4, who) for who in (group, *peers)}  # else large packets vanish between regions
    return inside | shells | too_big


def permission(rule: Rule) -> dict[str, Any]:
    """Return a rule as EC2 writes it."""
    protocol, first, last, who = rule
    if who.startswith("sg-"):
        source = {"UserIdGroupPairs": [{"GroupId": who}]}
    elif who.startswith("pl-"):
        source = {"PrefixListIds": [{"PrefixListId": who}]}
    else:
        source = {"Ipv6Ranges": [{"CidrIpv6": who}]} if ":" in who else {"IpRanges": [{"CidrIp": who}]}
    return {"IpProtocol": protocol, "FromPort": first, "ToPort": last, **source}


def rules_of(group: dict[str, Any]) -> Iterator[Rule]:
    """Yield the rules of a group that exists, of every kind of source, so that none is overlooked."""
    sources = (("UserIdGroupPairs", "GroupId"), ("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6"),
               ("PrefixListIds", "PrefixListId"))  # fmt: skip
    for entry in group["IpPermissions"]:
        for kind, key in sources:
            for found in entry.get(kind, []):
                yield (entry["IpProtocol"], entry.get("FromPort", -1), entry.get("ToPort", -1), found[key])


def security_group(ec2: Any, cluster: str, vpc: str, ssh_from: Sequence[str], peers: Sequence[str]) -> str:
    """Make the group, or bring the one that exists to these rules; return its id."""
    of_name = [{"Name": "group-name", "Values": [cluster]}, {"Name": "vpc-id", "Values": [vpc]}]
    found = ec2.describe_security_groups(Filters=of_name)["SecurityGroups"]
    if found:
        group = found[0]
    else:
        tags = [{"ResourceType": "security-group", "Tags": _tags(cluster)}]
        made = ec2.create_security_group(
            GroupName=cluster,
            Description="fedray: Ray between its nodes, SSH from operators",
            VpcId=vpc,
            TagSpecifications=tags,
        )
        group = {"GroupId": made["GroupId"], "IpPermissions": []}
    wanted, had = rules(group["GroupId"], ssh_from, peers), set(rules_of(group))
    if had - wanted:
        ec2.revoke_security_group_ingress(
            GroupId=group["GroupId"], IpPermissions=[permission(rule) for rule in sorted(had - wanted)]
        )
    if wanted - had:
        ec2.authorize_security_group_ingress(
            GroupId=group["GroupId"], IpPermissions=[permission(rule) for rule in sorted(wanted - had)]
        )
    return str(group["GroupId"])


def role(iam: Any, name: str, policy: str) -> None:
    """Make a role with one policy, and the profile of machines that wear it; renew an old policy."""
    _unless_there(lambda: iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(EC2_MAY_USE_IT)))
    iam.put_role_policy(RoleName=name, PolicyName="fedray", PolicyDocument=policy)
    _unless_there(lambda: iam.create_instance_profile(InstanceProfileName=name))
    if not iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)


def fill(text: str, words: dict[str, str]) -> str:
    """Put what was made in the place of the words in capitals, longest first."""
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, words[word])
    return text


def policy_words(
    name: str, region: str, account: str, group: str, told: argparse.Namespace
) -> dict[str, str]:
    """Return what the words in capitals of the policies stand for."""
    return {
        "arn:aws:ec2:REGION": f"arn:aws:ec2:{region}",
        "arn:aws:ecr:REGION": f"arn:aws:ecr:{region}",
        '"REGION"': f'"{region}"',
        ":ACCOUNT:": f":{account}:",
        "image/AMI": f"image/{told.ami}",
        "subnet/SUBNET": f"subnet/{told.subnet}",
        "group/SECURITY_GROUP": f"group/{group}",
        "key-pair/KEY": f"key-pair/{name}",
        "role/CLUSTER": f"role/{name}",
        "profile/CLUSTER": f"profile/{name}",
        '"CLUSTER"': f'"{name}"',
        ":::BUCKET": f":::{told.bucket}",
    }


def prepare(told: argparse.Namespace) -> list[str]:
    """Make everything; return the lines to print."""
    check(told)
    cluster = yaml.safe_load(told.file.read_text("utf-8"))
    name, region = cluster["cluster_name"], cluster["provider"]["region"]
    check_names(cluster)
    ec2, iam = boto3.client("ec2", region), boto3.client("iam", region)
    (subnet,) = ec2.describe_subnets(SubnetIds=[told.subnet])["Subnets"]
    if ipaddress.ip_network(subnet["CidrBlock"]).num_addresses > ports.LARGEST_POOL + 2:
        raise ConfigError(
            f"subnet {told.subnet} is {subnet['CidrBlock']}: one certificate would list all its addresses. "
            "Fix: a subnet of /24 or smaller"
        )
    group = security_group(ec2, name, subnet["VpcId"], told.ssh_from, told.peer)
    key = told.public_key.read_bytes()
    _unless_there(
        lambda: ec2.import_key_pair(
            KeyName=name,
            PublicKeyMaterial=key,
            TagSpecifications=[{"ResourceType": "key-pair", "Tags": _tags(name)}],
        )
    )
    account = boto3.client("sts", region).get_caller_identity()["Account"]
    words = policy_words(name, region, account, group, told)
    for part in ("head", "worker"):
        role(iam, f"{name}-{part}", fill((HERE / f"iam-{part}.json").read_text("utf-8"), words))
    policy = told.out.with_suffix(".iam.json")
    policy.write_text(fill((HERE / "iam-policy.json").read_text("utf-8"), words), "utf-8")
    places = {"CONTAINER_IMAGE": told.image, "ImageId: AMI": f"ImageId: {told.ami}",
              "[SUBNET]": f"[{told.subnet}]", "SubnetId: SUBNET": f"SubnetId: {told.subnet}",
              "[SECURITY_GROUP]": f"[{group}]"}  # fmt: skip
    told.out.write_text(fill(told.file.read_text("utf-8"), places), "utf-8")
    return [
        f"security group {group}, key {name}, roles {name}-head and {name}-worker are there",
        f"{told.out}: ray up {told.out}",
        f"{policy}: what whoever runs it needs to be allowed",
        f"next: cluster/tls/handout.sh pool pool {subnet['CidrBlock']}",
    ]


def check(told: argparse.Namespace) -> None:
    """Raise ConfigError on what cannot be meant."""
    for cidr in (*told.ssh_from, *told.peer):
        try:
            network = ipaddress.ip_network(cidr)
        except ValueError:
            raise ConfigError(f"{cidr!r} is no network. Fix: 203.0.113.7/32 for one address") from None
        if network.prefixlen < 8:
            raise ConfigError(f"{cidr} is half the internet. Fix: the network that operators or peers are in")
    if "@sha256:" not in told.image:
        raise ConfigError(
            f"--image {told.image} is a tag, and tags move: nodes could differ. Fix: name@sha256:..., from "
            "`docker buildx imagetools inspect`"
        )


def check_names(cluster: dict[str, Any]) -> None:
    """Raise ConfigError where a node would ask for a key, role or tag that is not this cluster's."""
    name = cluster["cluster_name"]
    for kind, node in cluster["available_node_types"].items():
        machine = node["node_config"]
        wears = "head" if kind == cluster["head_node_type"] else "worker"
        tags = {(tag["Key"], tag["Value"]) for spec in machine["TagSpecifications"] for tag in spec["Tags"]}
        named = {
            "KeyName": (machine["KeyName"], name),
            "IamInstanceProfile": (machine["IamInstanceProfile"]["Name"], f"{name}-{wears}"),
            "ray-cluster-name": (dict(tags).get("ray-cluster-name"), name),
        }
        for what, (found, wanted) in named.items():
            if found != wanted:
                raise ConfigError(f"node type {kind}: {what} is {found}. Fix: {wanted}, as cluster_name says")


def _tags(cluster: str) -> list[dict[str, str]]:
    return [{"Key": "project", "Value": "fedray"}, {"Key": "ray-cluster-name", "Value": cluster}]


def _unless_there(make: Any) -> None:
    try:
        make()
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("EntityAlreadyExists", "InvalidKeyPair.Duplicate"):
            raise


def main(words: Sequence[str] | None = None) -> int:
    """Prepare, and say what to do next."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("file", type=Path, help="cluster/aws.yaml or cluster/aws-private.yaml")
    parser.add_argument("--out", type=Path, required=True, help="the filled file")
    parser.add_argument("--subnet", required=True)
    parser.add_argument("--ami", required=True)
    parser.add_argument("--image", required=True, help="name@sha256:...")
    parser.add_argument("--public-key", type=Path, required=True)
    parser.add_argument("--ssh-from", action="append", default=[], metavar="CIDR", help="operators")
    parser.add_argument("--peer", action="append", default=[], metavar="CIDR", help="nodes of other regions")
    parser.add_argument("--bucket", default="no-bucket", help="of checkpoints, for runtime storage=s3://...")
    try:
        lines = prepare(parser.parse_args(words))
    except FedrayError as error:
        print(f"aws_prepare: {error}", file=sys.stderr)
        return 2
    except (BotoCoreError, ClientError) as error:
        print(f"aws_prepare: AWS says: {error}. A key comes from `aws configure` or AWS_PROFILE, its rights "
              "are those of cluster/iam-policy.json", file=sys.stderr)  # fmt: skip
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
