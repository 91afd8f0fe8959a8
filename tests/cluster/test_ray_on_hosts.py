"""Ray on test hosts: token, TLS, labels, nodes that start again, a head that outlives its own end."""

import json
import time

import pytest

from experiments.testbed import Hosts, why_not, wide_area
from experiments.testbed.hosts import program
from experiments.testbed.ray_on_hosts import RayOnHosts

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.ray,
              pytest.mark.skipif(bool(why_not()), reason=why_not()),
              pytest.mark.skipif(not program("redis-server"), reason="needs redis-server")]  # fmt: skip
KEEPER = """
import json, socket, sys, ray
address, wanted = sys.argv[1], sys.argv[2]
ray.init(address=address, namespace="test", log_to_driver=False)

@ray.remote(num_cpus=0)
class Keeper:
    def __init__(self):
        self.number = 0

    def count(self):
        self.number += 1
        return self.number, socket.gethostname()

options = {"name": "keeper", "lifetime": "detached", "get_if_exists": True}
keeper = Keeper.options(**options, label_selector={"fedray.site": wanted}).remote()
print(json.dumps(ray.get(keeper.count.remote(), timeout=60)))
"""


@pytest.fixture(scope="module")
def cluster():
    with Hosts({"hq": ["head"], "eu": ["a", "b"]}, links={("hq", "eu"): wide_area(rtt_s=0.04)}) as hosts:
        labels = {name: {"fedray.site": f"site-{name}"} for name in ("a", "b")}
        made = RayOnHosts(hosts, "head", labels=labels, has_tls=True, has_redis=True)
        made.start()
        yield made


def count(cluster, site):
    return json.loads(cluster.python("head", "-c", KEEPER, cluster.address, site).splitlines()[-1])


def test_a_label_says_on_which_host_an_actor_runs(cluster):
    assert count(cluster, "site-a") == [1, "a"]


def living(cluster):
    return {node["id"] for node in cluster.wait_for_nodes(3) if node["is_alive"]}


def test_a_node_whose_raylet_is_killed_joins_again(cluster):
    before, limit = living(cluster), time.monotonic() + 90
    assert len(cluster.kill("b", "raylet")) == 1
    after = living(cluster)
    while after == before and time.monotonic() < limit:  # its end has not been noticed yet
        after = living(cluster)
    assert len(after - before) == 1 and len(before - after) == 1


def test_a_killed_head_starts_again_and_finds_the_actors_of_other_hosts(cluster):
    number, host = count(cluster, "site-a")
    assert len(cluster.kill_head()) >= 3
    cluster.start_head()
    cluster.wait_for_nodes(3)
    assert count(cluster, "site-a") == [number + 1, host]
