"""How much private memory does each process need for a large model, added up in float32?

    python -m experiments.benchmarks.large_model [--mib 256] [--packs 2] [--sites 2] [--fold fast]

Sites make an update of the model's size without training, so that what is measured is the engine: the
received model, the update, the sum, and what travels. Prints for the aggregator and the packs the peak of
private memory (anonymous pages, those of the object store apart) over the start, in bytes and in models.

Measured, machine shared, 3 rounds, in models of that size (aggregator; packs):
    1024 MiB, 2 packs of 2 sites, fast    3.0; 2.0 and 2.0
    512 MiB, 4 packs of 2 sites, fast     3.0; 2.0 each
    256 MiB, 2 packs of 2 sites, exact    8.0; 7.0 and 7.0
A pack holds the update and the sum, the aggregator the model before and after the round and the mean. Below
512 MiB malloc keeps what is freed, which is faster and takes up to three models more.
"""

import argparse
import os
import platform
import threading
import time
from pathlib import Path

import torch

import fedray as fr
from experiments.benchmarks.made_up import Rows, averaging

MIB = 2**20


def private_bytes(pid: int) -> int:
    """Return a process's anonymous resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


class Peaks(threading.Thread):
    """Sample processes until stopped."""

    def __init__(self, pids: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self.pids, self.is_over = pids, threading.Event()
        self.start_bytes = {name: private_bytes(pid) for name, pid in pids.items()}
        self.most = dict(self.start_bytes)

    def run(self) -> None:
        while not self.is_over.wait(0.005):
            for name, pid in self.pids.items():
                self.most[name] = max(self.most[name], private_bytes(pid))


def main() -> None:
    """Print private memory per process and seconds per round."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    for name, default in (("mib", 256), ("packs", 2), ("sites", 2), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--fold", default="fast", choices=["exact", "fast"])
    given = parser.parse_args()
    sites = {f"h{i:02d}": Rows(10 + i) for i in range(given.packs * given.sites)}
    model = {"w": torch.zeros(given.mib * MIB // 4)}
    layout = {"packs": given.packs, "group_size": 1, "placement": "actors"}
    with fr.simulate(sites, runtime="ray", **layout) as federation:
        federation.hello()
        time.sleep(1)
        peaks = Peaks(federation.call("pids"))
        peaks.start()
        result = fr.fit(averaging(), federation, init=model, rounds=given.rounds, fold=given.fold)
        peaks.is_over.set()
        peaks.join()
    print(f"{platform.platform()}, {os.cpu_count()} cores, torch {torch.__version__}, fold={given.fold}")
    print(f"model {given.mib} MiB, {given.packs} packs of {given.sites} sites, {given.rounds} rounds")
    for name, most in peaks.most.items():
        over = most - peaks.start_bytes[name]
        print(f"  {name:<12}{over / MIB:8.0f} MiB over the start = {over / MIB / given.mib:.2f} models")
    print("  seconds per round: " + ", ".join(f"{record.seconds:.2f}" for record in result.metrics))


if __name__ == "__main__":
    main()
