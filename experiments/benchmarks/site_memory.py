"""What memory does one more simulated site take, its data apart? The model is W1's (66 kB).

    python experiments/benchmarks/site_memory.py

Sites of 8 rows train the MLP 64-128-64-1 in one process, all in every round, with FedAvg and with SCAFFOLD,
which keeps state at each site. Each number of sites is a process of its own; memory is private (USS) at the
end, less that of the sites' rows. The last line is JSON: MB for each further site.
"""

import json
import subprocess
import sys

import psutil

SITES, ROWS, FEATURES = (200, 1000), 8, 64


def once(algorithm: str, sites: int) -> None:
    """Train three rounds and print the private memory in MB."""
    import torch

    import fedray as fr
    from fedray.data.site import SiteData

    draws = torch.Generator().manual_seed(0)
    data = {
        f"site{number:05d}": SiteData(
            {"x": torch.randn(ROWS, FEATURES, generator=draws), "y": torch.ones(ROWS)}
        )
        for number in range(sites)
    }
    model = fr.learn.mlp(FEATURES, hidden=(128, 64))
    local = fr.learn.sgd(model, lr=0.05, batch_size=32)
    made = fr.algorithms.fedavg(local) if algorithm == "fedavg" else fr.algorithms.scaffold(local, sites)
    with fr.simulate(data) as federation:
        fr.fit(made, federation, init=model.init(0), rounds=3)
        data_mb = sites * ROWS * (FEATURES + 1) * 4 / 1e6
        print(psutil.Process().memory_full_info().uss / 1e6 - data_mb)


def main() -> None:
    """Print the growth by algorithm."""
    found = {}
    for algorithm in ("fedavg", "scaffold"):
        command = [sys.executable, __file__, algorithm]
        few, many = (
            float(subprocess.run([*command, str(sites)], capture_output=True, text=True, check=True).stdout)
            for sites in SITES
        )
        found[algorithm] = round((many - few) / (SITES[1] - SITES[0]), 4)
        print(f"{algorithm}: {few:.0f} MB with {SITES[0]} sites, {many:.0f} MB with {SITES[1]}")
    print(json.dumps({"benchmark": "site_memory", "mb_per_further_site": found}))


if __name__ == "__main__":
    once(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 2 else main()
