"""What a finished run is worth, in two files: `result.json` for people and programs, the model for everyone's
torch.

result.json is the one place of the final figures: the terminal, the page, `fedray diff` and sweeps read it.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedray import track, tree
from fedray.report import statistics
from fedray.rundir import as_json
from fedray.suppress import small_cells

if TYPE_CHECKING:
    from fedray.rundir import RunDirectory

FORMAT = 1
THRESHOLD = {"value": 0.5, "how": "fixed before training"}
BINS = ("hist_pos", "hist_neg")
STATES = {"done": "done", "early": "done", "interrupted": "interrupted"}


def write(run: "RunDirectory", result: Any, extras: Mapping[str, Any]) -> dict[str, Any]:
    """Write result.json, model.safetensors, model.json and STATUS; return what result.json holds.

    Of `extras` it takes `model` (kind and what its layers need), `features`, `outcome`, `preparation`,
    `threshold` ({"value", "how"}; a number is enough), `suppress` (leave small cells out), `where`
    ("simulation" or "federation"), `comparison` and `over_seeds` ({arm or metric: interval}); anything else
    is kept as it is.
    """
    told = summary(run, result, extras)
    write_model(run, result.params, told, extras)
    run.write_json("result.json", told)
    reason = {"early": "early stop", "budget": "the privacy budget ended"}.get(result.stopped, "")
    run.set_status(STATES.get(result.stopped, "done"), reason)
    return told


def summary(run: "RunDirectory", result: Any, extras: Mapping[str, Any]) -> dict[str, Any]:
    """Return what result.json holds. Rounds before a resume are counted from the run's own records."""
    env, done = (
        run.env,
        track.read(run.path, "rounds") or [track.round_row(record) for record in result.metrics],
    )
    first = result.metrics[0].round if result.metrics else result.rounds
    before = sum(row["seconds"] or 0.0 for row in done if row["round"] < first)
    suppress = bool(extras.get("suppress", False))
    told = {
        "format": FORMAT,
        "name": env["name"],
        "status": STATES.get(result.stopped, "done"),
        "stopped": result.stopped,
        "where": extras.get("where", "simulation"),
        "rounds": result.rounds,
        "seconds": result.seconds + before,
        "bytes_up": sum(row["bytes_up"] or 0 for row in done),
        "bytes_down": sum(row["bytes_down"] or 0 for row in done),
        "sites": max((len(record.sites) for record in result.evaluations), default=0)
        or max((row["asked"] or 0 for row in done), default=0),
        "seed": result.seed,
        "config_sha256": env["config_sha256"],
        "plan": {"name": result.plan.name, "digest": result.plan.digest},
        "params_sha256": result.params_sha256,
        "row_invariant": result.row_invariant,
        "privacy": getattr(result, "privacy", None),
        "suppressed": suppress,
        "failures": failures(done),
        "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    given = extras.get("threshold", THRESHOLD)
    threshold = dict(given) if isinstance(given, Mapping) else {**THRESHOLD, "value": float(given)}
    for split in ("test", "valid", "server"):
        record = next((each for each in reversed(result.evaluations) if each.split == split), None)
        told[split] = evaluation(record, threshold, suppress) if record is not None else None
    if "over_seeds" in extras:
        told["over_seeds"] = {name: over_seeds(**found) for name, found in extras["over_seeds"].items()}
    known = ("model", "preparation", "features", "suppress", "where", "threshold", "over_seeds")
    return {**told, **{name: as_json(value) for name, value in extras.items() if name not in known}}


def over_seeds(values: Sequence[float], test_fraction: float) -> dict[str, Any]:
    """Return the mean over seeds with the Nadeau-Bengio interval, for training rows overlap."""
    from fedray.learn.intervals import nadeau_bengio

    found = nadeau_bengio(values, test_fraction)
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "level": statistics.LEVEL,
        "method": "Nadeau-Bengio",
        "seeds": len(values),
        "values": list(values),
    }


def failures(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how often each site failed in which way."""
    counts: dict[tuple[str, str], int] = {}
    for row in rounds:
        for failure in row.get("failures") or ():
            key = failure["site"], failure["kind"]
            counts[key] = counts.get(key, 0) + 1
    return [{"site": site, "kind": kind, "count": count} for (site, kind), count in sorted(counts.items())]


def evaluation(record: Any, threshold: Mapping[str, Any], suppress: bool) -> dict[str, Any]:
    """Return one evaluation: metrics with named intervals, calibration, and one record per site."""
    values = track.plain(record.metrics)
    sites = [_site(track.site_row(site)) for site in record.sites]
    without = sum(site.get("auroc") is None for site in sites)
    told = {
        "round": record.round,
        "split": record.split,
        "n": values.get("n"),
        "events": values.get("events"),
        "metrics": _with_intervals(values),
        "calibration": _calibration(values),
        "threshold": dict(threshold),
        "sites": small_cells(sites) if suppress else sites,
    }
    if any("auroc" in site for site in sites):
        told |= {
            "sites_without_auroc": without,
            "auroc_over_sites": statistics.over_sites(sites),
            "new_hospital": statistics.new_hospital(sites),
        }
    return told


def _with_intervals(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return every metric as {value, low, high, level, method}; value alone where no interval is known."""
    skipped = ("n", "events", "auroc_se", *BINS)
    told: dict[str, Any] = {
        name: {"value": value}
        for name, value in values.items()
        if name not in skipped and not name.startswith("calibration") and _is_number(value)
    }
    auroc = statistics.auroc_interval(values)
    if auroc is not None:
        told["auroc"] = auroc
    for name, total in _totals(values).items():
        if name in told and total:
            told[name] = statistics.wilson(values[name] * total, total)
    return told


def _totals(values: Mapping[str, Any]) -> dict[str, float]:
    """Return of how many patients each metric is a share."""
    n, events = values.get("n") or 0, values.get("events") or 0
    return {"accuracy": n, "sensitivity": events, "specificity": n - events}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _calibration(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that the metrics call calibration, and the curve of the summed bins."""
    told = {
        name.removeprefix("calibration_"): value
        for name, value in values.items()
        if name.startswith("calibration")
    }
    if all(name in values for name in BINS):
        told["curve"] = statistics.calibration_curve(*(values[name] for name in BINS))
    return told


def _site(site: Mapping[str, Any]) -> dict[str, Any]:
    """Return a site's record with its DeLong interval."""
    told = dict(site)
    if site.get("auroc") is not None and site.get("auroc_se") is not None:
        found = statistics.around(site["auroc"], site["auroc_se"], "DeLong")
        told |= {"auroc_low": found["low"], "auroc_high": found["high"]}
    return told


def _preparation(preparation: Any) -> Any:
    """Return what `Preparation.from_json` reads back, or plain values of anything else."""
    return json.loads(preparation.to_json()) if hasattr(preparation, "to_json") else as_json(preparation)


def write_model(run: "RunDirectory", params: Any, told: Mapping[str, Any], extras: Mapping[str, Any]) -> None:
    """Write the final global parameters and all that is needed to predict with them in plain torch."""
    import torch
    from safetensors.torch import save

    tensors = dict(_named(params))
    layout = [
        {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in tensors.items()
    ]
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    run.write("model.safetensors", save(stored or {"empty": torch.zeros(1)}))
    model = extras.get("model") or {}
    model = {"kind": model} if isinstance(model, str) else as_json(model)
    run.write_json(
        "model.json",
        {
            "format": FORMAT,
            **model,
            "features": list(extras.get("features") or ()),
            "outcome": extras.get("outcome", "binary"),
            "preparation": _preparation(extras.get("preparation")),
            "threshold": extras.get("threshold", THRESHOLD),
            "tensors": layout,
            "params_sha256": told["params_sha256"],
            "config_sha256": told["config_sha256"],
            "seed": told["seed"],
            "rounds": told["rounds"],
        },
    )


def _named(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every tensor of a value under a dotted name; those of the model itself keep their own names."""
    if hasattr(value, "detach"):
        yield prefix or "params", value
    elif isinstance(value, Mapping):
        for name in value:
            yield from _named(value[name], f"{prefix}.{name}" if prefix else str(name))
    elif not tree.is_leaf(value):
        for name, child in tree.children(value):
            yield from _named(child, f"{prefix}.{name}" if prefix else str(name))
