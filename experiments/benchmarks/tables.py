"""From runs to figures: medians over interleaved pairs, ratios to fedray's, the table and the JSON."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

FEDRAY = ("fedray_in_process", "fedray_ray")
Runs = Mapping[str, Sequence[Mapping[str, float]]]  # system -> one mapping of figures a pair


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(runs: Runs, figure: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return for each system and each of fedray's the ratio of a figure, pair by pair: above 1 is dearer."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for system, own in runs.items():
        for base in FEDRAY:
            other = {run["pair"]: run[figure] for run in runs.get(base, ())}
            values = [run[figure] / other[run["pair"]] for run in own if run["pair"] in other]
            if values:
                found.setdefault(system, {})[base] = spread(values)
    return found


def limit_ratio(cpu: float, flops: float, gemm: float) -> float:
    """Return CPU seconds over what the operations would take at the GEMM rate."""
    return cpu / (flops / gemm)


def summary(runs: Runs, flops: float, gemm: float) -> dict[str, Any]:
    """Return the figures of all systems, their ratios, and fedray's ratio to the limit."""
    figures = sorted({name for own in runs.values() for name in own[0]} - {"pair"})
    systems = {system: {name: spread([run[name] for run in own]) for name in figures}
               for system, own in runs.items()}
    limits = {base: limit_ratio(systems[base]["cpu_per_round"]["median"], flops, gemm)
              for base in (*FEDRAY, "fedray_bare") if base in systems}
    return {"systems": systems, "ratio_cpu": ratios(runs, "cpu_per_round"),
            "ratio_wall": ratios(runs, "wall_per_round"), "limit_ratio": limits}


def last_line(workload: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the medians alone: what the last line of `peers.py` says."""
    def medians(figure: str) -> dict[str, float]:
        return {name: rounded(own[figure]["median"]) for name, own in found["systems"].items()}

    def short(of: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        return {system: {base: rounded(value["median"]) for base, value in bases.items()}
                for system, bases in of.items()}

    return {"workload": workload, "cpu_per_round": medians("cpu_per_round"),
            "wall_per_round": medians("wall_per_round"), "peak_mb": medians("peak_mb"),
            "ratio_cpu": short(found["ratio_cpu"]), "ratio_wall": short(found["ratio_wall"]),
            "limit_ratio": {name: rounded(value) for name, value in found["limit_ratio"].items()}}


def rounded(value: float) -> float:
    """Return four significant digits."""
    return float(f"{value:.4g}")


def table(workload: str, metric: str, found: Mapping[str, Any]) -> str:
    """Return a Markdown table: one row a system, `median (minimum-maximum)`."""
    heads = ["system", "CPU s/round", "wall s/round", "peak MB", metric, "CPU x in process", "CPU x ray",
             "wall x in process", "wall x ray"]
    lines = [f"**{workload}**", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for system, own in found["systems"].items():
        cells = [system, *(_cell(own[name]) for name in ("cpu_per_round", "wall_per_round")),
                 f"{own['peak_mb']['median']:.0f}", f"{own['metric']['median']:.4f}"]
        for ratio in ("ratio_cpu", "ratio_wall"):
            bases = found[ratio].get(system, {})
            cells += [f"{bases[base]['median']:.3g}" if base in bases else "-" for base in FEDRAY]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Mapping[str, float]) -> str:
    return f"{value['median']:.3g} ({value['min']:.3g}-{value['max']:.3g})"
