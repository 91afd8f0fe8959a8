"""Ask the server of a cluster's head a few questions without joining the cluster: Ray's own gRPC calls.

Every call has a limit. Ray's client of the same calls waits long, and says only that it has waited.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from fedray.runtime.credentials import Credentials
from fedray.runtime.handshake import LIMIT_S

_MESSAGES: Any = gcs_service_pb2  # generated, without types
_STUBS: Any = gcs_service_pb2_grpc
_ALIVE: int = gcs_pb2.GcsNodeInfo.ALIVE  # type: ignore[attr-defined]
METADATA = (b"cluster", b"CLUSTER_METADATA")  # where Ray keeps the versions that the head runs
DASHBOARD = (b"dashboard", b"dashboard")


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster, as its head knows it."""

    id: str
    address: str
    port: int
    object_port: int
    labels: Mapping[str, str]
    is_head: bool

    @property
    def name(self) -> str:
        """How a message calls it: its address, and its site or role."""
        called = self.labels.get("fedray.site") or self.labels.get("fedray.role")
        return f"{self.address} ({called})" if called else self.address


def channel(address: str, credentials: Credentials) -> Any:
    """Open a channel to the head's server with the credentials here; the caller closes it."""
    options = (("grpc.enable_http_proxy", 0),)
    if not credentials.uses_tls:
        return grpc.insecure_channel(address, options)
    files = (credentials.authority, credentials.key, credentials.certificate)
    contents = [file.read_bytes() for file in files if file is not None]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*contents), options)


def shown(credentials: Credentials) -> tuple[tuple[str, str], ...]:
    """Return the token as a call carries it; nothing where none is in use."""
    if not credentials.uses_token or credentials.token is None:
        return ()
    return (("authorization", f"Bearer {credentials.token}"),)


def alive(channel: Any, metadata: tuple[tuple[str, str], ...]) -> str:
    """Ask whether the server lives; return "" or the name of gRPC's status."""
    try:
        _STUBS.NodeInfoGcsServiceStub(channel).CheckAlive(
            _MESSAGES.CheckAliveRequest(), timeout=LIMIT_S, metadata=metadata
        )
    except grpc.RpcError as error:
        return str(error.code().name)
    return ""


class Questions:
    """Calls on a channel that the server has answered before."""

    def __init__(self, channel: Any, credentials: Credentials) -> None:
        self._channel = channel
        self._options = {"timeout": LIMIT_S, "metadata": shown(credentials)}

    def nodes(self) -> tuple[Node, ...]:
        """Return the nodes that are alive."""
        stub = _STUBS.NodeInfoGcsServiceStub(self._channel)
        reply = stub.GetAllNodeInfo(_MESSAGES.GetAllNodeInfoRequest(), **self._options)
        return tuple(
            Node(
                id=node.node_id.hex(),
                address=node.node_manager_address,
                port=node.node_manager_port,
                object_port=node.object_manager_port,
                labels=dict(node.labels),
                is_head=node.is_head_node,
            )
            for node in reply.node_info_list
            if node.state == _ALIVE
        )

    def kept(self, where: tuple[bytes, bytes]) -> bytes:
        """Return a value that the head keeps, empty where there is none."""
        stub = _STUBS.InternalKVGcsServiceStub(self._channel)
        request = _MESSAGES.InternalKVGetRequest(namespace=where[0], key=where[1])
        value: bytes = stub.InternalKVGet(request, **self._options).value
        return value
