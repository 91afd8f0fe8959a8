"""What a sweep came to per configuration: mean and standard deviation over its seeds.

`summary.json` holds every figure, `summary.csv` one row per configuration, and `table` what a person reads.
The best configuration is chosen by validation rows; figures of test rows are only told.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedray.sweep.space import SEED
from fedray.sweep.trials import DONE, FAILED, STOPPED, Line

SHOWN = ("auroc", "accuracy", "loss", "brier")  # the others are in the files
SMALLER_IS_BETTER = ("loss", "brier")


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over seeds; a single seed has no standard deviation."""

    mean: float
    sd: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if self.sd is None else f"{self.mean:.4f} ± {self.sd:.4f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One configuration: the overrides that vary but the seed, its seeds, and its figures."""

    overrides: tuple[str, ...]
    seeds: tuple[str, ...]
    done: int
    failed: int
    stopped: int
    metrics: Mapping[str, Spread]  # of the test rows
    valid: Mapping[str, Spread]

    @property
    def name(self) -> str:
        """The overrides in one text."""
        return " ".join(self.overrides) or "all seeds"


def default_mode(metric: str) -> str:
    """Return whether a metric is to be small (`min`) or large (`max`)."""
    return "min" if metric in SMALLER_IS_BETTER else "max"


def rows(lines: Iterable[Line]) -> list[Row]:
    """Return one row per configuration, in the order of the lines; only finished trials have figures."""
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault(tuple(word for word in line.overrides if not _is_seed(word)), []).append(line)
    return [_row(group) for group in groups.values()]


def _row(group: Sequence[Line]) -> Row:
    done = [line for line in group if line.status == DONE]
    count = {status: sum(line.status == status for line in group) for status in (FAILED, STOPPED)}
    seeds = [word.partition("=")[2] for line in group for word in line.overrides if _is_seed(word)]
    shown = group[0].varying or group[0].overrides
    return Row(overrides=tuple(word for word in shown if not _is_seed(word)),
               seeds=tuple(dict.fromkeys(seeds)), done=len(done), failed=count[FAILED],
               stopped=count[STOPPED], metrics=_spreads([line.metrics for line in done]),
               valid=_spreads([line.valid for line in done]))


def _is_seed(word: str) -> bool:
    return word.partition("=")[0] == SEED


def _spreads(found: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    names = dict.fromkeys(name for metrics in found for name in metrics)
    spreads = {}
    for name in names:
        values = [float(metrics[name]) for metrics in found if math.isfinite(metrics.get(name, math.nan))]
        if values:
            sd = statistics.stdev(values) if len(values) > 1 else None
            spreads[name] = Spread(statistics.fmean(values), sd, len(values))
    return spreads


def best(found: Sequence[Row], metric: str, mode: str) -> Row | None:
    """Return the row whose mean on validation rows is best; None where no row has one."""
    able = [row for row in found if metric in row.valid]
    sign = -1.0 if mode == "min" else 1.0
    return max(able, key=lambda row: sign * row.valid[metric].mean, default=None)


def write(folder: Path, found: Sequence[Row], metric: str, mode: str) -> None:
    """Write `summary.json` and `summary.csv`."""
    chosen = best(found, metric, mode)
    told = {"metric": metric, "mode": mode, "chosen_on": "valid",
            "best": list(chosen.overrides) if chosen is not None else None,
            "configurations": [asdict(row) for row in found]}
    (folder / "summary.json").write_text(json.dumps(told, indent=1) + "\n")
    (folder / "summary.csv").write_text(as_csv(found))


def as_csv(found: Sequence[Row]) -> str:
    """Return one line per configuration, a column per setting that varies and two per figure."""
    settings = dict.fromkeys(word.partition("=")[0] for row in found for word in row.overrides)
    figures = {f"{split}_{name}": (split, name) for split, part in (("test", "metrics"), ("valid", "valid"))
               for row in found for name in getattr(row, part)}
    columns = [name for figure in figures for name in (f"{figure}_mean", f"{figure}_sd")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*settings, "done", "failed", "stopped", *columns])
    for row in found:
        values = dict(word.split("=", 1) for word in row.overrides)
        cells: list[Any] = [values.get(key, "") for key in settings]
        cells += [row.done, row.failed, row.stopped]
        for split, name in figures.values():
            spread = (row.metrics if split == "test" else row.valid).get(name)
            cells += ["", ""] if spread is None else [spread.mean, "" if spread.sd is None else spread.sd]
        writer.writerow(cells)
    return text.getvalue()


def table(found: Sequence[Row], metric: str, mode: str) -> list[str]:
    """Return the lines of the final table: mean ± standard deviation over seeds, the best one named."""
    width = max((len(row.name) for row in found), default=0)
    lines = []
    for row in found:
        figures = "  ".join(f"{name} {row.metrics[name]}" for name in SHOWN if name in row.metrics)
        counts = {"done": row.done, "failed": row.failed, "stopped early": row.stopped}
        told = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
        lines.append(f"{row.name:<{width}}  {figures or 'no figure'}  ({told})")
    chosen = best(found, metric, mode)
    if chosen is not None and len(found) > 1:
        lines.append(f"best on validation rows: {chosen.name} ({metric} {chosen.valid[metric]})")
    return lines
