"""`fedray privacy`: plan noise before a run, show what a ledger holds, verify that nobody touched it."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedray.errors import ConfigError, LedgerError


def add_parser(subparsers: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = subparsers.add_parser("privacy", help="plan noise; show or verify a privacy ledger")
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="what was spent, by data set and unit")
    show.add_argument("ledger", help="file of a ledger")
    show.add_argument("--delta", type=float, default=None, help="delta at which epsilon is told")
    show.add_argument("--json", action="store_true", help="print it as JSON")
    verify = actions.add_parser("verify", help="check a ledger's chain; exit code 1 where it is broken")
    verify.add_argument("ledger", help="file of a ledger")
    verify.add_argument("--run", default=None, metavar="RUN",
                        help="directory of a run, whose last link must be in it")  # fmt: skip
    verify.add_argument("--json", action="store_true", help="print it as JSON")
    _add_plan(actions)


def _add_plan(actions: Any) -> None:
    plan = actions.add_parser(
        "plan", help="noise for an epsilon, epsilon for a noise, and what is left to learn"
    )
    plan.add_argument("mode", help="record, distributed_record, site_dp, site_dp_adaptive, "
                      "site_dp_distributed, site_dp_matrix or site_dp_local")  # fmt: skip
    plan.add_argument("--rounds", type=int, required=True, help="rounds of the run")
    plan.add_argument(
        "--epsilon", type=float, help="what may be spent; without it and --noise: 1, 3, 8 and 20"
    )
    plan.add_argument("--noise", type=float, help="noise multiplier: standard deviation over the clip bound")
    plan.add_argument("--delta", type=float, default=1e-5, help="1e-5 by default; well under 1 / patients")
    plan.add_argument("--params", type=int, help="numbers in the model, for the length of the noise")
    plan.add_argument("--cohort", type=int, help="sites of a round (modes whose unit is a site)")
    plan.add_argument("--population", type=int, help="all sites")
    plan.add_argument("--poisson", action="store_true", help="sites are drawn by schedule.sampling=poisson")
    plan.add_argument(
        "--units", type=int, help="patients of the site, or of all (modes whose unit is a patient)"
    )
    plan.add_argument(
        "--batch", type=float, help="expected patients of a step; with --units it gives the rate"
    )
    plan.add_argument("--rate", type=float, help="probability that a step takes a patient")
    plan.add_argument("--steps", type=int, default=1, help="steps of a round")
    plan.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> int:
    """Run one of the three actions and return the exit code."""
    return {"show": _show, "verify": _verify, "plan": _plan}[args.action](args)


def _opened(path: str) -> Any:
    from fedray.accounting.ledger import PrivacyLedger

    if not Path(path).is_file():
        raise ConfigError(f"{path}: there is no ledger of this name. Fix: name the file of ledger.path")
    return PrivacyLedger(path, is_read_only=True)


def _show(args: argparse.Namespace) -> int:
    ledger = _opened(args.ledger)
    delta = args.delta or ledger.delta
    spent = ledger.accounts(delta)
    runs = {run: ledger.epsilon(delta, run=run) for run in ledger.runs}
    if args.json:
        rows = [
            {"dataset": name, "unit": unit, "epsilon": epsilon} for (name, unit), epsilon in spent.items()
        ]
        print(json.dumps({"delta": delta, "entries": ledger.head[0], "accounts": rows, "runs": runs}))
        return 0
    print(
        f"{ledger.head[0]} entries, whole. Epsilon at delta {delta:g}, add or remove one unit, all studies:"
    )
    for epsilon, unit, count in _grouped(spent):
        print(f"  {epsilon:8.4f}  of {count} data set{'s' * (count > 1)}, unit: {unit}")
    print("By run, at the most of any data set:")
    for name, epsilon in runs.items():
        print(f"  {epsilon:8.4f}  {name}")
    return 0


def _grouped(spent: Mapping[tuple[str, str], float]) -> list[tuple[float, str, int]]:
    """Return how many data sets of a unit have spent the same, most first."""
    counts: dict[tuple[float, str], int] = {}
    for (_, unit), epsilon in spent.items():
        counts[epsilon, unit] = counts.get((epsilon, unit), 0) + 1
    return [(epsilon, unit, count) for (epsilon, unit), count in sorted(counts.items(), reverse=True)]


def _verify(args: argparse.Namespace) -> int:
    problem = ""
    entries, head = 0, ""
    try:
        ledger = _opened(args.ledger)
        entries, head = ledger.head
        if args.run is not None:
            kept = _last_link_of(Path(args.run))
            if not ledger.holds(kept["entries"], kept["head"]):
                raise LedgerError(
                    f"E_LEDGER: entry {kept['entries'] - 1} is not the one that {args.run} has seen: the end "
                    "was cut off, or it is another ledger"
                )
    except LedgerError as error:
        problem = str(error)
    if args.json:
        print(json.dumps({"is_whole": not problem, "entries": entries, "head": head, "problem": problem}))
    else:
        print(problem or f"whole: {entries} entries, the last link is {head}")
    return 1 if problem else 0


def _last_link_of(run: Path) -> dict[str, Any]:
    told = json.loads((run / "result.json").read_text()) if (run / "result.json").exists() else {}
    if not told.get("privacy"):
        raise ConfigError(f"{os.fspath(run)}: this run has charged no ledger. Fix: name another run")
    found: dict[str, Any] = told["privacy"]["ledger"]
    return found


def _plan(args: argparse.Namespace) -> int:
    from fedray.accounting import planning

    rate = args.rate
    if rate is None and args.batch is not None and args.units:
        rate = min(1.0, args.batch / args.units)
    asked = planning.Asked(
        mode=args.mode, rounds=args.rounds, steps=args.steps, delta=args.delta, epsilon=args.epsilon,
        noise=args.noise, cohort=args.cohort, population=args.population, is_poisson=args.poisson,
        units=args.units, rate=rate, params=args.params,
    )  # fmt: skip
    found = planning.answer(asked)
    if args.json:
        print(json.dumps(found.told()))
        return 0
    print(f"{found.mode}: protects a {found.unit} ({found.adjacency}); for: {found.when}")
    print(f"noise by the {found.noise_by}; trusted with plaintext: {found.trusted}")
    print(f"amplification by sampling: {found.amplification}; {found.rounds} rounds")
    print(f"{'epsilon':>9} {'delta':>9} {'noise mult.':>12} {'noise/coord.':>13} {'noise length':>13}")
    for row in found.planned:
        length = _number(row.noise_norm) + (" drowns it" if row.is_hopeless else "")
        print(f"{row.epsilon:9.4f} {row.delta:9.2g} {row.noise_multiplier:12.4f} "
              f"{_number(row.noise_per_coordinate):>13} {length:>13}")  # fmt: skip
    print("noise is on the mean that a round or a step applies, in clip bounds; that mean is at most 1 long")
    for note in found.notes:
        print(f"note: {note}")
    return 0


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
