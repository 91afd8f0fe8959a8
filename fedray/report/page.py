"""The page of a run: one self-contained HTML file without a script, made from the files of the run directory
alone.

`write(directory)` makes it, also again later (`fedray report RUN`) and for a run that was interrupted. It
says what was done and what was not: no privacy is claimed that the plan does not hold.
"""

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray import track
from fedray.errors import ConfigError
from fedray.live import clock, share, size, with_interval
from fedray.report import attacks, spent, statistics

NEEDS = ("matplotlib", "jinja2")
EVIDENCE = "quarantine.sites."  # before a site's figures in a round's metrics
MAX_ROWS = 400  # of the table of hospitals; sites.jsonl holds all
HINT = "for a page with figures: pip install 'fedray[report]', then fedray report {run}"


SENTENCES = {
    "seen": "The server is shown values of single hospitals:",
    "sums": "In training the server's program uses sums over hospitals only, never the value of one.",
    "listed": "Evaluation shows the server figures of each hospital:",
    "open": "No secure summation: whoever runs the server's process could read the numbers of one hospital "
    "before they are summed.",
    "ideal": "Secure sums were simulated: their bits were computed, and nothing was hidden from the server.",
    "no_noise": "No differential privacy: no noise was added to bound what one patient changes, so there "
    "is no epsilon. The trained model may say something about single patients.",
    "simulation": "A simulation: all hospitals' data lay on machines of one owner. It shows what training "
    "together is worth, not that data was protected.",
    "suppressed": "Small cells are left out: no count from 1 to 10, and no figure that would tell it.",
}


def is_available() -> bool:
    """Tell whether the extra `report` is installed."""
    return all(importlib.util.find_spec(name) is not None for name in NEEDS)


def closing(directory: str | os.PathLike[str]) -> str:
    """Write the page if possible; return a run's last line: what to open, or how to get the page."""
    if not is_available():
        return HINT.format(run=directory)
    return f"open {write(directory)}"


def write(directory: str | os.PathLike[str]) -> Path:
    """Write `report.html` of a run and return its path. Raises ConfigError without the extra `report`."""
    if not is_available():
        raise ConfigError("the page needs matplotlib and jinja2. Fix: pip install 'fedray[report]'")
    import jinja2

    folder = Path(directory)
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "share": share,
        "size": size,
        "clock": clock,
        "with_interval": with_interval,
        "number": _number,
    }
    text = environment.get_template("page.html.j2").render(
        css=(here / "page.css").read_text(), **_context(folder)
    )
    temporary = folder / "report.html.part"
    temporary.write_text(text)
    os.replace(temporary, folder / "report.html")
    return folder / "report.html"


def _context(folder: Path) -> dict[str, Any]:
    rounds, result = track.read(folder, "rounds"), _json(folder / "result.json")
    evaluations = [{**row, "over_sites": over} for row, over in _validations(folder)]
    split = next((result[name] for name in ("test", "valid", "server") if result.get(name)), None)
    env, plan = _json(folder / "env.json"), _json(folder / "plan.json")
    status = (folder / "STATUS").read_text().split("\n") if (folder / "STATUS").exists() else ["unknown", ""]
    return {
        "name": env.get("name", folder.name),
        "run": folder.resolve().name,
        "result": result,
        "split": split,
        "env": env,
        "plan": plan,
        "status": status[0],
        "reason": status[1] if len(status) > 1 else "",
        "cards": list(_cards(result, split, rounds, plan)),
        "rounds": rounds,
        "figures": _figures(rounds, evaluations, split, result),
        "contribution": _contribution(folder),
        "attacks": attacks.shown(folder, _config(folder)),
        "timeline": _timeline(folder),
        "hospitals": _hospitals(split),
        "egress": plan.get("egress", []),
        "measured": plan.get("evaluations", []),
        "privacy": list(_privacy(plan, result, _config(folder), rounds)),
        "commands": _commands(folder, env),
        "failed": sum(len(row.get("failures") or ()) for row in rounds),
        "failures": _worst(result),
        "left_out": _left_out(rounds),
    }


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _contribution(folder: Path) -> dict[str, Any] | None:
    """Return what `fedray contribution` found, with its figure; None where it was not asked."""
    found = _json(folder / "contribution" / "contribution.json")
    if not found:
        return None
    from fedray.report import figures

    return {**found, "figure": figures.contribution(found), "labels": figures.METHODS}


def _timeline(folder: Path) -> dict[str, Any] | None:
    from fedray.report import timeline

    return timeline.context(folder)


def _config(folder: Path) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text()) or {}
    return found


def _validations(folder: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield the validation of each round with the spread of AUROC over hospitals then."""
    sites: dict[int, list[dict[str, Any]]] = {}
    for row in track.read(folder, "sites"):
        if row["split"] == "valid":
            sites.setdefault(row["round"], []).append(row)
    for row in track.read(folder, "evaluations"):
        if row["split"] == "valid":
            yield row, statistics.over_sites(sites.get(row["round"], []))


def _cards(
    result: Mapping[str, Any],
    split: Mapping[str, Any] | None,
    rounds: Sequence[Mapping[str, Any]],
    plan: Mapping[str, Any],
) -> Iterator[dict[str, str]]:
    """Yield the figures of the headline: label, value, note."""
    if split:
        yield from _measured(split)
    sites = result.get("sites") or max((row["asked"] for row in rounds), default=0)
    patients = f"{_number(split['n'])} {split['split']} patients" if split and split.get("n") else ""
    events = (
        f", {_number(split['events'])} with the outcome" if patients and split and split.get("events") else ""
    )
    yield {"label": "Hospitals", "value": _number(sites), "note": patients + events}
    up = result.get("bytes_up") or sum(row["bytes_up"] for row in rounds)
    down = result.get("bytes_down") or sum(row["bytes_down"] for row in rounds)
    seconds = result.get("seconds") or sum(row["seconds"] for row in rounds)
    yield {
        "label": "Rounds",
        "value": str(result.get("rounds") or len(rounds)),
        "note": f"in {clock(seconds)}",
    }
    of_round = [row for row in plan.get("egress", []) if not row.get("every")]  # not rounds of another kind
    sent = [row["site_bytes"] for row in of_round if row.get("site_bytes")]
    yield {
        "label": "Sent to the server",
        "value": size(up),
        "note": f"{size(down)} back" + (f"; a site sends {size(sum(sent))} a round" if sent else ""),
    }


def _measured(split: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    metrics, slope = split["metrics"], split["calibration"].get("slope")
    for name, label in (("auroc", "AUROC"), ("accuracy", "Accuracy")):
        if name in metrics:
            found = metrics[name]
            note = (
                f"95 % interval {found['low']:.3f} to {found['high']:.3f}, {found['method']}"
                if found.get("low") is not None
                else f"{split['split']} patients"
            )
            yield {"label": label, "value": f"{found['value']:.3f}", "note": note}
            break
    if split.get("new_hospital"):
        new = split["new_hospital"]
        yield {
            "label": "AUROC in a new hospital",
            "value": f"{new['low']:.2f} – {new['high']:.2f}",
            "note": f"95 % prediction interval; I² {100 * new['i2']:.0f} %, {new['hospitals']} hospitals",
        }
    if slope is not None:
        brier = metrics.get("brier", {}).get("value")
        yield {
            "label": "Calibration slope",
            "value": f"{slope:.2f}",
            "note": "1 is perfect" + (f"; Brier score {brier:.4f}" if brier is not None else ""),
        }


def _figures(
    rounds: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    split: Mapping[str, Any] | None,
    result: Mapping[str, Any],
) -> dict[str, str]:
    """Return the SVG of each figure that has something to show."""
    from fedray.report import figures

    made = {}
    discriminating = [row for row in evaluations if row["metrics"].get("auroc") is not None]
    if discriminating:
        made["discrimination"] = figures.discrimination(discriminating)
    if any(row["metrics"].get("loss") is not None for row in [*rounds, *evaluations]):
        made["loss"] = figures.loss([{**row, "metrics": row["metrics"] or {}} for row in rounds], evaluations)
    if rounds:
        made |= {"attendance": figures.attendance(rounds), "cost": figures.cost(rounds)}
    sites = [site for site in (split or {}).get("sites", []) if site.get("auroc") is not None]
    if split and sites:
        made["caterpillar"] = figures.caterpillar(
            sites, split["metrics"].get("auroc", {}).get("value"), split.get("new_hospital")
        )
    if split and split["calibration"].get("curve"):
        made["calibration"] = figures.calibration(split["calibration"]["curve"])
    level = [
        site
        for site in (split or {}).get("sites", [])
        if site.get("calibration_in_the_large") is not None and statistics.is_large(site)
    ]
    if level:
        made["level"] = figures.calibration_of_sites(level)
    compared = {
        name: found
        for name, found in (result.get("comparison") or {}).items()
        if isinstance(found, Mapping) and found.get("value") is not None
    }
    if compared:
        made["arms"] = figures.arms(compared)
    return made


def _hospitals(split: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the table of hospitals, highest AUROC first, and what has to be said about those without."""
    sites = list((split or {}).get("sites", []))
    hidden = [site for site in sites if site.get("suppressed")]
    alone = [site for site in sites if site.get("auroc") is None and not site.get("suppressed")]
    with_own = sorted(
        (site for site in sites if site.get("auroc") is not None), key=lambda site: -site["auroc"]
    )
    flat = [
        site
        for site in with_own
        if site.get("auroc_low") is not None and site["auroc_low"] == site["auroc_high"]
    ]
    rows = [*with_own, *alone, *hidden]
    return {
        "rows": rows[:MAX_ROWS],
        "more": max(0, len(rows) - MAX_ROWS),
        "with_own": len(with_own),
        "alone": len(alone),
        "hidden": len(hidden),
        "flat": len(flat),
        "rough": sum(site.get("auroc_low") is None for site in with_own),
        "all": len(sites),
    }


def _worst(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(result.get("failures") or [], key=lambda item: (-item["count"], item["site"]))[:12]


def _left_out(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the sites that a quarantine has left out, most often first, each with its last evidence."""
    found: dict[str, dict[str, Any]] = {}
    for row in rounds:
        for name, value in (row["metrics"] or {}).items():
            if name.startswith(EVIDENCE) and value is not None:
                site, _, fact = name.removeprefix(EVIDENCE).rpartition(".")
                found.setdefault(site, {"site": site})[fact] = value
    guilty = [record for record in found.values() if record.get("times")]
    return sorted(guilty, key=lambda record: (-record["times"], record["site"]))[:MAX_ROWS]


def _privacy(
    plan: Mapping[str, Any],
    result: Mapping[str, Any],
    config: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
) -> Iterator[dict[str, str]]:
    """Yield what protects patients in this run, and plainly what does not."""
    seen = _visible([plan])
    if seen:
        yield {"sign": "no", "text": f"{SENTENCES['seen']} {', '.join(seen)}."}
    elif plan.get("egress"):
        yield {"sign": "yes", "text": SENTENCES["sums"]}
    listed = _visible(plan.get("evaluations", []))
    if listed:
        yield {"sign": "no", "text": f"{SENTENCES['listed']} {', '.join(listed)}."}
    simulated = any("simulated" in row.get("guards", "") for row in plan.get("egress", []))
    if not _is_on(config.get("secure")) or simulated:
        yield {"sign": "no", "text": SENTENCES["ideal" if simulated else "open"]}
    if result.get("privacy"):
        yield from spent.sentences(result["privacy"], rounds)
    else:
        yield {"sign": "no", "text": SENTENCES["no_noise"]}
    if result.get("where", "simulation") == "simulation":
        yield {"sign": "no", "text": SENTENCES["simulation"]}
    if result.get("suppressed"):
        yield {"sign": "yes", "text": SENTENCES["suppressed"]}


def _visible(plans: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names under which the server is shown the value of a single site."""
    rows = [row for plan in plans for row in plan.get("egress", [])]
    shown = [row for row in rows if str(row["visible"]).startswith("yes")]
    return sorted({row["name"] for row in shown if "public by design" not in row["visible"]})


def _is_on(group: Any) -> bool:
    return isinstance(group, Mapping) and "_target_" in group


def _commands(folder: Path, env: Mapping[str, Any]) -> dict[str, Any]:
    """Return what repeats the run; a folder of this machine is shown by its last part only."""
    file = folder / "overrides.txt"
    words = [_without_folder(word) for word in (file.read_text().splitlines() if file.exists() else [])]
    versions = ", ".join(f"{name} {version}" for name, version in (env.get("versions") or {}).items())
    return {"run": " ".join(["fedray run", *words]), "versions": versions}


def _without_folder(word: str) -> str:
    return re.sub(r"(?<==)[\"']?(?:~|/|file:/)[^\s\"']*/", "…/", word)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"
