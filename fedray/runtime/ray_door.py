"""Ask a Ray cluster at its door before joining it, so that what is wrong has a name within seconds.

In this order, each step with a limit: the credentials here, TCP, TLS with our certificate, a call with our
token and one without, the cluster's versions, its nodes. Nothing is started or joined. `enter` is what a run
calls; `knock` yields the same as lines of `fedray cluster check`.
"""

import ipaddress
import json
import logging
import os
import platform
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import ray

from fedray.errors import ClusterError
from fedray.runtime import ray_gcs
from fedray.runtime.credentials import INSECURE, OPEN_FIX, Credentials, examine, from_environment
from fedray.runtime.findings import FAIL, NOTE, PASS, Finding, problems
from fedray.runtime.handshake import LIMIT_S, own_address, parse, shake
from fedray.runtime.node_probe import reach
from fedray.runtime.place import Place
from fedray.runtime.ray_gcs import Node
from fedray.runtime.versions import LET, MATCH_LEVEL, is_let

ONE_DOMAIN = (
    "All nodes of this Ray cluster can run code on each other and read each other's data. "
    "Security passes are exercised but protect nobody inside the cluster."
)

logger = logging.getLogger(__name__)


class SiteAt(Protocol):
    """A line of a site map: the labels of the site's node and the path of its data there."""

    @property
    def place(self) -> Place:
        """The labels of its node."""

    @property
    def data(self) -> str | None:
        """The path on its node, or None where the node itself says it."""


@dataclass(slots=True)
class Door:
    """What was learnt at the door; filled as far as `knock` came."""

    address: str
    nodes: tuple[Node, ...] = ()
    dashboard: str = ""

    @property
    def here(self) -> Node | None:
        """The node on this machine, or None."""
        return next((node for node in self.nodes if own_address(node.address)), None)


def enter(address: str, environment: Mapping[str, str] = os.environ) -> Door:
    """Return what there is to know of a cluster that this process may join.

    Raises ClusterError with all that is wrong. Says that the cluster is one trust domain, at WARNING.
    """
    door = Door(address)
    findings = list(knock(door, from_environment(environment), environment))
    if wrong := problems(findings):
        raise ClusterError(wrong)
    for finding in findings:
        if finding.check == "secure":
            logger.warning("%s", finding.message)
    logger.warning("One trust domain: %s", ONE_DOMAIN)
    return door


def knock(
    door: Door, credentials: Credentials, environment: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """Yield what is found at the door; stop after the first step that nothing can follow."""
    host, port = parse(door.address)
    steps: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: _secure([host], credentials, environment),
        lambda: _credentials(credentials),
        lambda: _reached(host, port),
        lambda: shake(host, port, credentials, "the head"),
        lambda: _asked(door, credentials, environment),
        # a cluster that was called at 127.0.0.1 may have nodes elsewhere all the same
        lambda: _secure(
            [node.address for node in door.nodes] if is_loopback(host) else [], credentials, environment
        ),
        lambda: _membership(door),
    )
    for step in steps:
        found = list(step())
        yield from found
        if any(finding.status == FAIL for finding in found):
            return


def is_loopback(host: str) -> bool:
    """Tell whether an address, or all that a name stands for, is this machine talking to itself."""
    try:
        found = {str(each[4][0]).partition("%")[0] for each in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in found)


def _secure(
    hosts: Sequence[str], credentials: Credentials, environment: Mapping[str, str]
) -> Iterator[Finding]:
    """Refuse a cluster on a network without token and mutual TLS, unless told to go without."""
    if credentials.is_complete or all(is_loopback(host) for host in hosts):
        return
    has_token = credentials.uses_token and credentials.token is not None
    lacks = [*([] if has_token else ["a token"]), *([] if credentials.uses_tls else ["mutual TLS"])]
    without = " and ".join(lacks)
    if environment.get(INSECURE) == "1":
        yield Finding(
            "secure",
            NOTE,
            f"{INSECURE}=1: joined without {without}; whoever reaches this cluster's network runs code on it",
        )
    else:
        yield Finding("secure", FAIL, f"a cluster on a network is not joined without {without}", OPEN_FIX)


def _credentials(credentials: Credentials) -> Iterator[Finding]:
    """Yield what is wrong with the credentials in use; of those that are not `_secure` has spoken."""
    used = {"token": credentials.uses_token, "tls": credentials.uses_tls}
    yield from (finding for finding in examine(credentials) if used[finding.check])


def _reached(host: str, port: int) -> Iterator[Finding]:
    if why := reach(host, port, LIMIT_S):
        yield Finding(
            "head",
            FAIL,
            why,
            "start Ray on the head, give its --port, and let this machine through the head's firewall",
        )
    else:
        yield Finding("head", PASS, f"{host} answers on port {port}")


def _asked(door: Door, credentials: Credentials, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Ask the head's server who it is and who is there."""
    with ray_gcs.channel(door.address, credentials) as channel:
        refused = _refusal(channel, credentials)
        yield from refused
        if any(finding.status == FAIL for finding in refused):
            return
        ask = ray_gcs.Questions(channel, credentials)
        try:
            door.nodes = ask.nodes()
            door.dashboard = ask.kept(ray_gcs.DASHBOARD).decode()
            yield _versions(ask.kept(ray_gcs.METADATA), environment)
        except grpc.RpcError as error:
            yield Finding("head", FAIL, f"it answered once and no more ({error.code().name})", "run it again")


def _refusal(channel: object, credentials: Credentials) -> list[Finding]:
    """Say what the head makes of our token, and whether it asks for one at all."""
    shown = ray_gcs.shown(credentials)
    answer = ray_gcs.alive(channel, shown)
    if answer == "UNAUTHENTICATED":
        what = (
            "refuses the token here: it has another" if shown else "asks for a token, and none is in use here"
        )
        fix = (
            "copy the head's token file to this machine (mode 0600), and export RAY_AUTH_MODE=token "
            "RAY_AUTH_TOKEN_PATH=FILE"
        )
        return [Finding("token", FAIL, f"the head {what}", fix)]
    if answer:
        what = f"something answers there, but not as the head of a Ray cluster ({answer})"
        return [Finding("head", FAIL, what, "give the host and the --port of `ray start --head`")]
    if shown and not ray_gcs.alive(channel, ()):
        fix = "stop Ray there, export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE, and start it again"
        return [Finding("token", FAIL, "the head asks nobody for a token", fix)]
    return [Finding("token", PASS, "the head takes ours, and refuses a call without")] if shown else []


def _versions(kept: bytes, environment: Mapping[str, str]) -> Finding:
    theirs = json.loads(kept) if kept else {}
    ours = {"Ray": ray.__version__, "Python": platform.python_version()}
    found = {name: theirs.get(f"{name.lower()}_version", "unknown") for name in ours}
    other = [
        f"{name} {found[name]} at the head, {ours[name]} here" for name in ours if found[name] != ours[name]
    ]
    if found["Ray"] == ours["Ray"] and is_let(found["Python"], ours["Python"], environment):
        return Finding("versions", NOTE, f"{other[0]}: {LET}")
    if other:
        wanted = f"'ray[default]=={ours['Ray']}' under Python {ours['Python']}"
        fix = (
            f"one version everywhere: pip install {wanted} at the head and start it again, or the head's "
            f"here (another patch level of Python: export {MATCH_LEVEL}=minor on every node and here)"
        )
        return Finding("versions", FAIL, "; ".join(other), fix)
    return Finding("versions", PASS, ", ".join(f"{name} {version}" for name, version in ours.items()))


def _membership(door: Door) -> Iterator[Finding]:
    """Check that a node is on this machine: a driver of Ray needs one."""
    count = f"{len(door.nodes)} node{'s' if len(door.nodes) != 1 else ''}"
    if door.here is None:
        fix = f"run it on a node, or ray start --address={door.address} --node-ip-address=ADDRESS here"
        yield Finding("node", FAIL, f"the cluster has {count}, and this machine is none of them", fix)
    else:
        yield Finding("node", PASS, f"the cluster has {count}; this machine is {door.here.name}")


def unmatched(nodes: Sequence[Node], sites: Mapping[str, SiteAt]) -> Iterator[Finding]:
    """Yield a failure for each site whose labels no node has: Ray would wait for ever."""
    for name, site in sites.items():
        if any(site.place.selects(node.labels) for node in nodes):
            continue
        keys = dict(site.place.labels)
        found = sorted({node.labels[key] for key in keys for node in nodes if key in node.labels})
        there = ", ".join(found) or "none of these labels"
        yield Finding(
            "labels",
            FAIL,
            f"site {name}: no node has {site.place.selector}; nodes have {there}",
            f"ray start --labels={site.place.matching_labels} on the site's node, or mend the site map",
        )
