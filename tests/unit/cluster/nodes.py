"""Nodes as `ray.nodes()` tells them, and a site map over them."""

from fedray.cluster.site_map import SiteMap
from fedray.runtime.place import GIB, HEAD, living


def node(address, cpus=4, memory=8 * GIB, alive=True, head=False, **labels):
    resources = {"CPU": float(cpus), "memory": float(memory), f"node:{address}": 1.0}
    resources |= {HEAD: 1.0} if head else {}
    found = {f"fedray.{key}": value for key, value in labels.items()}
    return {"NodeID": f"id-{address}", "Alive": alive, "NodeManagerAddress": address, "Resources": resources,
            "Labels": {"ray.io/node-id": f"id-{address}", **found}}


def cluster():
    return living([
        node("10.0.0.1", role="aggregator", head=True),
        node("10.0.1.1", region="eu", role="regional"),
        node("10.0.1.2", region="eu", site="a"),
        node("10.0.1.3", region="eu", site="b"),
        node("10.0.2.1", region="us", host="boston"),
        node("10.0.9.9", site="gone", alive=False),
    ])


def site_map(**sites):
    told = {
        "regions": {"eu": {"aggregator": {"fedray.region": "eu", "fedray.role": "regional"}}, "us": {}},
        "sites": sites or {
            "a": {"region": "eu"}, "b": {"region": "eu"},
            "c": {"region": "us", "labels": {"fedray.host": "boston"}},
            "d": {"region": "us", "labels": {"fedray.host": "boston"}},
        },
    }
    return SiteMap.of(told, "map.yaml")
