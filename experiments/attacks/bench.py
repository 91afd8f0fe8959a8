"""Which rule bears with which attack, what does it cost where nobody attacks, and who pays?

    python experiments/attacks/bench.py [--seeds 5] [--studies iid labels eicu] [--json FILE] [--report FILE]
    fedray report RUN --attacks FILE    shows the table in the page of a run

{clean, 20 %, 40 % attackers} x {iid, label skew, hospitals of the eICU demo} x 15 aggregators x 15 attacks.
Rules are told the true number of attackers, and Bulyan the most that it can take. Figures are AUROC over test
rows, the lowest over attacks (of means over seeds), of the clean run, and of the worst tenth of the sites.
Seeds are run one after the other and written as they come: a run that was stopped goes on from its file.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import studies
import torch

from fedray.report import attacks

SHARES = (0.2, 0.4)
MEASURES = ("auroc", "worst_decile", "triggered")
ABOUT = {
    "iid": "20 generated sites of 300 rows dealt at random.",
    "labels": "20 generated sites whose shares of the outcome differ (Dirichlet .3).",
    "eicu": "The hospitals of the eICU demo with two training rows or more, a dozen stays each.",
}
Found = dict[str, dict[str, dict[str, list[list[float]]]]]  # "study share" -> rule -> attack -> figures


def cells(study: studies.Study, share: float, seed: int) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield (rule, attack, attackers) of a study, the clean one first."""
    attackers = study.attackers(share, seed)
    for rule in studies.rules(share, study):
        yield rule, "none", ()
        for attack in studies.ATTACKS:
            yield rule, attack, attackers


def run(names: list[str], seeds: int, path: Path, data_dir: str) -> Found:
    """Run what is missing in the file; return all."""
    found: Found = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(seeds):
        for name in names:
            started = time.monotonic()
            study = studies.eicu(seed, data_dir) if name == "eicu" else studies.made_up(name, seed)
            for share in SHARES:
                of_study = found.setdefault(f"{name} {share}", {})
                makers = studies.rules(share, study)
                for rule, attack, attackers in cells(study, share, seed):
                    known = of_study.setdefault(rule, {}).setdefault(attack, [])
                    if len(known) > seed:
                        continue
                    figures = studies.train(study, makers[rule](), attack, attackers, seed)
                    known.append([round(figures[measure], 4) for measure in MEASURES])
                path.write_text(json.dumps(found))
            print(f"{name}, seed {seed}: {time.monotonic() - started:.0f} s", flush=True)
    return found


def of(figures: list[list[float]], measure: str) -> float:
    """Return the mean over seeds of a measure."""
    return statistics.mean(row[MEASURES.index(measure)] for row in figures)


def summary(of_rule: dict[str, list[list[float]]], clean: float) -> dict[str, Any]:
    """Return a rule's line: clean AUROC and cost, the worst attack, sites, and the backdoor."""
    attacks = {name: of(figures, "auroc") for name, figures in of_rule.items() if name != "none"}
    worst = min(attacks, key=lambda name: attacks[name])
    own = of(of_rule["none"], "auroc")
    return {
        "clean": own,
        "cost": clean - own,
        "worst": attacks[worst],
        "by": worst,
        "sites_clean": of(of_rule["none"], "worst_decile"),
        "sites_worst": min(of(figures, "worst_decile") for figures in of_rule.values()),
        "backdoor": of(of_rule["backdoor"], "triggered"),
    }


def table(found: Found) -> str:
    """Return the summary of all studies as Markdown."""
    lines = []
    for title, of_study in found.items():
        clean = of(of_study["mean"]["none"], "auroc")
        seeds = min(len(figures) for of_rule in of_study.values() for figures in of_rule.values())
        lines += ["", f"**{title}** of the sites attack ({seeds} seeds)", "",
                  "| rule | clean | cost | worst case | by | worst decile, clean | worst decile, worst case "
                  "| with trigger |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        rows = {rule: summary(of_rule, clean) for rule, of_rule in of_study.items()}
        for rule, row in sorted(rows.items(), key=lambda item: -item[1]["worst"]):
            lines.append(f"| {rule} | {row['clean']:.3f} | {row['cost']:.3f} | {row['worst']:.3f} | "
                         f"{row['by']} | {row['sites_clean']:.3f} | {row['sites_worst']:.3f} | "
                         f"{row['backdoor']:.3f} |")  # fmt: skip
    return "\n".join(lines)


def report(found: Found) -> dict[str, Any]:
    """Return the summary of all studies as `fedray report --attacks` reads it."""
    lines = []
    for title, of_study in found.items():
        name, share = title.split()
        clean = of(of_study["mean"]["none"], "auroc")
        seeds = min(len(figures) for of_rule in of_study.values() for figures in of_rule.values())
        rows = [{"rule": rule, **summary(of_rule, clean)} for rule, of_rule in of_study.items()]
        rows.sort(key=lambda row: -float(row["worst"]))
        lines.append({"name": name, "share": float(share), "about": ABOUT[name], "seeds": seeds,
                      "rules": [_rounded(row) for row in rows]})  # fmt: skip
    return {"format": attacks.FORMAT, "by": "experiments/attacks/bench.py", "attacks": list(studies.ATTACKS),
            "studies": lines}  # fmt: skip


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def main() -> None:
    """Run the bench and print its table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--studies", nargs="+", default=["iid", "labels", "eicu"])
    parser.add_argument("--json", type=Path, default=Path("attack_bench.json"))
    parser.add_argument("--report", type=Path, default=Path("attacks.json"))
    parser.add_argument("--data-dir", default="data")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = run(given.studies, given.seeds, given.json, given.data_dir)
    given.report.write_text(json.dumps(report(found), indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
