"""The view of a running training: a table that moves on a terminal, one plain line a round anywhere else.

`view(...)` is a tracker like the others and a context manager that gives the terminal back whatever happens.
It keeps to 80 columns. A notebook, a pipe and `CI=1` get plain lines.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedray.report import spent
from fedray.report.statistics import over_sites
from fedray.track import plain, site_row

WIDTH = 80
SHOWN_ROUNDS = 8
SHOWN_FAILURES = 3
WORST_NEEDS = 50  # test patients below which a hospital's AUROC is too rough to be called the worst
Failures = Sequence[Any]


def is_plain(console: Console) -> bool:
    """Tell whether lines are better than a moving table: no terminal, a notebook, or CI."""
    in_notebook = "ipykernel" in sys.modules or console.is_jupyter
    return not console.is_terminal or in_notebook or os.environ.get("CI", "").lower() in ("1", "true")


def view(title: str, rounds: int, *, directory: str = "", console: Console | None = None) -> "View":
    """Return the view of a run: what is trained, for how many rounds, written to which directory."""
    return View(title, rounds, directory, console or Console(highlight=False))


class View:
    """Show rounds and evaluations as they come; see `view`."""

    def __init__(self, title: str, rounds: int, directory: str, console: Console) -> None:
        self.title, self.rounds, self.directory, self.console = title, rounds, directory, console
        self.facts: Mapping[str, Any] = {}
        self.rows: list[tuple[Any, Any]] = []  # (round, its evaluation or None), the last SHOWN_ROUNDS
        self.num_failures, self.bytes_up, self.is_running = 0, 0, True
        self.evaluated: Any = None
        self.started, self.first = time.monotonic(), 0
        self.live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def start(self, plan: Any, facts: Mapping[str, Any]) -> None:
        """Show the head line."""
        self.facts, self.first, self.started = facts, int(facts.get("first_round", 0)), time.monotonic()
        for line in facts.get("privacy") or ():
            self._say(f"privacy: {line}")
        if is_plain(self.console):
            self._say(self._head())
        else:
            self.live = Live(console=self.console, auto_refresh=False, get_renderable=self._screen)
            self.live.start(refresh=True)

    def round(self, record: Any) -> None:
        """Show a round, its failed sites in the same line."""
        self.rows = [*self.rows, (record, None)][-SHOWN_ROUNDS:]
        self.num_failures += len(record.failures)
        self.bytes_up += record.bytes_up
        if self.live is None:
            self._say(self._line(record))
        else:
            self.live.refresh()

    def evaluation(self, record: Any) -> None:
        """Show an evaluation beside its round."""
        self.evaluated = record
        if self.rows and self.rows[-1][0].round == record.round and record.split == "valid":
            self.rows[-1] = (self.rows[-1][0], record)
        if self.live is not None:
            self.live.refresh()
        elif record.split != "test":  # the test comes last, and `close` tells it
            self._say(f"{'':<14} {record.split} rows: {_evaluation(record)}")

    def finish(self, result: Any) -> None:
        """Leave the last table where it is and give the terminal back."""
        self._stop()

    def close(self, told: Mapping[str, Any], opening: str) -> None:
        """Say what the run came to, from `result.json`'s content, and what to open next."""
        for line in [*closing_lines(told), opening]:
            self._say(line)

    def _stop(self) -> None:
        if self.live is not None:
            self.is_running = False
            self.live.refresh()
            self.live.stop()
            self.live = None

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def _head(self) -> str:
        sites = f" · {self.facts['sites']} sites" if "sites" in self.facts else ""
        seed = f" · seed {self.facts['seed']}" if "seed" in self.facts else ""
        return f"{self.title}{sites}{seed}"

    def _line(self, record: Any) -> str:
        parts = [f"round {record.round + 1:>3}/{self.rounds}", f"{record.counted}/{record.asked} sites"]
        parts += [f"{name} {value:.4g}" for name, value in _shown(record.metrics)]
        parts += [f"{record.seconds:.1f} s", f"{size(record.bytes_up)} up", *_note(record, many=True)]
        return "  ".join(parts)

    def _screen(self) -> Group:
        head = Text(self._head(), style="bold", overflow="ellipsis", no_wrap=True)
        where = (
            [Text(self.directory, style="dim", overflow="ellipsis", no_wrap=True)] if self.directory else []
        )
        return Group(head, *where, self._progress(), *self._table(), *self._foot())

    def _progress(self) -> Table:
        done = self.rows[-1][0].round + 1 if self.rows else self.first
        passed = time.monotonic() - self.started
        each = passed / (done - self.first) if done > self.first else 0.0
        grid = Table.grid(padding=(0, 2))
        left = f"{clock(each * (self.rounds - done))} left" if done < self.rounds else f"in {clock(passed)}"
        timing = f"{each:.1f} s/round  {left}  {size(self.bytes_up)} up" if each else "starting"
        grid.add_row(
            f"round {done}/{self.rounds}",
            ProgressBar(self.rounds, done, width=20),
            f"{100 * done // self.rounds:>3}%",
            timing,
        )
        return grid

    def _table(self) -> Iterator[Table]:
        if not self.rows:
            return
        names = [name for name, _ in _shown(self.rows[-1][0].metrics)]
        table = Table(
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
            width=min(WIDTH, self.console.width),
            header_style="dim",
        )
        for title in ("round", "sites", *names, "AUROC \\[p10 p50 p90]", "slope"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("note", ratio=1, overflow="fold")
        for record, evaluated in self.rows:
            values = [f"{value:.4g}" for _, value in _shown(record.metrics)][: len(names)]
            auroc, slope = _columns(evaluated)
            table.add_row(
                str(record.round + 1),
                f"{record.counted}/{record.asked}",
                *values,
                *[""] * (len(names) - len(values)),
                auroc,
                slope,
                Text(" ".join(_note(record)), style="yellow"),
            )
        yield table

    def _foot(self) -> Iterator[Text]:
        if self.evaluated is not None:
            ranked = sorted(
                (site["auroc"], str(site["site"]))
                for site in map(site_row, self.evaluated.sites)
                if site.get("auroc") is not None and (site.get("n") or 0) >= WORST_NEEDS
            )
            if ranked:
                worst = "  ".join(f"{name} {share(value)}" for value, name in ranked[:3])
                yield Text(f"lowest AUROC now (n ≥ {WORST_NEEDS}): {worst}", style="dim")
        if self.num_failures:
            yield Text(f"failed calls so far: {self.num_failures}, each in rounds.jsonl", style="dim")
        if self.is_running:
            yield Text("Ctrl-C ends after the round and keeps a checkpoint, twice stops at once", style="dim")


def _shown(metrics: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the one training figure that has room in a line: the loss, else the first number."""
    numbers = [(name, value) for name, value in plain(metrics).items() if isinstance(value, (int, float))]
    return [item for item in numbers if item[0].endswith("loss")][:1] or numbers[:1]


def _note(record: Any, many: bool = False) -> Iterator[str]:
    if getattr(record, "status", "counted") == "skipped":
        yield "below quorum: round skipped"
    if getattr(record, "late", None):
        yield f"{record.late} late ones"
    if getattr(record, "staleness_mean", None) is not None:
        yield f"age {record.staleness_mean:.1f}, at most {record.staleness_max}"
    if getattr(record, "epsilon", None) is not None:
        yield f"ε {record.epsilon:.3g}"
    if record.attempt:
        yield f"attempt {record.attempt + 1}"
    if record.failures:
        shown = (
            record.failures
            if many and len(record.failures) <= SHOWN_FAILURES
            else record.failures[:SHOWN_FAILURES]
        )
        told = ", ".join(f"{failure.site} (stage {failure.stage}, {failure.kind})" for failure in shown)
        more = f" and {len(record.failures) - len(shown)} more" if len(record.failures) > len(shown) else ""
        yield f"{len(record.failures)} failed: {told}{more}"


def _columns(evaluated: Any) -> tuple[str, str]:
    if evaluated is None:
        return "", ""
    values, spread = plain(evaluated.metrics), over_sites([site_row(site) for site in evaluated.sites])
    auroc = share(values.get("auroc"))
    if spread:
        auroc += f" [{share(spread['p10'])} {share(spread['p50'])} {share(spread['p90'])}]"
    slope = values.get("calibration_slope")
    return auroc, f"{slope:.2f}" if slope is not None else ""


def _evaluation(record: Any) -> str:
    values, spread = plain(record.metrics), over_sites([site_row(site) for site in record.sites])
    told = [f"AUROC {share(values['auroc'])}"] if values.get("auroc") is not None else []
    if spread:
        told.append(
            f"hospitals p10 {share(spread['p10'])} p50 {share(spread['p50'])} p90 {share(spread['p90'])}"
        )
    if values.get("calibration_slope") is not None:
        told.append(f"calibration slope {values['calibration_slope']:.2f}")
    return (
        ", ".join(told) or ", ".join(f"{name} {value:.4g}" for name, value in _shown(values)) or "no figures"
    )


def closing_lines(told: Mapping[str, Any]) -> list[str]:
    """Return the last lines of a run from what result.json holds: figures with intervals, the cost."""
    lines = []
    split = next((told[name] for name in ("test", "valid", "server") if told.get(name)), None)
    if split:
        lines += _figures(split)
        lines += _hospitals(split) if split.get("auroc_over_sites") else []
    lines += [
        f"  {arm}: {with_interval(found)}"
        for arm, found in (told.get("comparison") or {}).items()
        if isinstance(found, Mapping) and "value" in found
    ]
    if told.get("privacy"):
        lines.append(f"  {spent.headline(told['privacy'])}")
    ways = {"early": "stopped early", "interrupted": "interrupted", "budget": "ended with its privacy budget"}
    ended = ways.get(told["stopped"], "done")
    lines.append(
        f"{ended}: {told['rounds']} rounds in {clock(told['seconds'])}, {size(told['bytes_up'])} up and "
        f"{size(told['bytes_down'])} down in all"
    )
    return lines


def _figures(split: Mapping[str, Any]) -> list[str]:
    """Return the headline figure, and the others in one line."""
    metrics, slope = split["metrics"], split["calibration"].get("slope")
    first = next(
        (
            f"{label} {with_interval(metrics[name])}"
            for name, label in (("auroc", "AUROC"), ("accuracy", "accuracy"), ("loss", "loss"))
            if name in metrics
        ),
        "no figures",
    )
    others = [f"calibration slope {slope:.2f}"] if slope is not None else []
    if metrics.get("brier", {}).get("value") is not None:
        others.append(f"Brier {metrics['brier']['value']:.4f}")
    if split.get("n"):
        others.append(f"{split['n']:,.0f} patients")
    return [f"{split['split']} rows: {first}", *([f"  {' · '.join(others)}"] if others else [])]


def _hospitals(split: Mapping[str, Any]) -> list[str]:
    spread, without = split["auroc_over_sites"], split.get("sites_without_auroc", 0)
    lines = [
        f"  {spread['sites']} hospitals: AUROC p10 {share(spread['p10'])}, median {share(spread['p50'])}, "
        f"p90 {share(spread['p90'])}"
    ]
    if without:
        lines.append(f"  {without} more have no AUROC of their own: one outcome only, or no patient")
    return lines


def with_interval(found: Mapping[str, Any]) -> str:
    """Return `0.846 [0.838, 0.853] DeLong`."""
    if found.get("low") is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}] ({found['method']})"


def share(value: float | None) -> str:
    """Return a share as `.846`; `1.00` for one."""
    if value is None:
        return "-"
    return f"{value:.3f}".lstrip("0") if value < 0.9995 else "1.00"


def size(number: float) -> str:
    """Return bytes as `12.4 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number:.0f} B"


def clock(seconds: float) -> str:
    """Return a duration as `1:43` or `1:02:03`; `8.2 s` below ten seconds."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
