"""Does the mean fail and does every robust rule hold, where it is easy? The smoke table.

    python experiments/attacks/smoke.py [--seeds 3] [--rounds 30] [--json FILE]

20 generated sites of 300 rows that differ a little, 4 attackers, logistic regression, one local epoch a
round. Shown is the AUROC on 2,000 fresh rows, the mean over seeds. Convex, and mild in its skew: too easy to
tell robust rules apart, which bench.py does.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import studies

SHARE = 0.2
ATTACKS = ("none", "sign_flip", "label_flip", "scaled", "gaussian", "alie", "ipm_1.1", "lazy")
MEAN_FAILS, MEAN_BELOW, RULES_ABOVE = ("sign_flip", "scaled"), 0.6, 0.93
NO_DEFENCE = ("mean", "foolsgold", "fltrust")  # no bound on attackers, or one that needs more than rows


def smoke(seeds: int, rounds: int, only: Any = None) -> dict[str, dict[str, list[float]]]:
    """Return {rule: {attack: AUROC of each seed}}."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        study = studies.made_up("mild", seed, rounds=rounds)
        attackers = study.attackers(SHARE, seed)
        for name, rule in studies.rules(SHARE, study).items():
            if only is not None and name not in only:
                continue
            for attack in ATTACKS:
                area = studies.train(study, rule(), attack, attackers, seed)["auroc"]
                found.setdefault(name, {}).setdefault(attack, []).append(area)
    return found


def problems(found: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return what is not as it must be."""
    wrong = []
    for name, of_attack in found.items():
        for attack, areas in of_attack.items():
            area = statistics.mean(areas)
            if name == "mean" and attack in MEAN_FAILS and area >= MEAN_BELOW:
                wrong.append(f"the mean is {area:.3f} under {attack}, not below {MEAN_BELOW}")
            if name not in NO_DEFENCE and area < RULES_ABOVE:
                wrong.append(f"{name} is {area:.3f} under {attack}, below {RULES_ABOVE}")
    return wrong


def main() -> int:
    """Print the table; the exit code is 1 if a figure is not as it must be."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    started = time.monotonic()
    found = smoke(given.seeds, given.rounds)
    print(f"{'rule':<22}" + "".join(f"{attack:>11}" for attack in ATTACKS))
    for name, of_attack in found.items():
        cells = "".join(f"{statistics.mean(of_attack[attack]):>11.3f}" for attack in ATTACKS)
        print(f"{name:<22}{cells}")
    wrong = problems(found)
    print("\n".join(wrong) or "as it must be", f"({time.monotonic() - started:.0f} s)")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
