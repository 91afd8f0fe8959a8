"""What do 1,000 sites with 100 sampled a round cost on Ray, without a process per site?

    python experiments/benchmarks/thousand_sites.py [--rounds 30]

Seconds per round as the driver sees them, and private memory (USS) of the driver and all its descendants,
over what the driver and Ray's own processes hold before the federation starts. Start-up and the first two
rounds are excluded from the seconds. The federation must hold fewer processes than sites.
"""

import argparse
import os
import platform
import statistics
import threading
import time

import psutil
import torch

import fedray as fr
from fedray.runtime.ray_transport import start_ray

SITES, COHORT, WARM_UP = 1000, 100, 2
MOST_SECONDS, MOST_BYTES = 1.0, 1.5 * 2**30


def private_bytes() -> int:
    """Return the private memory of this process and its descendants."""
    total = 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_full_info().uss
        except psutil.NoSuchProcess:
            continue  # ended while we looked
    return total


class Peak(threading.Thread):
    """Sample the private memory until stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.is_over = 0, threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.5):
            self.most = max(self.most, private_bytes())


def main() -> int:
    """Print the figures; the exit code is 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    hospitals = fr.data.synthetic_icu(num_sites=SITES, scale=0.5, seed=7)
    model = fr.learn.logistic(len(hospitals.features))
    local = fr.learn.sgd(model, lr=0.1, epochs=1, batch_size=32)
    start_ray("local", 2)
    time.sleep(3)
    idle, peak = private_bytes(), Peak()
    peak.start()
    with fr.simulate(hospitals, runtime="ray", packs=2, placement="actors") as federation:
        result = fr.fit(
            fr.algorithms.fedavg(local),
            federation,
            init=model.init(0),
            rounds=rounds,
            schedule=fr.synchronous(cohort=COHORT),
        )
        pids = set(federation.call("pids").values())
    peak.is_over.set()
    peak.join()
    seconds = [record.seconds for record in result.metrics[WARM_UP:]]
    over = peak.most - idle
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
    print(
        f"{SITES} sites, {sum(hospitals.sizes.values()):,} stays, {COHORT} sampled a round, "
        f"{len(pids)} processes"
    )
    print(
        f"seconds per round over {len(seconds)} rounds: minimum {min(seconds):.3f}, median "
        f"{statistics.median(seconds):.3f}, maximum {max(seconds):.3f}"
    )
    print(f"private memory: {idle / 2**20:.0f} MiB idle, {over / 2**20:.0f} MiB over it at the peak")
    holds = statistics.median(seconds) <= MOST_SECONDS and over <= MOST_BYTES
    print(f"at most {MOST_SECONDS} s and {MOST_BYTES / 2**30} GiB: {'holds' if holds else 'FAILS'}")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
