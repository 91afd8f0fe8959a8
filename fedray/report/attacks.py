"""The attack table of a run's page: what the bench of experiments/attacks has found of each rule.

`add(run, file)` takes a file that the bench has written (`bench.py --report`) into the run directory, as
`attacks.json`; `shown` is what the page makes of it. The figures are the bench's, of its own studies, never
of the run beside which they are shown, and the page says so.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError
from fedray.settings import is_number, is_whole

FILE = "attacks.json"  # in the run directory
FORMAT = "fedray attacks 1"
FIGURES = ("clean", "cost", "worst", "sites_clean", "sites_worst", "backdoor")  # of a rule, AUROC
CHANCE = 0.5
MADE_BY = "make one by python experiments/attacks/bench.py --report FILE"


def add(folder: Path, file: str | os.PathLike[str]) -> Path:
    """Check a table and put it into a run directory, in place of one that is there; return its path.

    Raises ConfigError where the file is missing or no table of attacks.
    """
    found = read(Path(file))
    target = folder / FILE
    temporary = folder / f"{FILE}.part"
    temporary.write_text(json.dumps(found, indent=1))
    os.replace(temporary, target)
    return target


def read(path: Path) -> dict[str, Any]:
    """Return a table. Raises ConfigError, with what is wrong and where, on a file that is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: there is no table of attacks to read. Fix: {MADE_BY}") from error
    if wrong := _wrong(found):
        raise ConfigError(f"{path} is no table of attacks: {wrong}. Fix: {MADE_BY}")
    return dict(found)


def _wrong(found: Any) -> str:
    """Return what a file lacks; empty where it is a table."""
    if not isinstance(found, Mapping) or found.get("format") != FORMAT:
        return f"its format is not {FORMAT!r}"
    if not isinstance(found.get("by"), str) or not isinstance(found.get("attacks"), list):
        return "it does not say what made it, or which attacks were tried"
    if not isinstance(found.get("studies"), list) or not found["studies"]:
        return "it holds no studies"
    for number, study in enumerate(found["studies"]):
        if wrong := _wrong_study(study):
            return f"study {number + 1}: {wrong}"
    return ""


def _wrong_study(study: Any) -> str:
    named = isinstance(study, Mapping) and all(isinstance(study.get(key), str) for key in ("name", "about"))
    if not named:
        return "its name or what it is about is missing"
    if not is_number(study.get("share")) or not is_whole(study.get("seeds"), 1):
        return "the share of attackers or the number of seeds is missing"
    rules = study.get("rules")
    if not isinstance(rules, list) or not rules:
        return "it holds no rules"
    for row in rules:
        words = isinstance(row, Mapping) and all(isinstance(row.get(key), str) for key in ("rule", "by"))
        if not words or not all(is_number(row.get(key)) for key in FIGURES):
            return f"a rule lacks its name, its worst attack, or one of {', '.join(FIGURES)}"
    return ""


def shown(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the page shows; None where no table lies in the run directory."""
    if not (folder / FILE).exists():
        return None
    found, own = read(folder / FILE), rule_of(config)
    rows = [row for study in found["studies"] for row in study["rules"]]
    for row in rows:
        row["is_own"], row["is_lost"] = row["rule"] == own, row["worst"] < CHANCE
        row["cost"] = round(row["cost"], 3) + 0.0  # no minus before a zero
    return {**found, "own": own, "is_own_tried": own in {row["rule"] for row in rows}}


def rule_of(config: Mapping[str, Any]) -> str | None:
    """Return the rule of a run as the bench names it; None where its configuration says nothing of rules."""
    if "robustness" not in config:
        return None
    return _named(config["robustness"]) or "mean"


def _named(chosen: Any) -> str:
    if not isinstance(chosen, Mapping) or "_target_" not in chosen:
        return ""
    name = str(chosen["_target_"]).rpartition(".")[2]
    inner = _named(chosen.get("then"))
    if name == "quarantine":  # watches a rule and is none itself
        return inner
    return f"{name}+{inner}" if inner else name
