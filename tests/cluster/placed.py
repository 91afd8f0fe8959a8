"""Run studies on a Ray cluster of labelled nodes on this machine, placed by a site map; print facts as JSON.

python -m tests.cluster.placed FOLDER
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.cluster_utils import Cluster

import fedray as fr
from fedray.errors import ConfigError
from fedray.runtime.federation import HostSpec, make_region
from fedray.runtime.ray_transport import make_transport
from fedray.runtime.round import Aggregator
from tests.cluster import placed_study as study

HEAD = {"health_check_period_ms": 1000, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
LABELS = {
    "a": {"fedray.region": "eu", "fedray.role": "regional", "fedray.host": "a"},
    "b": {"fedray.region": "eu", "fedray.host": "b"},
    "c": {"fedray.region": "us", "fedray.host": "c"},
}


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def alive() -> dict[str, str]:
    """Return the `fedray.host` of each living node by its id."""
    living = [node for node in ray.nodes() if node["Alive"]]
    return {node["NodeID"]: node["Labels"].get("fedray.host", "head") for node in living}


def wait_until(is_so: Any) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.2)


def connect(cluster: Any, file: Path, data: Any = None, **options: Any) -> Any:
    return fr.connect(file, data or study.hospitals(), address=cluster.address, **options)


class Leaves:
    """A tracker that takes a node away after one round and brings it back after another."""

    def __init__(self, cluster: Any, node: Any, federation: Any, environment: dict[str, str]) -> None:
        self.cluster, self.node, self.federation = cluster, node, federation
        self.environment = environment
        self.seconds: list[float] = []

    def start(self, plan: Any, facts: Any) -> None:
        pass

    def evaluation(self, record: Any) -> None:
        pass

    def finish(self, result: Any) -> None:
        pass

    def round(self, record: Any) -> None:
        self.seconds.append(record.seconds)
        tell(what="round", round=record.round, away=record.away, counted=record.counted,
             kinds=sorted({failure.kind for failure in record.failures}),
             failed=sorted({failure.site for failure in record.failures}))
        if record.round == study.GONE - 1:
            self.cluster.remove_node(self.node, allow_graceful=False)
        if record.round == study.BACK - 1:
            self.cluster.add_node(num_cpus=1, labels=LABELS["b"], env_vars=self.environment)
            wait_until(lambda: "b" in alive().values())
            assert self.federation.refresh() == ()


def placed(cluster: Any, file: Path, node: Any, environment: dict[str, str]) -> None:
    """Tell where sites and aggregators are and the bits of several studies, in the last of which a node is
    killed and comes back after some rounds.
    """
    started = time.monotonic()
    with connect(cluster, file) as federation:
        nodes, hosts = federation.call("nodes"), alive()
        tell(what="layout", seconds=time.monotonic() - started, text=federation.layout,
             sites=places(federation), hosts={name: hosts[node] for name, node in nodes.items()})
        for name in study.STUDIES:
            result = study.train(name, federation)
            record = result.metrics[-1]
            tell(what="bits", name=name, sha256=result.params_sha256, down=record.bytes_down,
                 up=record.bytes_up, counted=record.counted, seconds=record.seconds)
        tracker = Leaves(cluster, node, federation, environment)
        result = study.train("scaffold", federation, rounds=study.ROUNDS_AWAY, tracker=tracker)
        tell(what="back", sha256=result.params_sha256, seconds=tracker.seconds, sites=places(federation))


def places(federation: Any) -> dict[str, str]:
    """Return the `fedray.host` of each site's node."""
    hosts = alive()
    return {site: hosts[node] for site, node in federation.call("places").items()}


def joining(cluster: Any, file: Path) -> None:
    """Refuse sites without a node, then start without them; their node comes."""
    started = time.monotonic()
    try:
        connect(cluster, file)
    except ConfigError as error:
        tell(what="refused", seconds=time.monotonic() - started, text=str(error))
    with connect(cluster, file, absent=True, regional=False) as federation:
        there = len(federation.hello())
        cluster.add_node(num_cpus=1, labels={"fedray.host": "d"})
        result = study.train("fedavg", federation, schedule=fr.synchronous(quorum=0.3, wait_for=24))
        tell(what="joined", there=there, counted=result.metrics[0].counted, sha256=result.params_sha256)


@dataclass(frozen=True)
class Nudge:
    """A local update of a large model."""

    lr: float = 1.0

    def __call__(self, params: Any, data: Any, rng: Any) -> Any:
        return fr.learn.Update(fr.tree.scale(params, 0.5), 1, 1, {})


def crossings(hosts: dict[str, str]) -> None:
    """Tell on which nodes the boxes of the aggregator were read: on those of regional aggregators."""
    from fedray.runtime.place import Place

    def pack(name: str, host: str) -> HostSpec:
        return HostSpec(name, {name: dict}, place=Place(labels=(("fedray.host", host),)), allow_empty=True)

    region = HostSpec("eu", children=(pack("x", "a"), pack("y", "b")),
                      place=Place(labels=(("fedray.role", "regional"),)))
    root = make_region("aggregator", [region], make_transport)
    put, boxes = root.transport.put, []

    def noted(value: Any) -> Any:
        boxes.append(put(value))
        return boxes[-1]

    root.transport.put = noted
    federation = fr.Federation(Aggregator(root), [region], ("x", "y"), "ray", layout="by hand")
    algorithm = fr.algorithms.fedavg(Nudge(), weighted=False)
    init = {"w": torch.ones(400_000)}
    result = fr.fit(algorithm, federation, init=init, rounds=3)
    found = ray.experimental.get_object_locations([box.reference for box in boxes])
    large = [each for each in found.values() if each["object_size"] > 10**6]
    tell(what="crossings", large=len(large), down=result.metrics[-1].bytes_down,
         up=result.metrics[-1].bytes_up,
         read_on=sorted({hosts[node] for each in large for node in each["node_ids"]}))
    federation.close()


def own_folders(cluster: Any, folder: Path) -> None:
    """Tell the training rows of two sites whose tables only their nodes are told of."""
    contract, file = study.write_tables(folder)
    data = fr.data.at_sites(contract, ["one", "two"])
    with connect(cluster, file, data) as federation:
        tell(what="own", rows=federation.hello())


def main(folder: Path) -> None:
    cluster = Cluster(initialize_head=True, connect=False, head_node_args={
        "num_cpus": 1, "include_dashboard": False, "labels": {"fedray.role": "aggregator"},
        "_system_config": HEAD})
    try:
        environment = {"FEDRAY_SITE_DATA": str(folder / "node")}
        nodes = {name: cluster.add_node(num_cpus=1, labels=labels, env_vars=environment)
                 for name, labels in LABELS.items()}
        placed(cluster, study.site_map(folder), nodes["b"], environment)
        own_folders(cluster, folder)
        crossings(alive())
        joining(cluster, study.site_map(folder, without="d"))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
