"""Every privacy attack against every defence, over seeds: results as JSON, and the table of README.md.

    python -m experiments.attacks.privacy.run [--only trap ratio] [--seeds 5] [--table]

One process, one thread. A finished attack is in `results/`; `--table` prints the table of what is there.
"""

import argparse
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import fedray
from experiments.attacks.privacy import exact, inversion, masked, membership, property, ratio, trap
from experiments.attacks.privacy.seen import DEFENCES, Defence

RESULTS = Path(__file__).parent / "results"
MUCH = "records: clip, noise 4"  # where less leaves nothing to see it is left out
ALL = tuple(name for name in DEFENCES if name != MUCH)
Attack = Callable[[Defence, int], Mapping[str, float]]
ATTACKS: dict[str, tuple[Attack, tuple[str, ...], int]] = {  # the attack, against what, least seeds
    "exact": (exact.attack, ALL, 5),
    "masked": (masked.attack, ("none", "secure sum of 5"), 5),
    "ratio": (ratio.attack, ALL, 20),
    "steps": (ratio.several_steps, ("none",), 20),
    "inversion": (inversion.attack, ALL, 5),
    "trap": (trap.attack, ALL, 10),
    "membership": (membership.attack, tuple(DEFENCES), 5),
    "property": (property.attack, ALL, 5),
}


def measure(name: str, seeds: int) -> dict[str, Any]:
    """Run one attack against its defences."""
    attack, defences, least = ATTACKS[name]
    count, started = max(seeds, least) if seeds >= 5 else seeds, time.process_time()
    rows = {}
    for defence in defences:
        rows[defence] = [dict(attack(DEFENCES[defence], seed)) for seed in range(count)]
        print(name, defence, summary(rows[defence]), flush=True)
    where = {"fedray": fedray.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {
        "attack": name,
        "seeds": count,
        "cpu_s": round(time.process_time() - started),
        **where,
        "rows": rows,
    }


def summary(rows: list[dict[str, float]]) -> str:
    """Return mean (least to most) of every figure."""
    parts = []
    for key in rows[0]:
        values = [row[key] for row in rows]
        spread = "" if min(values) == max(values) else f" ({min(values):.3g} to {max(values):.3g})"
        parts.append(f"{key} {statistics.mean(values):.3g}{spread}")
    return "; ".join(parts)


def table(name: str) -> str:
    """Return the Markdown table of one attack."""
    found = json.loads((RESULTS / f"{name}.json").read_text())
    keys = list(next(iter(found["rows"].values()))[0])
    lines = [f"| {name}, {found['seeds']} seeds | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for defence, rows in found["rows"].items():
        cells = [summary([{"": row[key]} for row in rows]).strip() for key in keys]
        lines.append(f"| {defence} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is asked, or print the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    logging.getLogger("fedray.passes").setLevel(logging.ERROR)  # local noise is told to be of little use
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    for name in given.only:
        if not given.table:
            (RESULTS / f"{name}.json").write_text(json.dumps(measure(name, given.seeds), indent=1) + "\n")
        if (RESULTS / f"{name}.json").exists():
            print(f"\n{table(name)}\n", flush=True)


if __name__ == "__main__":
    main()
