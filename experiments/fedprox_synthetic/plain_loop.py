"""q-FedAvg for as many rounds as were published (20,000), by a plain loop in C on the devices of fairness.py.

    python experiments/fedprox_synthetic/plain_loop.py [--rounds 20000] [--q 0 1] [--lr 0.1] [--seeds 0 1 2]

A run takes 12 CPU seconds, where fedray's own (`fairness.py --rounds 20000`) takes four minutes; the loop has
its own draws of cohorts and batches. Needs a C compiler (`cc`).
"""

import argparse
import itertools
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from devices import synthetic

LOOP = Path(__file__).with_suffix(".c")


def write(seed: int, path: Path) -> None:
    """Write the hybrid devices of a seed as the loop reads them."""
    devices = synthetic(1, 1, 100, seed, sigma=1.0, share_alike=0.5)
    parts = [[part[name] for name in sorted(part)] for part in (devices.train, devices.test)]
    with path.open("wb") as file:
        for part in parts:
            file.write(np.array([rows.num_rows for rows in part], np.int32).tobytes())
        for part in parts:
            file.write(np.concatenate([rows["x"].numpy() for rows in part]).astype(np.float32).tobytes())
            file.write(np.concatenate([rows["y"].numpy() for rows in part]).astype(np.int32).tobytes())


def main() -> None:
    """Print the table, each figure the mean over seeds, and the averages of the seeds."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--q", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--lr", type=float, nargs="+", default=[0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "plain_loop"
        subprocess.run(["cc", "-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-o", program,
                        LOOP, "-lm"], check=True)  # fmt: skip
        for seed in args.seeds:
            write(seed, Path(folder) / f"{seed}.bin")
        print(f"{'rate':>6}{'q':>5}{'average':>9}{'worst 10%':>11}{'best 10%':>10}{'variance':>10}  by seed")
        for lr, q in itertools.product(args.lr, args.q):
            words = [[program, Path(folder) / f"{seed}.bin", str(q), str(lr), str(args.rounds)]
                     for seed in args.seeds]  # fmt: skip
            told = [subprocess.run(each, capture_output=True, text=True, check=True).stdout for each in words]
            rows = np.array([line.split() for line in told], float)
            average, worst, best, variance = rows.mean(0)
            by_seed = " ".join(f"{row[0]:.1f}" for row in rows)
            print(f"{lr:>6g}{q:>5g}{average:>9.1f}{worst:>11.1f}{best:>10.1f}{variance:>10.0f}  {by_seed}",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
