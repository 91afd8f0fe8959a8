"""The figures of the page as SVG text: small, without script, text kept as text, the same bytes for the same
run.

matplotlib comes with the extra `report`; this file is imported only where it is installed.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from fedray.report.statistics import ENOUGH, Z

INK, SOFT, GRID = "#1f2933", "#66737f", "#e4e8ec"
TEAL, PALE, AMBER, RED = "#0f766e", "#99d5cf", "#c2740a", "#b42318"
MAX_POINTS = 400  # of a curve; more are not seen at this width
MAX_HOSPITALS = 600  # of a caterpillar; more are drawn as every k-th
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": "#b8c1c9",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "path.simplify": True,
}
Rows = Sequence[Mapping[str, Any]]


def svg(draw: Any, title: str, width: float, height: float) -> str:
    """Draw on a new figure and return its SVG; `title` is read out to who cannot see it."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace("font-family: 'DejaVu Sans'", "font-family: inherit")
    text = re.sub(
        r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1system-ui, 'DejaVu Sans', sans-serif", text
    )
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def _thin(rows: Rows) -> Rows:
    return (
        rows
        if len(rows) <= MAX_POINTS
        else [rows[i] for i in np.linspace(0, len(rows) - 1, MAX_POINTS).astype(int)]
    )


def _by_round(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.margins(x=0.02)


def discrimination(evaluations: Rows) -> str:
    """Draw pooled AUROC of the validation rows over rounds, with the spread over hospitals as a band."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        rounds = [row["round"] + 1 for row in evaluations]
        spread = [(row["round"] + 1, row["over_sites"]) for row in evaluations if row.get("over_sites")]
        if spread:
            at = [round for round, _ in spread]
            low, middle, high = ([found[name] for _, found in spread] for name in ("p10", "p50", "p90"))
            axes.fill_between(at, low, high, color=PALE, alpha=0.45, lw=0, label="hospitals, p10 to p90")
            axes.plot(at, middle, color=PALE, lw=1.4, label="median hospital")
        axes.plot(
            rounds,
            [row["metrics"]["auroc"] for row in evaluations],
            color=TEAL,
            lw=1.8,
            marker="o",
            ms=4,
            label="all patients together",
        )
        axes.legend(loc="lower right")
        _by_round(axes, "AUROC on validation patients")

    return svg(draw, "AUROC on validation patients over rounds", 4.6, 2.9)


def loss(rounds: Rows, evaluations: Rows) -> str:
    """Draw the training loss of each round and the validation loss of each evaluation."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        trained = _thin([row for row in rounds if row["metrics"].get("loss") is not None])
        if trained:
            axes.plot(
                [row["round"] + 1 for row in trained],
                [row["metrics"]["loss"] for row in trained],
                color=SOFT,
                lw=1.4,
                label="training rows, while training",
            )
        measured = [row for row in evaluations if row["metrics"].get("loss") is not None]
        if measured:
            axes.plot(
                [row["round"] + 1 for row in measured],
                [row["metrics"]["loss"] for row in measured],
                color=TEAL,
                lw=1.8,
                marker="o",
                ms=4,
                label="validation rows",
            )
        axes.legend(loc="upper right")
        _by_round(axes, "Loss")

    return svg(draw, "loss over rounds", 4.6, 2.9)


def attendance(rounds: Rows) -> str:
    """Draw how many sites each round asked and counted."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shown = _thin(rounds)
        at = [row["round"] + 1 for row in shown]
        axes.step(at, [row["asked"] for row in shown], where="mid", color=PALE, lw=1.6, label="asked")
        axes.step(at, [row["counted"] for row in shown], where="mid", color=TEAL, lw=1.8, label="counted")
        lost = [row for row in shown if row["counted"] < row["asked"]]
        axes.plot(
            [row["round"] + 1 for row in lost],
            [row["counted"] for row in lost],
            "o",
            color=AMBER,
            ms=4,
            label="with a failed site" if lost else None,
        )
        axes.set_ylim(0, max(row["asked"] for row in rounds) * 1.1 or 1)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(loc="lower right")
        _by_round(axes, "Sites per round")

    return svg(draw, "sites asked and counted per round", 4.6, 2.9)


def cost(rounds: Rows) -> str:
    """Draw seconds per round and what all rounds so far sent up and down."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shown = _thin(rounds)
        at = [row["round"] + 1 for row in shown]
        axes.bar(
            at, [row["seconds"] for row in shown], color=PALE, width=max(0.8, len(rounds) / len(shown) * 0.8)
        )
        axes.set_ylabel("seconds")
        axes.set_ylim(bottom=0)
        _by_round(axes, "Seconds per round")

    return svg(draw, "seconds per round", 4.6, 2.9)


def caterpillar(sites: Rows, pooled: float | None, expected: Mapping[str, Any] | None) -> str:
    """Draw AUROC of each hospital with its DeLong interval, sorted; a point's area counts patients."""
    ranked = sorted(sites, key=lambda site: (site["auroc"], site.get("n") or 0))
    step = -(-len(ranked) // MAX_HOSPITALS)
    shown = ranked[::step]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        low = min(site["auroc"] for site in shown)
        if expected:
            label = "95 % of new hospitals, predicted"
            axes.axhspan(expected["low"], expected["high"], color=PALE, alpha=0.25, lw=0, label=label)
        _hospitals(axes, shown)
        if pooled is not None:
            label = f"all patients together {pooled:.3f}"
            axes.axhline(pooled, color=RED, lw=1.2, ls=(0, (4, 3)), label=label)
        chance = "no better than chance" if low < 0.6 else None
        axes.axhline(0.5, color=SOFT, lw=0.8, ls=":", label=chance)
        every = f" (every {step}th)" if step > 1 else ""
        axes.set_xlabel(f"{len(ranked)} hospitals, lowest to highest{every}")
        axes.set(ylabel="AUROC", xlim=(-1, len(shown)), ylim=(min(0.45, low - 0.03), 1.01))
        axes.grid(axis="x", visible=False)
        axes.legend(loc="lower right", ncols=2)

    return svg(draw, "AUROC of each hospital with 95 % intervals, sorted", 9.4, 3.6)


def _hospitals(axes: Axes, shown: Rows) -> None:
    """Draw an interval and a point per hospital; name them where there is room."""
    are_many = len(shown) > 60
    bars = [
        ((i, site["auroc_low"]), (i, site["auroc_high"]))
        for i, site in enumerate(shown)
        if site.get("auroc_low") is not None and site["auroc_high"] > site["auroc_low"]
    ]
    axes.add_collection(LineCollection(bars, colors="#8fa3ad", linewidths=0.9 if are_many else 1.5))
    width = np.sqrt([max(1.0, site.get("n") or 1.0) for site in shown])
    area = (width / width.max() * (5.5 if are_many else 8)) ** 2 + 3
    at, label = np.arange(len(shown)), "hospital; area: patients, bar: 95 % interval"
    axes.scatter(at, [site["auroc"] for site in shown], s=area, color=TEAL, lw=0, zorder=3, label=label)
    if len(shown) <= 30:
        axes.set_xticks(at, [str(site["site"]) for site in shown], rotation=60 if len(shown) > 8 else 0)
    else:
        axes.set_xticks([])


def calibration(curve: Rows) -> str:
    """Draw observed against predicted risk in groups of equal size, with Wilson intervals."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        predicted, observed = ([row[name] for row in curve] for name in ("predicted", "observed"))
        top = min(1.0, 1.08 * max([*predicted, *(row["high"] for row in curve)]))
        axes.plot([0, top], [0, top], color=SOFT, lw=1, ls=(0, (4, 3)), label="perfect")
        below = [row["observed"] - row["low"] for row in curve]
        above = [row["high"] - row["observed"] for row in curve]
        axes.errorbar(
            predicted,
            observed,
            yerr=[np.maximum(below, 0), np.maximum(above, 0)],
            color=TEAL,
            marker="o",
            ms=4.5,
            lw=1.5,
            elinewidth=1.1,
            label=f"{len(curve)} groups of patients, 95 % interval",
        )
        axes.set(
            xlabel="predicted risk",
            ylabel="observed share",
            xlim=(0, top),
            ylim=(0, top),
            title="Calibration",
        )
        axes.legend(loc="upper left")

    return svg(draw, "observed against predicted risk", 4.6, 3.4)


def calibration_of_sites(sites: Rows) -> str:
    """Draw each hospital's calibration in the large against its size."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(0, color=SOFT, lw=1, ls=(0, (4, 3)))
        axes.scatter(
            [site["n"] for site in sites],
            [site["calibration_in_the_large"] for site in sites],
            s=14,
            color=TEAL,
            alpha=0.65,
            lw=0,
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(
            xlabel="test patients in the hospital",
            ylabel="log odds (above 0: more events)",
            title=f"In the large, by hospital (≥ {ENOUGH} of each outcome)",
        )

    return svg(draw, "calibration in the large of each hospital against its size", 4.6, 3.4)


def arms(comparison: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the arms of a comparison (local, federated, pooled) with their intervals."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = list(comparison)[::-1]
        for at, name in enumerate(names):
            found = comparison[name]
            if found.get("low") is not None:
                axes.plot([found["low"], found["high"]], [at, at], color="#8fa3ad", lw=1.8)
            axes.plot(found["value"], at, "o", color=TEAL, ms=7)
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.set(ylim=(-0.6, len(names) - 0.4), xlabel="AUROC")
        axes.grid(axis="y", visible=False)

    return svg(draw, "AUROC of each arm of the comparison", 7.0, 0.8 + 0.33 * len(comparison))


METHODS = {"shapley": ("Shapley, exact", TEAL), "tmc_shapley": ("Shapley, truncated Monte Carlo", "#5aa9a1"),
           "gtg_shapley": ("GTG-Shapley, of one training", AMBER), "leave_one_out": ("leave one out", SOFT)}
MAX_NAMED = 12  # sites whose names are level below their bars


def contribution(told: Mapping[str, Any]) -> str:
    """Draw what each site adds, one bar a method, with 95 % intervals where orders were drawn."""
    return svg(lambda figure: _bars(figure, told), "what each site adds, by method", 9.4, 3.4)


def contribution_png(told: Mapping[str, Any]) -> bytes:
    """Return the same figure as a PNG."""
    with mpl.rc_context(STYLE):
        figure, file = Figure(figsize=(9.4, 3.4), layout="constrained"), io.BytesIO()
        _bars(figure, told)
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    return file.getvalue()


def _bars(figure: Figure, told: Mapping[str, Any]) -> None:
    """Draw the sites by what the first method says, the largest first."""
    axes, found = figure.subplots(), told["methods"]
    sites = sorted(found[0]["values"], key=lambda site: (-found[0]["values"][site], site))
    width, at = 0.8 / len(found), np.arange(len(sites))
    for number, record in enumerate(found):
        label, colour = METHODS[record["method"]]
        place = at + (number - (len(found) - 1) / 2) * width
        heights = [record["values"][site] for site in sites]
        axes.bar(place, heights, width * 0.92, color=colour, label=label)
        if record["errors"]:
            spread = [Z * record["errors"][site] for site in sites]
            axes.errorbar(place, heights, yerr=spread, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5)
    axes.axhline(0, color=SOFT, lw=0.8)
    axes.set_xticks(at, sites, rotation=60 if len(sites) > MAX_NAMED else 0)
    axes.grid(axis="x", visible=False)
    axes.set(ylabel=f"added to {told['metric']}", title="What each site adds")
    axes.legend(loc="best")
