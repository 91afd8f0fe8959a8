"""What does clipping each row's gradient cost beside a plain backward pass?

    python experiments/benchmarks/ghost.py [--runs 40] [--json results/ghost.json]

Forward, backward and the sum of gradients of one batch, on one thread: plain, clipped by book-keeping, and
clipped by `torch.func.vmap(grad)`. In the plain form of a module (autograd) and in the stacked form (layers
by hand, one site). The variants are timed in turns; process CPU time, after a warm-up. Not in the times: the
draw of the batch, noise, and the step. The last line is JSON.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import fedray as fr  # before torch: it settles how products are rounded

import torch  # isort: skip

from fedray.data.site import SiteData
from fedray.learn.batches import Batch
from fedray.learn.clipping import Clipping
from fedray.learn.ghost import Units
from fedray.learn.layout import layout
from fedray.learn.rows import stackable
from fedray.learn.stacked import Extras, Training
from fedray.rng import Key

FEATURES, BOUND, MOST = 100, 1.0, 1.3
CASES = ((64, (128, 64)), (256, (128, 64)), (256, (512, 256)))
INNER = 4  # passes a timing


def module_form(hidden: tuple[int, ...], batch: Batch, rows: int) -> dict[str, Callable[[], object]]:
    """Return the three variants by autograd."""
    model = fr.learn.mlp(FEATURES, hidden)
    params = model.init(0)
    leaves = {name: params[name].clone().requires_grad_() for name in params}
    units = Units.alone(rows, torch.device("cpu"))
    ghost, mapped = Clipping(model), Clipping(model, reason="asked for")

    def plain() -> object:
        return torch.autograd.grad(model.loss(leaves, batch), list(leaves.values()))

    return {
        "plain": plain,
        "ghost": lambda: ghost.clipped_sum(leaves, {}, batch, units, BOUND),
        "vmap": lambda: mapped.clipped_sum(leaves, {}, batch, units, BOUND),
    }


def stacked_form(hidden: tuple[int, ...], batch: Batch, rows: int) -> dict[str, Callable[[], object]]:
    """Return a plain and a clipped step of one site by hand."""
    model = fr.learn.mlp(FEATURES, hidden)
    start = model.init(0)
    key = Key(0, 0, "h")

    def step_of(clip: float | None) -> Callable[[], object]:
        local = fr.learn.sgd(model, lr=0.1, batch_size=rows, steps=1, record_clip=clip, momentum=0.5)
        how = stackable(local)
        assert not isinstance(how, str)
        plan = layout([rows], [1], rows, 4 * (FEATURES + 1), torch.float32)
        training = Training(local, how, start.schema, torch.device("cpu"), 1, plan.width)
        extras = Extras(None, start.buffer, 0.0, 0.1)
        training.begin(plan, start.buffer, extras, [key])
        return lambda: training.run([SiteData(batch)])

    return {"plain": step_of(None), "ghost": step_of(BOUND)}


def timed(variants: dict[str, Callable[[], object]], runs: int) -> dict[str, dict[str, float]]:
    """Return milliseconds of one pass of each variant, timed in turns."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for run in range(runs + 3):
        for name, variant in variants.items():
            inner = INNER if name != "vmap" else 1
            started = time.process_time()
            for _ in range(inner):
                variant()
            if run >= 3:
                found[name].append((time.process_time() - started) / inner * 1e3)
    return {
        name: {"min": min(all_), "median": statistics.median(all_), "max": max(all_)}
        for name, all_ in found.items()
    }


def main() -> int:
    """Print a table; the exit code is 1 where clipping at B = 256 costs more than it may."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rows_of, holds = [], True
    print(f"{'form':8s} {'B':>4s} {'hidden':12s} {'plain':>16s} {'ghost':>16s} {'vmap':>16s}  ghost/plain")
    for form, make in (("module", module_form), ("stacked", stacked_form)):
        for rows, hidden in CASES:
            batch = {
                "x": torch.randn(rows, FEATURES, generator=generator),
                "y": torch.randint(0, 2, (rows,), generator=generator).float(),
            }
            found = timed(make(hidden, batch, rows), given.runs)
            ratio = found["ghost"]["median"] / found["plain"]["median"]
            holds &= ratio <= MOST or rows != 256
            cells = [
                f"{found[name]['min']:.2f}/{found[name]['median']:.2f} ms" if name in found else "-"
                for name in ("plain", "ghost", "vmap")
            ]
            told_of = "".join(f"{cell:>17s}" for cell in cells)
            print(f"{form:8s} {rows:4d} {hidden!s:12s}{told_of}  {ratio:.2f}")
            rows_of.append({"form": form, "rows": rows, "hidden": hidden, "ms": found, "ratio": ratio})
    print(f"ghost <= {MOST} x plain at B = 256: {'holds' if holds else 'FAILS'}")
    told = {
        "machine": platform.processor() or platform.machine(), "load": os.getloadavg()[0],
        "python": platform.python_version(), "torch": torch.__version__, "runs": given.runs, "holds": holds,
        "cases": rows_of,
    }  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
