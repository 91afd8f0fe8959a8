"""Write docs/pass-matrix.md: every `algorithm=` option with each protection, from one round that it runs.

    python experiments/tools/pass_matrix.py [--check] [--only fedavg,scaffold]

A cell is `trains`, or why the plan or the round is refused. `--check` writes nothing and fails where the page
is not what would be written.
"""

import argparse
import logging
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fedray as fr
from fedray import experiment, tree
from fedray.config import SCHEMAS, compose_run
from fedray.core.graph import Node, Placement
from fedray.core.trace import trace
from fedray.errors import FedrayError

sys.path.insert(0, str(Path(__file__).parent))  # of the script beside this one
from catalogue import MORE, SMALL, WORDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pass-matrix.md"
HEAD = """# Algorithms and protections

What each algorithm does with each protection, from one round on small synthetic sites. `trains` says that the
round was counted and every parameter is finite; anything else is the reason of the refusal, which comes
before a byte has left a site.

- **site DP**: `site_dp` on every sum and mean but `metrics`, each site counting as one (`only=None`,
  `weights="uniform"`). How useful the noise leaves an algorithm is another question:
  [privacy-sites.md](privacy-sites.md).
- **secure sums**: `secure_sum()`, also over evaluations, which here send sums alone.
- **top-k**: `topk(0.1)` on every mean but `metrics`.
- **median**: `median()` in the place of every mean but `metrics`.

This page is written by `python experiments/tools/pass_matrix.py`.

"""
Make = Callable[[int, Sequence[str]], Any]  # (expected cohort, names of means) -> a pass
COLUMNS: dict[str, Make] = {
    "site DP": lambda cohort, means: fr.passes.site_dp(
        10.0, 0.01, cohort=cohort, only=None, weights="uniform", max_noise=math.inf
    ),
    "secure sums": lambda cohort, means: fr.passes.secure_sum(min_cohort=3),
    "top-k": lambda cohort, means: fr.passes.topk(0.1, only=means or ("delta",)),
    "median": lambda cohort, means: fr.passes.median(only=means or ("delta",)),
}


def row(option: str) -> str:
    """Return the row of an option."""
    words = [*WORDS, f"algorithm={option}", "evaluate.per_site=false", *MORE.get(option, SMALL)]
    asked = experiment.asked_for(compose_run(words))
    made = experiment.build(asked)
    cohort = made.schedule.expected_cohort(len(made.data))
    means = means_of(made.training.algorithm)
    cells = [cell(asked, made, make, cohort, means) for make in COLUMNS.values()]
    return f"| `{option}` | {' | '.join(cells)} |\n"


def means_of(algorithm: Any) -> list[str]:
    """Return the names of what passes may rewrite as means, figures left out."""
    rounds = [algorithm, *(replace(algorithm, round=fn, every={}) for fn in algorithm.every.values())]
    found = [{node.name for node in trace(each).reductions if is_mean(node)} for each in rounds]
    return sorted(set.intersection(*found))


def is_mean(node: Node) -> bool:
    """Tell whether a reduction is a mean over all sites at the server, and no figure."""
    is_plain = node.placement is Placement.SERVER and not node.params.get("by")
    return node.params["kind"] == "mean" and is_plain and node.name != "metrics"


def cell(asked: Any, made: Any, make: Make, cohort: int, means: Sequence[str]) -> str:
    """Return what one round with a pass comes to."""
    with tempfile.TemporaryDirectory() as folder:
        here = replace(asked, run_dir=Path(folder) / "run")
        try:
            step = make(cohort, means)
            result = experiment.run(here, replace(made, passes=(step,)), None).result
        except (FedrayError, ArithmeticError, ValueError) as error:
            return reason(error)
    is_finite = all(bool(leaf.buffer.isfinite().all()) for _, leaf in tree.leaves(result.state)
                    if isinstance(leaf, tree.Flat))  # fmt: skip
    return "trains" if is_finite else "diverges in the first round"


def reason(error: Exception) -> str:
    """Return why something is refused, in one sentence without line numbers, which change."""
    text = " ".join(str(error).split())
    text = re.sub(r"\s*\((?:[a-z]+, )?[\w./-]+\.py:\d+\)", "", text)
    text = re.sub(r"^[\w ]+ \+ \w+\([^)]*\): ", "", text)  # the plan's name
    text = re.split(r": (?:use|train|change|name|add|say|give|ask|lower|drop) |(?<=\w)\. [A-Z]", text)[0]
    return text.removeprefix("site_dp: ").replace("|", "/")


def page(options: Sequence[str] = ()) -> str:
    """Return the page, of all options or some."""
    before, log = Path.cwd(), logging.getLogger("fedray")
    level = log.level
    titles = ["option", *COLUMNS]
    table = f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|\n"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        log.setLevel(logging.CRITICAL)
        try:
            return HEAD + table + "".join(row(option) for option in options or sorted(SCHEMAS["algorithm"]))
        finally:
            os.chdir(before)
            log.setLevel(level)


def main(words: list[str] | None = None) -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--only", default="", help="options to print instead, with commas")
    chosen = parser.parse_args(words)
    text = page([option for option in chosen.only.split(",") if option])
    if chosen.only:
        print(text.removeprefix(HEAD))
    elif not chosen.check:
        PAGE.write_text(text, "utf-8")
    elif text != PAGE.read_text("utf-8"):
        print("docs/pass-matrix.md is old. Fix: python experiments/tools/pass_matrix.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
