"""What do robust rules cost at the server, in units of the core's own products and of the mean?

    python experiments/benchmarks/robust.py [--sites 200] [--size 1000000] [--repeats 5]

Figures are CPU seconds of one thread: the Gram matrix of all sites' updates, the coordinate-wise rules, the
mean of the same rows by the same blocks, and, for comparison, the mean of one matrix that holds all rows
together, which a server that gathers does not have. `gemm` is the median of 20 products of 1024 x 1024 in
float32 in the same process. Making the rows is excluded; the first run of each is a warm-up. The last line is
JSON. Results are kept in results/robust.json.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from typing import Any

import measuring
import numpy as np
import torch

import fedray
from fedray.passes import coordinate, gram
from fedray.passes.stack import BLOCK, Stack

WANTED_SHARE, MOST_TIMES = 0.5, 10.0


def measured(sites: int, size: int, repeats: int, seed: int) -> dict[str, Any]:
    """Return all figures: CPU seconds (minimum, median, maximum), and shares."""
    generator = torch.Generator().manual_seed(seed)
    rate = measuring.gemm_rate()
    matrix = torch.randn(sites, size, generator=generator)
    names = [f"h{i:04d}" for i in range(sites)]
    cut = sites // 5

    def stack() -> Stack:
        return Stack(names, [[row] for row in matrix])

    products = stack().gram
    whole = np.full(sites, 1 / sites)
    actions: dict[str, Callable[[], Any]] = {
        "gram": lambda: stack().gram,
        "mean": lambda: stack().combined(whole),
        "median": lambda: stack().by_column(coordinate.median),
        "trimmed_mean": lambda: stack().by_column(lambda block: coordinate.trimmed(block, cut)),
        "bulyan_average": lambda: stack().by_column(lambda block: coordinate.around_median(block, cut)),
        "distances": lambda: stack().distances_to(),
        "krum_weights": lambda: gram.krum(products, cut, 1, 1e-5),
        "rfa_weights": lambda: gram.geometric_median(products, 8, 1e-6),
        "nnm_weights": lambda: gram.nearest(products, sites - cut, 1e-5),
        "mean_of_one_matrix_torch": lambda: matrix.mean(0),
        "mean_of_one_matrix_numpy": lambda: matrix.numpy().mean(0),
    }
    seconds = {name: measuring.cpu_s(action, repeats) for name, action in actions.items()}
    median = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "sites": sites, "size": size, "block": BLOCK, "repeats": repeats, "seed": seed,
        "gemm_gflops": rate / 1e9,
        "gram_share_of_gemm": 2 * sites**2 * size / median["gram"] / rate,
        "times_the_mean": {name: median[name] / median["mean"]
                           for name in ("median", "trimmed_mean", "bulyan_average")},
        "times_the_mean_of_one_matrix": {name: median[name] / median["mean_of_one_matrix_torch"]
                                         for name in ("median", "trimmed_mean", "bulyan_average")},
        "seconds": {name: [min(found), median[name], max(found)] for name, found in seconds.items()},
    }  # fmt: skip


def main() -> int:
    """Print the figures; the exit code is 1 if one is not as wanted."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, python "
          f"{platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
          f"fedray {fedray.__version__}")  # fmt: skip
    found = measured(given.sites, given.size, max(5, given.repeats), given.seed)
    print(f"gemm {found['gemm_gflops']:.1f} GFLOP/s; Gram at {found['gram_share_of_gemm']:.2f} of it")
    for name, (least, median, most) in found["seconds"].items():
        print(f"{name:<26}{median:.4f} s [{least:.4f}, {most:.4f}]")
    times = found["times_the_mean"]
    claims = {
        f"Gram >= {WANTED_SHARE} of the rate of products": found["gram_share_of_gemm"] >= WANTED_SHARE,
        f"median and trimmed mean <= {MOST_TIMES:g} x mean": max(times["median"], times["trimmed_mean"])
        <= MOST_TIMES,
    }
    for claim, holds in claims.items():
        print(f"{claim}: {'holds' if holds else 'FAILS'}")
    print(json.dumps(found))
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
