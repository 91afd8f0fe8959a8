"""Wait on a host until so many nodes of its Ray cluster are alive, or until a new node is; print all as JSON.

python -m experiments.testbed.nodes ADDRESS COUNT SECONDS
python -m experiments.testbed.nodes ADDRESS NODE_ADDRESS SECONDS ID...     one there with none of these ids
"""

import json
import sys
import time
from typing import Any

from ray import exceptions as ray_errors
from ray._raylet import GcsClient

ALIVE = 0  # of ray.protobuf's GcsNodeInfo.State


def known(address: str) -> list[dict[str, Any]]:
    """Return the nodes that the cluster knows of, dead ones too; none where it does not answer."""
    try:
        found = GcsClient(address=address).get_all_node_info(timeout=5)
    except (ray_errors.RayError, ray_errors.RpcError, RuntimeError, TimeoutError) as error:
        print(f"{address}: {type(error).__name__}", file=sys.stderr)
        return []
    return [
        {"id": node.node_id.hex(), "address": node.node_manager_address, "is_alive": node.state == ALIVE,
         "labels": dict(node.labels)}
        for node in found.values()
    ]  # fmt: skip


def main() -> None:
    """Wait and print."""
    address, wanted, limit = sys.argv[1], sys.argv[2], time.monotonic() + float(sys.argv[3])
    while True:
        nodes = known(address)
        alive = [node for node in nodes if node["is_alive"]]
        new = [node for node in alive if node["address"] == wanted and node["id"] not in sys.argv[4:]]
        if new or (wanted.isdigit() and len(alive) == int(wanted)):
            print(json.dumps(nodes))
            return
        if time.monotonic() > limit:
            sys.exit(f"{len(alive)} nodes are alive, waited for {wanted}: {nodes}")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
