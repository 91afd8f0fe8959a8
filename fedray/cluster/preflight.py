"""`fedray cluster check`: is this cluster fit for a run? The order is that of a run's own start.

    here       token and certificate files, and what this machine has
    the door   TCP, TLS, token, versions, nodes: nothing is joined yet (fedray/runtime/ray_door.py)
    ports      every node's ports from here, TLS with each, the dashboard, the labels of the site map
    the nodes  after joining: code, clocks, disks, data, the way back (fedray/runtime/ray_nodes.py)

What fails ends the check where nothing can follow from it; else all that is wrong is said at once.
"""

import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fedray.cluster import machines
from fedray.errors import HostError
from fedray.runtime import node_probe, ray_door, ray_gcs, ray_nodes
from fedray.runtime.credentials import Credentials, examine, from_environment
from fedray.runtime.findings import FAIL, NOTE, PASS, Finding
from fedray.runtime.handshake import LIMIT_S, parse, shake

JOIN_S = 8.0
PORTS_FIX = "open the ports of docs/cluster-security.md both ways between the nodes"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be checked."""

    address: str | None = None
    sites: Mapping[str, ray_door.SiteAt] | None = None
    node_addresses: Sequence[str] = ()
    all_pairs: bool = False


def check(asked: Asked) -> Iterator[Finding]:
    """Yield what is found, in order."""
    credentials = from_environment()
    if asked.address is None:
        yield from _here(credentials, asked.node_addresses)
        return
    door = ray_door.Door(asked.address)
    failed = False
    for finding in ray_door.knock(door, credentials):
        failed = failed or finding.status == FAIL
        yield finding
    if failed:
        return
    yield from ray_door.unmatched(door.nodes, asked.sites or {})
    if asked.sites and all(_has_node(door, site) for site in asked.sites.values()):
        yield Finding("labels", PASS, f"every selector of {len(asked.sites)} sites has a node")
    yield from _dashboard(door)
    shut = _ports(door.nodes, credentials)
    yield from (finding for findings in shut.values() for finding in findings)
    if not shut:
        yield Finding("ports", PASS, f"{len(door.nodes)} nodes answer from here, with certificates that fit")
    yield from _joined(door, asked, [node for node in door.nodes if node.id not in shut])


def _has_node(door: ray_door.Door, site: ray_door.SiteAt) -> bool:
    return any(site.place.selects(node.labels) for node in door.nodes)


def _here(credentials: Credentials, addresses: Sequence[str]) -> Iterator[Finding]:
    """Check this machine alone, as before `ray start`."""
    yield from examine(credentials, addresses)
    alone = ray_gcs.Node("here", addresses[0] if addresses else socket.gethostname(), 0, 0, {}, False)
    yield from machines.examine([alone], {alone.id: node_probe.look("", alone.address, {})}, is_here=True)
    yield Finding("cluster", NOTE, "not asked: this looked at one machine", "--address HOST:PORT of the head")


def _dashboard(door: ray_door.Door) -> Iterator[Finding]:
    """Warn of a dashboard that others can open: it shows the cluster, in plain HTTP."""
    if not door.dashboard:
        yield Finding("dashboard", PASS, "none")
        return
    host, port = parse(door.dashboard)
    open_at = [] if ray_door.is_loopback(host) else [host]
    heads = [node.address for node in door.nodes if node.is_head and not ray_door.is_loopback(node.address)]
    open_at += [head for head in heads if not node_probe.reach(head, port, LIMIT_S)]
    if open_at:
        yield Finding(
            "dashboard",
            NOTE,
            f"it listens on {open_at[0]}:{port}, in plain HTTP: the cluster, and the token, can be seen",
            "ray start --head --dashboard-host=127.0.0.1, and an ssh tunnel to look at it",
        )
    else:
        yield Finding("dashboard", PASS, "on loopback")


def _ports(nodes: Sequence[ray_gcs.Node], credentials: Credentials) -> dict[str, list[Finding]]:
    """Check each node's ports from here, and TLS with each, all at once; return what is wrong by node id."""
    with ThreadPoolExecutor(min(64, len(nodes))) as pool:
        found = pool.map(lambda node: list(_port(node, credentials)), nodes)
        return {node.id: findings for node, findings in zip(nodes, found, strict=True) if findings}


def _port(node: ray_gcs.Node, credentials: Credentials) -> Iterator[Finding]:
    for port in (node.port, node.object_port):
        if why := node_probe.reach(node.address, port, LIMIT_S):
            yield Finding("ports", FAIL, f"from here to {node.name}: {why}", PORTS_FIX)
            return
    yield from shake(node.address, node.port, credentials, f"node {node.name}")


def _joined(door: ray_door.Door, asked: Asked, nodes: Sequence[ray_gcs.Node]) -> Iterator[Finding]:
    import ray

    from fedray.runtime.ray_start import join

    was_there = ray.is_initialized()
    try:
        if not was_there:
            join(door.address, JOIN_S)
        yield from _nodes(door, asked, nodes)
    except HostError as error:
        yield Finding(
            "join", FAIL, str(error), "run it again; then look at Ray's own log on the head, gcs_server.out"
        )
    finally:
        if not was_there and ray.is_initialized():
            ray.shutdown()


def _nodes(door: ray_door.Door, asked: Asked, open_nodes: Sequence[ray_gcs.Node]) -> Iterator[Finding]:
    sites = asked.sites or {}
    looked = ray_nodes.looks(door, sites, open_nodes)
    yield from ray_nodes.silent(door, looked)
    nodes = [node for node in open_nodes if not isinstance(looked[node.id], ray_nodes.Silent)]
    yield from ray_nodes.versions(door, looked)
    yield from machines.examine(nodes, looked)
    yield from machines.clocks(nodes, ray_nodes.skews(nodes))
    yield from ray_nodes.data(door, looked, sites)
    yield from _ways(door, nodes, asked.all_pairs)


def _ways(door: ray_door.Door, nodes: Sequence[ray_gcs.Node], all_pairs: bool) -> Iterator[Finding]:
    """Check the way from each node to the head and back here, and to every other node where asked."""
    head = parse(door.address)
    here = door.here

    def targets(node: ray_gcs.Node) -> list[tuple[str, int]]:
        others = door.nodes if all_pairs else [here] if here is not None else []
        return [
            head,
            *(
                (other.address, port)
                for other in others
                if other.id != node.id
                for port in (other.port, other.object_port)
            ),
        ]

    answers = ray_nodes.Sent(node_probe.reach_all).on(nodes, lambda node: (targets(node), LIMIT_S))
    is_open = True
    for node in nodes:
        reasons = answers[node.id]
        if isinstance(reasons, ray_nodes.Silent):
            reasons = [reasons.why]
        for why in filter(None, reasons):
            is_open = False
            yield Finding("ports", FAIL, f"from {node.name}: {why}", PORTS_FIX)
    if is_open:
        which = (
            "every node reaches every other" if all_pairs else "every node reaches the head and this machine"
        )
        yield Finding("ports", PASS, which)
