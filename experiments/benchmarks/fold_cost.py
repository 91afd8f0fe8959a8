"""What does the exact sum cost: 200 small sites, 8 sites of 99 MB, 200 sites of 10 MB?

    python experiments/benchmarks/fold_cost.py [--repeats 7]

CPU seconds on one thread for the sum of a pack (`sum`: what the operands need, and their addition into lanes,
in groups as a pack takes them), for adding the partial sums of two packs as they come out of an object store
(`join`, what a region does), and for their mean in float32 with its hash and the next grid (`mean`, what the
aggregator does, which adds them while it reads). Making the rows is excluded;
the first run of each is a warm-up. `peak` is the private memory of a pack over what it holds before its rows:
one or two groups of rows, work buffers. Workers of Ray keep freed memory; for their figures run with
MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824 (`peak` then shows nothing new).

Measured on 2 cores of an AMD EPYC with AVX-512 that others used too (load 10 to 20), torch 2.13, medians;
first without, then with the settings of the workers:

    shape          first version: sum, join, mean, peak       now: sum, join, mean, peak
    W1             0.038, 0.0001, 0.0002, 71 MiB              0.010, 0.0000, 0.0003, 9 MiB
    W4             6.14, 0.22, 0.71, 5.5 GB                   0.44, 0.077, 0.65, 0.75 GB
    200 x 10 MB    15.8, 0.023, 0.045, 3.8 GB                 1.17, 0.008, 0.024, 0.5 GB
    W1             0.033, 0.0001, 0.0002                      0.006, 0.0000, 0.0003
    W4             5.72, 0.14, 0.25                           0.41, 0.041, 0.20
    200 x 10 MB    10.5, 0.015, 0.027                         0.90, 0.004, 0.017

The first version folded whole matrices in float64 and kept every operand of a stage. At a load of 2 the
additions alone took 0.0035 (W1), 0.25 (W4) and 0.75 (200 x 10 MB); the target of 0.1 to 0.19 for W4 is
missed. A third of that time is the float64 product, a quarter the conversion to it, the rest scaling and
rounding.
"""

import argparse
import os
import platform
import resource
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import measuring
import numpy as np
import torch

from fedray import tree
from fedray.runtime import fold, totals
from fedray.runtime.hashes import sha256_of

SHAPES = {  # sites, parameters, rows of a group
    "W1": (200, 16_641, 50),
    "W4": (8, 24_700_000, 8),
    "200 x 10 MB": (200, 2_621_440, 25),
}
MAX_SITE_ROWS = 1000
GRID = (4,)


def private_bytes() -> int:
    """Return the private, not file-backed memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Peak(threading.Thread):
    """Sample the private memory until stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.most = private_bytes()
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.002):
            self.most = max(self.most, private_bytes())

    def stop(self) -> int:
        """Return the bytes over those at the start."""
        self.is_over.set()
        self.join()
        return self.most - self.start_bytes


def groups(sites: int, size: int, group: int) -> Iterator[fold.Operand]:
    """Yield a pack's operands, each made when it is asked for."""
    generator = torch.Generator().manual_seed(0)
    schema = tree.schema_of({"w": torch.empty(size)})
    for start in range(0, sites, group):
        k = min(group, sites - start)
        rows = torch.zeros(k, schema.stride)
        rows[:, :size].normal_(0.0, 0.01, generator=generator)
        weights = torch.randint(1, MAX_SITE_ROWS, (k,), generator=generator).double()
        yield fold.operand(tree.Flat(rows, schema), weights)


def of_groups(name: str, repeats: int) -> list[float]:
    """Return CPU seconds of one pack's sum, the making of the rows taken away."""
    sites, size, group = SHAPES[name]
    spec = next(groups(1, size, 1)).spec
    found = []
    for repeat in range(repeats + 1):
        buffers, seconds = fold.empty(spec), 0.0
        for made in groups(sites, size, group):
            before = time.process_time()
            again = fold.operand(tree.Flat(made.matrices[0], spec.schema), made.weights)
            fold.add(buffers, [again], GRID)
            seconds += time.process_time() - before
        found += [seconds] if repeat else []
    return found


def partial(size: int) -> fold.LaneSum:
    """Return a partial sum that cannot be written, as one out of an object store."""
    part = fold.fold(next(groups(2, size, 2)), GRID)
    for array in part.arrays:
        array.flags.writeable = False
    return part


def mean_of(parts: list[fold.LaneSum]) -> None:
    """Do what the aggregator does with the sums of its hosts."""
    total = totals.result(fold.joined("w", parts, GRID), GRID, is_exact=True)
    total.divided_by(sum(part.weight for part in parts))
    sha256_of(total.parts)
    totals.next_exponents(total.parts, parts)


def peak_of(name: str) -> int:
    """Return the private memory that one pack's sum needs, rows of one group included."""
    sites, size, group = SHAPES[name]
    buffers = fold.empty(next(groups(1, size, 1)).spec)
    peak = Peak()
    peak.start()
    for made in groups(sites, size, group):
        fold.add(buffers, [made], GRID)
        del made
    return peak.stop()


def line(name: str, repeats: int) -> str:
    """Return the figures of one shape."""
    size = SHAPES[name][1]
    parts = [partial(size) for _ in range(2)]
    kinds = {
        "sum": of_groups(name, repeats),
        "join": measuring.cpu_s(lambda: fold.added(parts, GRID), repeats),
        "mean": measuring.cpu_s(lambda: mean_of(parts), repeats),
    }
    shown = "  ".join(
        f"{kind} {statistics.median(found):.4f} [{min(found):.4f}, {max(found):.4f}]"
        for kind, found in kinds.items()
    )
    return f"{name:<12}{shown}"


def main() -> None:
    """Print CPU seconds: median, minimum and maximum."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = max(5, parser.parse_args().repeats)
    torch.set_num_threads(1)
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, python {platform.python_version()}, torch "
        f"{torch.__version__}, numpy {np.__version__}; CPU seconds, median [minimum, maximum] of {repeats}"
    )
    for name in SHAPES:
        print(line(name, repeats), f" peak {peak_of(name) / 2**20:.0f} MiB", flush=True)
    print(f"largest resident size {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")


if __name__ == "__main__":
    main()
