"""Write docs/algorithms.md: every `algorithm=` option, from its docstring and from one round that it runs.

    python experiments/tools/catalogue.py [--check]

What it is and where it comes from is said by the module that holds its round; what travels is counted in that
round, in models: up for a site alone in its process, down for a host. `--check` writes nothing and fails
where the page is not what would be written.
"""

import argparse
import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import fedray as fr
from fedray import experiment, tree
from fedray.config import SCHEMAS, compose_run
from fedray.learn import optimizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "algorithms.md"
WORDS = ("experiment=debug", "report=none", "evaluate.bins=50", "rounds=1", "model=mlp")
SMALL = ("data.scale=0.02",)
OPTIMIZERS = {
    "fedavgm": optimizer.momentum,
    "fedadagrad": optimizer.adagrad,
    "fedadam": optimizer.adam,
    "fedyogi": optimizer.yogi,
}
MOMENTUM = "Hsu, Qi, Brown, Measuring the effects of non-identical data distribution, 2019"
PARTIES = ("data=parties",)
MORE = {
    "fedbn": (*SMALL, "model.norm=batch"),
    "fedmatch": (*SMALL, "local.lr=0.01"),
    "private_heads": ("data=assays", *SMALL),
    "vertical_logistic": PARTIES,
    "vertical_towers": PARTIES,
}
HEAD = """# Algorithms

`fedray run algorithm=fednova`, or any other of the first column; in Python:

```python
import fedray as fr

local = fr.learn.sgd(fr.learn.logistic(8), lr=0.1)
print(fr.explain(fr.compile(fr.algorithms.fednova(local))))
```

Every one is tested against a plain loop in numpy, written from its paper (`tests/unit/algorithms/`).
Deviations from the paper are in the docstring: `help(fr.algorithms.fednova)`, or the file of that name.

Up and down are counted in the first round of a network, in models: what one site sends that is alone in its
process (several sites of a process send one sum), and what a host receives; of vertical algorithms it grows
with the records ([vertical.md](vertical.md)). *Only sums* says that the server sees no single site's value,
as secure sums need ([pass-matrix.md](pass-matrix.md) has each algorithm with each protection). *Together*
says that the sites of a process train as one program. *At own pace* says whether `fr.buffered` runs it
([asynchronous.md](asynchronous.md)).

This page is written by `python experiments/tools/catalogue.py`.

| option | what it is | source | a site keeps | up | down | only sums | together | at own pace |
|---|---|---|---|---|---|---|---|---|
"""


def line(option: str) -> str:
    """Return the row of an option."""
    composed = compose_run([*WORDS, f"algorithm={option}", *MORE.get(option, SMALL)])
    outcome = experiment.start(composed, live=False)
    result = outcome.result
    record = result.metrics[0]
    model = tree.nbytes(tree.leaves(result.params)[0][1])  # clustered algorithms have several
    if result.plan.needs_all:  # no site has the model: what travels grows with the records
        model = 0
    said, origin = described(option)
    explained = fr.explain(result.plan)
    gathers = [row["name"] for row in fr.core.explain.egress_rows(result.plan) if row["visible"][:3] == "yes"]
    cells = [
        f"`{option}`",
        said,
        origin,
        ", ".join(result.plan.slots) or "-",
        models(record.site_bytes, record.counted, model),
        models(record.bytes_down, 1, model),
        f"no: {', '.join(gathers)}" if gathers else "yes",
        together(explained),
        at_own_pace(result.plan),
    ]
    return "| " + " | ".join(cells) + " |\n"


def described(option: str) -> tuple[str, str]:
    """Return what an option is and its source, as the docstrings of its function and of its module say."""
    if option in OPTIMIZERS:
        function: Any = OPTIMIZERS[option]
        origin = MOMENTUM if option == "fedavgm" else source(text_of(sys.modules[function.__module__]))
        return first_sentence(text_of(function)), origin
    if option == "pooled":
        return "the baseline of one site that holds all rows, in simulation only", "-"
    function = getattr(fr.algorithms, option)
    module = sys.modules[function.__module__]
    texts = [text_of(function), text_of(module)]
    if module.__name__.endswith(f".{option}"):
        said = first_sentence(texts[1].split(": ", 1)[-1])
    else:
        said = first_sentence(texts[0])
    found = [origin for text in texts if (origin := source(text)) != "-"]
    return said, found[0] if found else "-"


def text_of(thing: Any) -> str:
    """Return a docstring on one line."""
    return " ".join(str(thing.__doc__).split())


def first_sentence(text: str) -> str:
    """Return the first sentence without its full stop."""
    return re.split(r"\.(?: [A-Z]|$)", text)[0]


def source(text: str) -> str:
    """Return the first paper that a docstring names: authors, title, venue and year."""
    found = re.search(r"Source: (.*?\b(?:19|20)\d\d)\b", text)
    return found.group(1) if found else "-"


def models(number: int | None, over: int, model: int) -> str:
    """Return bytes as a number of models."""
    if number is None or not over or not model:
        return "-"
    return f"{number / over / model:.2f}".rstrip("0").rstrip(".")


def together(explained: str) -> str:
    """Return how local training runs, as `explain` says it."""
    loops = re.findall(r"\[site by site: ([^\]]*)\]", explained)
    if loops:
        return f"no: {loops[0]}"
    return "yes" if "[stacked" in explained else "no"


def at_own_pace(plan: Any) -> str:
    """Return whether the buffered schedule runs a plan, or why not."""
    if len(plan.site_stages) != 1:
        return f"no: {len(plan.site_stages)} exchanges"
    if plan.every or plan.is_by_region or plan.needs_all:
        return "no: needs every site" if plan.needs_all else "no: goes by regions"
    try:
        fr.buffered().check(plan)
    except fr.errors.ScheduleError:
        fr.buffered(discount="constant").check(plan)
        return "with discount=constant"
    return "yes"


def page() -> str:
    """Return the page."""
    before, log = Path.cwd(), logging.getLogger("fedray")
    level = log.level
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        log.setLevel(logging.ERROR)
        try:
            return HEAD + "".join(line(option) for option in sorted(SCHEMAS["algorithm"]))
        finally:
            os.chdir(before)
            log.setLevel(level)


def main(words: list[str] | None = None) -> Any:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    text = page()
    if not parser.parse_args(words).check:
        PAGE.write_text(text, "utf-8")
    elif text != PAGE.read_text("utf-8"):
        print("docs/algorithms.md is old. Fix: python experiments/tools/catalogue.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
