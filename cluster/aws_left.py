#!/usr/bin/env python3
"""List what a cluster still owns on AWS: after `ray down`, nothing that costs should be left.

    python cluster/aws_left.py fedray --region eu-central-1            exit code 1 if something costs money
    python cluster/aws_left.py fedray --region eu-central-1 --remove   take back what aws_prepare.py made, too

Found by the tag `ray-cluster-name`, by the security group and by name. Not looked at: buckets, images in a
registry, and what carries neither tag nor group.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from fedray.errors import ConfigError, FedrayError

LIVE = ["pending", "running", "stopping", "stopped", "shutting-down"]


@dataclass(frozen=True, slots=True)
class Left:
    """One thing that the cluster still owns."""

    kind: str
    id: str
    is_paid: bool
    state: str = ""


def left(ec2: Any, iam: Any, cluster: str) -> list[Left]:
    """Return all that is found, what costs money first."""
    found = [*_machines(ec2, cluster), *_network(ec2, cluster), *_roles(iam, cluster)]
    return sorted(found, key=lambda one: (not one.is_paid, one.kind, one.id))


def _machines(ec2: Any, cluster: str) -> Iterator[Left]:
    tagged = {"Name": "tag:ray-cluster-name", "Values": [cluster]}
    live = {"Name": "instance-state-name", "Values": LIVE}
    for page in ec2.get_paginator("describe_instances").paginate(Filters=[tagged, live]):
        for instance in (one for group in page["Reservations"] for one in group["Instances"]):
            state = instance["State"]["Name"]
            yield Left("instance", instance["InstanceId"], state != "shutting-down", state)
    for page in ec2.get_paginator("describe_volumes").paginate(Filters=[tagged]):
        for volume in page["Volumes"]:
            yield Left("volume", volume["VolumeId"], True, volume["State"])
    for address in ec2.describe_addresses(Filters=[tagged])["Addresses"]:
        yield Left("address", address.get("AllocationId", address["PublicIp"]), True)


def _network(ec2: Any, cluster: str) -> Iterator[Left]:
    tagged = {"Name": "tag:ray-cluster-name", "Values": [cluster]}
    for group in ec2.describe_security_groups(Filters=[tagged])["SecurityGroups"]:
        yield Left("security group", group["GroupId"], False)
        of_group = [{"Name": "group-id", "Values": [group["GroupId"]]}]
        for interface in ec2.describe_network_interfaces(Filters=of_group)["NetworkInterfaces"]:
            yield Left("network interface", interface["NetworkInterfaceId"], False, interface["Status"])
        asked = [
            {"Name": "launch.group-id", "Values": [group["GroupId"]]},
            {"Name": "state", "Values": ["open", "active"]},
        ]
        for request in ec2.describe_spot_instance_requests(Filters=asked)["SpotInstanceRequests"]:
            is_paid = True  # an open request starts an instance as soon as there is one
            yield Left("spot request", request["SpotInstanceRequestId"], is_paid, request["State"])
    named = [{"Name": "key-name", "Values": [cluster]}]
    for key in ec2.describe_key_pairs(Filters=named)["KeyPairs"]:
        yield Left("key pair", key["KeyName"], False)


def _roles(iam: Any, cluster: str) -> Iterator[Left]:
    for name in (f"{cluster}-head", f"{cluster}-worker"):
        if _exists(lambda name=name: iam.get_instance_profile(InstanceProfileName=name)):
            yield Left("instance profile", name, False)
        if _exists(lambda name=name: iam.get_role(RoleName=name)):
            yield Left("role", name, False)


def remove(ec2: Any, iam: Any, cluster: str) -> list[str]:
    """Take back what was prepared, and volumes that belong to nothing; return what was removed.

    Raises ConfigError while instances live: `ray down` ends those.
    """
    found = left(ec2, iam, cluster)
    living = [one.id for one in found if one.kind == "instance"]
    if living:
        raise ConfigError(
            f"{len(living)} instances live or are just ending ({', '.join(living[:3])}). Fix: ray down, wait "
            "a minute, and ask again"
        )
    removed = []
    for one in sorted(found, key=lambda one: one.kind):  # an instance profile before its role
        if _remove(ec2, iam, one):
            removed.append(f"{one.kind} {one.id}")
    return removed


def _remove(ec2: Any, iam: Any, one: Left) -> bool:
    match one.kind:
        case "volume" if one.state == "available":
            ec2.delete_volume(VolumeId=one.id)
        case "security group":
            ec2.delete_security_group(GroupId=one.id)
        case "key pair":
            ec2.delete_key_pair(KeyName=one.id)
        case "spot request":
            ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[one.id])
        case "instance profile":
            for role in iam.get_instance_profile(InstanceProfileName=one.id)["InstanceProfile"]["Roles"]:
                iam.remove_role_from_instance_profile(InstanceProfileName=one.id, RoleName=role["RoleName"])
            iam.delete_instance_profile(InstanceProfileName=one.id)
        case "role":
            for policy in iam.list_role_policies(RoleName=one.id)["PolicyNames"]:
                iam.delete_role_policy(RoleName=one.id, PolicyName=policy)
            iam.delete_role(RoleName=one.id)
        case _:
            return False
    return True


def _exists(ask: Any) -> bool:
    try:
        ask()
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchEntity":
            return False
        raise
    return True


def table(found: Sequence[Left]) -> list[str]:
    """Return the lines to print."""
    if not found:
        return ["nothing is left"]
    paid = sum(one.is_paid for one in found)
    lines = [
        f"{'costs' if one.is_paid else 'free':6} {one.kind:18} {one.id} {one.state}".rstrip() for one in found
    ]
    return [*lines, f"{len(found)} left, {paid} of them cost money"]


def main(words: Sequence[str] | None = None) -> int:
    """Print the list; return 1 if something on it costs money."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("cluster", help="cluster_name of the file")
    parser.add_argument("--region", required=True)
    parser.add_argument("--remove", action="store_true", help="take back what aws_prepare.py made")
    told = parser.parse_args(words)
    try:
        ec2, iam = boto3.client("ec2", told.region), boto3.client("iam", told.region)
        if told.remove:
            print("\n".join(f"removed {what}" for what in remove(ec2, iam, told.cluster)))
        found = left(ec2, iam, told.cluster)
    except FedrayError as error:
        print(f"aws_left: {error}", file=sys.stderr)
        return 2
    except (BotoCoreError, ClientError) as error:
        print(f"aws_left: AWS says: {error}. A key comes from `aws configure` or AWS_PROFILE, its rights "
              "are those of cluster/iam-policy.json", file=sys.stderr)  # fmt: skip
        return 2
    print("\n".join(table(found)))
    return int(any(one.is_paid for one in found))


if __name__ == "__main__":
    sys.exit(main())
