"""Whether a policy of AWS allows a call: each resource that the call touches is asked about, as AWS does.

Knows what the policies in cluster/ use: Allow, wildcards in resources, StringEquals and StringLike.
"""

import fnmatch
import re
from collections.abc import Iterator
from typing import Any

Question = tuple[str, str, dict[str, str]]  # action, resource, context


def as_list(value: Any) -> list[str]:
    """Return what a policy may write as one word or as a list of them."""
    return [value] if isinstance(value, str) else list(value)


def permits(policy: dict[str, Any], question: Question) -> bool:
    """Tell whether some statement allows the action on the resource in this context."""
    action, resource, context = question
    return any(
        action in as_list(one["Action"])
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in as_list(one["Resource"]))
        and _holds(one.get("Condition", {}), context)
        for one in policy["Statement"]
        if one["Effect"] == "Allow"
    )


def _holds(condition: dict[str, dict[str, str]], context: dict[str, str]) -> bool:
    compare = {"StringEquals": str.__eq__, "StringLike": fnmatch.fnmatchcase}
    return all(
        key in context and compare[operator](context[key], wanted)
        for operator, wanted_of in condition.items()
        for key, wanted in wanted_of.items()
    )


def questions(
    action: str, asked: dict[str, str], region: str, account: str, cluster: str
) -> Iterator[Question]:
    """Yield what AWS asks the policy about one call, whose parameters are as they went over the wire.

    Instances that are named carry the cluster's tag. Raises ValueError for a call that nobody needs.
    """
    here = {"aws:RequestedRegion": region}
    arn = f"arn:aws:ec2:{region}:{account}:"
    owned = here | {"aws:ResourceTag/ray-cluster-name": cluster}
    if action.startswith("ec2:Describe"):
        yield action, "*", here
    elif action == "ec2:RunInstances":
        yield from _of_start(asked, region, account)
    elif action in ("ec2:CreateTags", "ec2:TerminateInstances"):
        ids = [value for key, value in asked.items() if re.match(r"(ResourceId|InstanceId)\.", key)]
        yield from ((action, f"{arn}instance/{each}", owned) for each in ids)
    elif action in ("iam:GetRole", "iam:GetInstanceProfile"):
        kind, name = (
            ("role", "RoleName") if action == "iam:GetRole" else ("instance-profile", "InstanceProfileName")
        )
        yield action, f"arn:aws:iam::{account}:{kind}/{asked[name]}", here
    else:
        raise ValueError(f"{action} is no call that ray up needs")


def _of_start(asked: dict[str, str], region: str, account: str) -> Iterator[Question]:
    here, arn = {"aws:RequestedRegion": region}, f"arn:aws:ec2:{region}:{account}:"
    for kind in ("instance", "volume"):
        tags = {f"aws:RequestTag/{name}": value for name, value in _tags(asked, kind)}
        yield "ec2:RunInstances", f"{arn}{kind}/new", here | tags
        yield "ec2:CreateTags", f"{arn}{kind}/new", here | tags | {"ec2:CreateAction": "RunInstances"}
    named = {"subnet": "SubnetId", "security-group": r"SecurityGroupId\.1", "key-pair": "KeyName"}
    found = [f"arn:aws:ec2:{region}::image/{asked['ImageId']}", f"{arn}network-interface/new"]
    found += [f"{arn}{kind}/{_value(asked, name)}" for kind, name in named.items()]
    if asked.get("InstanceMarketOptions.MarketType") == "spot":
        found.append(f"{arn}spot-instances-request/new")
    yield from (("ec2:RunInstances", resource, here) for resource in found)
    role = f"arn:aws:iam::{account}:role/{asked['IamInstanceProfile.Name']}"
    yield "iam:PassRole", role, {"iam:PassedToService": "ec2.amazonaws.com"}


def _value(asked: dict[str, str], name: str) -> str:
    """Return a parameter that stands at the top or with the network interface."""
    return next(
        value for key, value in asked.items() if re.fullmatch(rf"(NetworkInterface\.1\.)?{name}", key)
    )


def _tags(asked: dict[str, str], kind: str) -> Iterator[tuple[str, str]]:
    for key, value in asked.items():
        if found := re.fullmatch(r"(TagSpecification\.\d+)\.ResourceType", key):
            place = found[1]
            for other, name in asked.items():
                if value == kind and (tag := re.fullmatch(rf"{re.escape(place)}\.Tag\.(\d+)\.Key", other)):
                    yield name, asked[f"{place}.Tag.{tag[1]}.Value"]
