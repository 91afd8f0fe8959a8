"""Take a node's work away before the node goes: a cloud's notice, a stop by hand.

    python -m fedray.cluster.drain now --address HEAD:6379 --node-ip IP --seconds 100
    python -m fedray.cluster.drain watch --cloud aws --address HEAD:6379 --node-ip IP

A drained node gets no new actors or tasks; those it has go on until the deadline. `cluster/node.sh` calls
both: `now` when its unit is stopped, `watch` beside a node that a cloud may take back. Ray's own command
(`ray drain-node`) wants the node's id; this one finds it by the address.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedray.errors import ConfigError, FedrayError, HostError

ASK_EVERY_S = 5.0  # a notice comes 120 s (AWS) or 30 s (Google) before the end
ANSWER_WITHIN_S = 2.0
CALL_WITHIN_S = 10.0
SPARE_S = 10.0  # of the notice, for the node's own end after the drain
METADATA = "http://169.254.169.254"  # the same link-local address on both clouds
REASONS = {"idle": "DRAIN_NODE_REASON_IDLE_TERMINATION", "preemption": "DRAIN_NODE_REASON_PREEMPTION"}


@dataclass(frozen=True, slots=True)
class Cloud:
    """How a cloud tells a machine that it will be taken back, and how long before."""

    path: str
    headers: dict[str, str]
    notice_s: float
    token_path: str = ""  # of a session token to ask for first


CLOUDS = {
    "aws": Cloud("/latest/meta-data/spot/instance-action", {}, 120.0, token_path="/latest/api/token"),
    "gcp": Cloud("/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}, 30.0),
}


def is_noticed(cloud: Cloud, base: str = METADATA) -> bool:
    """Tell whether the cloud has said that it takes this machine back.

    A service that does not answer has said nothing: it is asked again. Raises HostError where it refuses.
    """
    headers = dict(cloud.headers)
    try:
        if cloud.token_path:
            ask = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
            headers["X-aws-ec2-metadata-token"] = _fetch(base + cloud.token_path, ask, "PUT")
        answer = _fetch(base + cloud.path, headers, "GET")
    except urllib.error.HTTPError as error:
        if error.code == 404:  # the path exists from the notice on
            return False
        raise HostError(
            f"the metadata service answers {error.code}: no notice would be seen. Fix: allow this machine "
            "its metadata service, or start the node without FEDRAY_CLOUD"
        ) from error
    except OSError:
        return False
    return answer.strip() != "FALSE"


def drain(address: str, node_ip: str, seconds: float, reason: str = "preemption") -> str:
    """Ask the head to drain the node at this address within so many seconds; return the node's id.

    Raises HostError where the head does not answer, has no such node, or refuses.
    """
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    try:
        head = GcsClient(address=address)
        node_id = _node_at(head, node_ip)
        deadline_ms = int((time.time() + seconds) * 1000)
        kind = autoscaler_pb2.DrainNodeReason.Value(REASONS[reason])
        accepted, why = head.drain_node(node_id, kind, "asked by fedray", deadline_ms)
    except (ConnectionError, RuntimeError, OSError) as error:  # Ray's own errors derive from these
        raise HostError(
            f"the head at {address} did not answer ({type(error).__name__}). Fix: check the address and, by "
            "`fedray cluster check`, token and certificates"
        ) from error
    if not accepted:
        raise HostError(f"the head does not drain the node at {node_ip}: {why}")
    return node_id


def _node_at(head: Any, node_ip: str) -> str:
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    nodes = head.get_all_node_info(timeout=CALL_WITHIN_S).items()
    found = [
        (node.start_time_ms, str(node_id.hex()))
        for node_id, node in nodes
        if node.node_manager_address == node_ip and node.state == GcsNodeInfo.GcsNodeState.ALIVE
    ]
    if not found:
        raise HostError(f"no living node at {node_ip}. Fix: --node-ip as in `ray start --node-ip-address`")
    return max(found)[1]  # the head may not have seen yet that an older one died


def watch(cloud: str, address: str, node_ip: str, base: str = METADATA, every_s: float = ASK_EVERY_S) -> str:
    """Wait for the cloud's notice, then drain this node; return its id.

    A head that does not answer is asked again while there is time. Raises HostError where there is none left.
    """
    service = CLOUDS[cloud]
    while not is_noticed(service, base):
        time.sleep(every_s)
    deadline = time.monotonic() + service.notice_s - SPARE_S
    while True:
        try:
            return drain(address, node_ip, max(deadline - time.monotonic(), 1.0))
        except HostError:
            if time.monotonic() > deadline:
                raise
            time.sleep(every_s)


def _fetch(url: str, headers: dict[str, str], method: str) -> str:
    asked = urllib.request.Request(url, headers=headers, method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # link-local: never by a proxy
    with direct.open(asked, timeout=ANSWER_WITHIN_S) as answer:
        return str(answer.read(4096).decode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fedray.cluster.drain", description="Drain this node.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    now, waits = verbs.add_parser("now"), verbs.add_parser("watch")
    for verb in (now, waits):
        verb.add_argument("--address", required=True, help="HEAD:PORT")
        verb.add_argument("--node-ip", required=True)
    now.add_argument("--seconds", type=float, default=100.0)
    now.add_argument("--reason", choices=sorted(REASONS), default="preemption")
    waits.add_argument("--cloud", choices=sorted(CLOUDS), required=True)
    waits.add_argument("--metadata", default=METADATA)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Drain now, or on notice; return 0 once the head has taken it on."""
    told = _parser().parse_args(words)
    try:
        if told.verb == "now":
            if told.seconds <= 0:
                raise ConfigError(f"--seconds {told.seconds}: a drain needs some time. Fix: --seconds 100")
            node_id = drain(told.address, told.node_ip, told.seconds, told.reason)
        else:
            node_id = watch(told.cloud, told.address, told.node_ip, told.metadata)
    except FedrayError as error:
        sys.stderr.write(f"fedray: {error}\n")
        return 1
    sys.stdout.write(json.dumps({"draining": node_id}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
