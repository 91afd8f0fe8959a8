"""A Ray cluster of two nodes with token and mutual TLS on this machine's own address, held by a process.

python -m tests.cluster.secured ADDRESS  prints the address of the head, then obeys its standard input:
`add FOLDER` starts a third node whose Python path is FOLDER, `stop` stops its raylet as a machine that hangs,
`remove` ends it; the end of input ends all.
Token and certificate are those of its environment.
"""

import os
import signal
import sys

from ray.cluster_utils import Cluster


def main(address):
    plain = {"num_cpus": 1, "node_ip_address": address, "object_store_memory": 80 * 2**20}
    data = os.environ.pop("FEDRAY_SITE_DATA")
    head = {**plain, "include_dashboard": False, "labels": {"fedray.role": "aggregator"}}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
    added = None
    try:
        os.environ["FEDRAY_SITE_DATA"] = data  # the second node alone has data
        cluster.add_node(**plain, labels={"fedray.site": "h001"})
        del os.environ["FEDRAY_SITE_DATA"]
        print(cluster.address, flush=True)
        for line in sys.stdin:
            word, _, folder = line.strip().partition(" ")
            if word == "add":
                path, os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"], folder
                added = cluster.add_node(**plain, labels={"fedray.site": "h009"})
                os.environ["PYTHONPATH"] = path
            elif word == "stop":
                os.kill(added.all_processes["raylet"][0].process.pid, signal.SIGSTOP)
            else:
                os.kill(added.all_processes["raylet"][0].process.pid, signal.SIGCONT)
                cluster.remove_node(added)
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
