"""Start a Ray cluster of labelled nodes on this machine and run a command of fedray on it.

python -m tests.cluster.placed_command FOLDER: the run directory is FOLDER/run, the map FOLDER/map.yaml.
"""

import subprocess
import sys
from pathlib import Path

from ray.cluster_utils import Cluster

from tests.cluster.placed import HEAD

MAP = """
regions: {eu: {}}
sites:
  h001: {region: eu, labels: {fedray.host: a}}
  h002: {region: eu, labels: {fedray.host: b}}
  h003: {labels: {fedray.host: b}}
"""
STUDY = ("experiment=none", "data=synthetic_icu", "data.num_sites=3", "data.scale=0.01", "algorithm=scaffold",
         "rounds=3", "report=none", "model=logistic")


def command(folder: Path, *settings: str) -> list[str]:
    return [sys.executable, "-m", "fedray", "run", *STUDY, f"hydra.run.dir={folder}", *settings]


def main(folder: Path) -> int:
    (folder / "map.yaml").write_text(MAP)
    cluster = Cluster(initialize_head=True, connect=False, head_node_args={
        "num_cpus": 1, "include_dashboard": False, "_system_config": HEAD})
    try:
        for host, region in (("a", "eu"), ("b", "eu")):
            cluster.add_node(num_cpus=1, labels={"fedray.host": host, "fedray.region": region})
        words = command(folder / "run", "runtime=ray_cluster", f"runtime.address={cluster.address}",
                        "topology=from_cluster", f"runtime.site_map={folder / 'map.yaml'}")
        return subprocess.run(words, check=False, timeout=300).returncode
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
