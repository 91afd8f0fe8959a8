"""Whom does a quarantine leave out: attackers, or hospitals that differ?

    python experiments/attacks/quarantine.py [--limits 3 5 10] [--share 0.2] [--data-dir data]

The geometric median is watched over the rounds of the studies of bench.py. Told are how many sites were left
out at some time, honest ones and attackers, and the AUROC at the end.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import studies
import torch

import fedray as fr

ATTACKS = ("none", "sign_flip", "scaled", "label_flip", "alie", "min_max")
FACT = ("quarantine.sites.", ".times")


@dataclass
class Guilty:
    """Notes who was left out at some time, as `fit` tells it round by round."""

    sites: set[str] = field(default_factory=set)

    def start(self, plan: Any, facts: Any) -> None:
        """Take the plan."""

    def round(self, record: Any) -> None:
        """Take a round's evidence."""
        before, after = FACT
        self.sites |= {name.removeprefix(before).removesuffix(after)
                       for name, value in record.metrics.items()
                       if name.startswith(before) and name.endswith(after) and value}  # fmt: skip

    def finish(self, result: Any) -> None:
        """Take the result."""


def watched(study: studies.Study, attack: str, attackers: Sequence[str], limit: float) -> str:
    """Return a line of the table."""
    noted = Guilty()
    rule = fr.passes.quarantine(fr.passes.rfa(), limit=limit)
    figures = studies.train(study, rule, attack, attackers, tracker=noted)
    bad = noted.sites & set(attackers)
    return (f"| {study.name} | {limit:g} | {attack} | {len(noted.sites) - len(bad)} of "
            f"{len(study.names) - len(attackers)} | {len(bad)} of {len(attackers)} | "
            f"{figures['auroc']:.3f} |")  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--limits", type=float, nargs="+", default=[3.0, 5.0, 10.0])
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--data-dir", default="data")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| study | limit | attack | honest sites left out | attackers left out | AUROC |")
    print("|---|---|---|---|---|---|")
    made = [studies.made_up("mild", 0), studies.made_up("labels", 0), studies.eicu(0, given.data_dir)]
    for study in made:
        for limit in given.limits:
            for attack in ATTACKS:
                bad = () if attack == "none" else study.attackers(given.share, 0)
                print(watched(study, attack, bad, limit), flush=True)


if __name__ == "__main__":
    main()
