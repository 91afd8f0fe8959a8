"""`fedray data get|build|synth|describe|validate`: one function a command; what is heavy is imported inside.

Every problem is a FedrayError before anything is written; the command line prints it and exits with 2.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedray.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from fedray.data.contract import Contract
    from fedray.data.findings import Finding

Readers = Mapping[str, Callable[[], "pd.DataFrame"]]
KNOBS = {"size_sd": float, "intercept_sd": float, "slope_sd": float, "value_sd": float, "missing_sd": float,
         "unit_mix": float, "region_sd": float, "unit_faults": int, "no_labs": int, "flipped_labels": int}
_MAX_SITES = 20  # lines of `describe` without --all
_MAX_FINDINGS = 10  # two lines each of `validate` without --all, so that a message has at most 25 lines
_DONE, _BAD = 0, 2


def add_parser(subparsers: Any) -> None:
    """Add `data` and its commands to the command line."""
    data = subparsers.add_parser("data", help="get, build, generate and check data sets")
    commands = data.add_subparsers(dest="data_command", required=True)
    get = _command(commands, "get", _get, "download open data from its publisher, with checksum and resume")
    get.add_argument("name", metavar="eicu-demo|heart-disease")
    get.add_argument("--out", type=Path, help="folder (default: data/NAME)")
    _add_build(commands)
    _add_synth(commands)
    describe = _command(commands, "describe", _describe, "print sites, rows, events and missing values")
    validate = _command(commands, "validate", _validate, "check every site's table against the contract")
    for parser in (describe, validate):
        parser.add_argument("path", type=Path, help="a built data set, or a file or folder of CSV or Parquet")
        parser.add_argument("--contract", type=Path, help="YAML file, for tables that are not built")
        parser.add_argument("--target", help="outcome column, where there is no contract")
        parser.add_argument("--site-column", help="column that names the site, where a file holds several")
        parser.add_argument("--all", action="store_true", help="print every line")
        parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Run one command and return its exit code. Raises: FedrayError on bad input."""
    try:
        return int(args.action(args))
    except OSError as error:
        raise DataError(f"data {args.data_command}: {error.filename or 'a file'}: {error.strerror}. Fix: "
                        "give folders that are there and that you may read and write") from error


def _command(commands: Any, name: str, action: Callable[[argparse.Namespace], int],
             text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(action=action)
    return parser


def _add_build(commands: Any) -> None:
    kinds = commands.add_parser("build", help="make one Parquet file a hospital from original tables")
    sources = kinds.add_subparsers(dest="source", required=True)
    eicu = _command(sources, "eicu", _build_eicu, "eICU-CRD tables, csv or csv.gz, the demo or all")
    heart = _command(sources, "heart-disease", _build_heart, "the four processed files of UCI Heart Disease")
    for parser in (eicu, heart):
        parser.add_argument("--src", type=Path, required=True, help="folder of the original tables")
        parser.add_argument("--out", type=Path, required=True, help="folder of the data set")
    eicu.add_argument("--hourly", type=Path, help="hourly grid, or folder of lab and vitalPeriodic "
                                                  "(default: found)")
    eicu.add_argument("--task", default="severity", help="severity (default) or landmark24")
    eicu.add_argument("--cohort", default="main", help="main (default) or grid24, which has the first 24 "
                                                       "hours")
    eicu.add_argument("--seeds", type=int, default=20, help="number of random splits (default: 20)")
    eicu.add_argument("--test-fraction", type=float, default=0.3, help="share of test patients (default: "
                                                                       "0.3)")


def _add_synth(commands: Any) -> None:
    synth = _command(commands, "synth", _synth, "write a synthetic ICU federation as eICU tables")
    synth.add_argument("--out", type=Path, required=True, help="folder of the tables")
    synth.add_argument("--scale", type=float, default=0.1, help="1 is 200,859 stays (default: 0.1)")
    synth.add_argument("--seed", type=int, default=7)
    synth.add_argument("--hospitals", type=int, default=208)
    synth.add_argument("--periodic", action="store_true", help="add vitalPeriodic and lab")
    synth.add_argument("--no-hourly", action="store_true", help="leave out the hourly grid")
    synth.add_argument("--csv", action="store_true", help="write .csv instead of .csv.gz")
    for knob, kind in KNOBS.items():
        synth.add_argument(f"--{knob.replace('_', '-')}", type=kind, help="see `fedray run --explain data`")


def _get(args: argparse.Namespace) -> int:
    from fedray.data.download import get
    out = get(args.name, args.out or Path("data") / args.name, say=print)
    print(f"next: fedray data build {'eicu' if args.name == 'eicu-demo' else args.name} --src {out} "
          f"--out data/{args.name}-built")
    return _DONE


def _build_eicu(args: argparse.Namespace) -> int:
    from fedray.data.eicu import build
    if args.seeds < 1:
        raise DataError(f"data build eicu: --seeds {args.seeds} must be 1 or more. Fix: --seeds 20")
    build(args.src, args.out, hourly=args.hourly, task=args.task, cohort=args.cohort, seeds=range(args.seeds),
          test_fraction=args.test_fraction)
    return _say_built(args.out)


def _build_heart(args: argparse.Namespace) -> int:
    from fedray.data.heart import build
    build(args.src, args.out)
    return _say_built(args.out)


def _say_built(out: Path) -> int:
    from fedray.data.folder import read_index
    index = read_index(out)
    sites = index["sites"]
    print(f"{out}: {index['name']}, {len(sites)} sites, {sum(site['rows'] for site in sites):,} rows, "
          f"{sum(site['events'] for site in sites):,} events, version {index['version']}")
    print(f"next: fedray data describe {out}")
    return _DONE


def _synth(args: argparse.Namespace) -> int:
    from fedray.data.synth_tables import write
    knobs = {knob: getattr(args, knob) for knob in KNOBS if getattr(args, knob) is not None}
    rows = write(args.out, scale=args.scale, seed=args.seed, num_hospitals=args.hospitals,
                 periodic=args.periodic, hourly=not args.no_hourly, compress=not args.csv, **knobs)
    for table, count in rows.items():
        print(f"{count:>12,}  {table}")
    print(f"next: fedray data build eicu --src {args.out} --out {args.out}-built")
    return _DONE


def _open(args: argparse.Namespace) -> "tuple[Contract, Readers]":
    """Return the contract and a reader of each site's table, of a built data set or of plain tables."""
    from fedray.data.folder import INDEX, read_frames
    if (args.path / INDEX).is_file():
        return read_frames(args.path)
    from fedray.data.tables import OpenTable, csv
    data = csv(args.path, args.contract, target=args.target, site_column=args.site_column)
    tables = {site: opener for site, opener in data.sites.items() if isinstance(opener, OpenTable)}
    return next(iter(tables.values())).contract, {site: table.frame for site, table in tables.items()}


def _describe(args: argparse.Namespace) -> int:
    contract, readers = _open(args)
    lines = []
    for site, read in readers.items():
        frame = contract.apply_missing(read())
        inputs = frame[list(contract.features)]
        events = float((frame[contract.outcome] == 1).sum()) if contract.task == "binary" else None
        lines.append({"site": site, "rows": len(frame), "events": None if events is None else int(events),
                      "missing": float(inputs.isna().to_numpy().mean()) if inputs.size else 0.0})
    if args.json:
        print(json.dumps({"name": contract.name, "version": contract.version, "outcome": contract.outcome,
                          "features": len(contract.features), "sites": lines}))
        return _DONE
    _print_sites(contract, lines, None if args.all else _MAX_SITES)
    return _DONE


def _print_sites(contract: "Contract", lines: list[dict[str, Any]], limit: int | None) -> None:
    rows = sum(line["rows"] for line in lines)
    events = sum(line["events"] or 0 for line in lines)
    missing = sum(line["missing"] * line["rows"] for line in lines) / max(rows, 1)
    width = max(len("all sites"), *(len(line["site"]) for line in lines))
    print(f"{contract.name} version {contract.version}: {len(contract.features)} features, outcome "
          f"{contract.outcome} ({contract.task})")
    print(f"{'site':<{width}} {'rows':>9} {'events':>8} {'missing':>8}")
    for line in [*lines[:limit], {"site": "all sites", "rows": rows, "events": events, "missing": missing}]:
        shown = "-" if contract.task != "binary" else f"{line['events']:,}"
        print(f"{line['site']:<{width}} {line['rows']:>9,} {shown:>8} {line['missing']:>8.1%}")
    if limit is not None and len(lines) > limit:
        print(f"({len(lines) - limit} more sites: --all)")


def _validate(args: argparse.Namespace) -> int:
    import numpy as np

    from fedray.data.findings import read_values
    contract, readers = _open(args)
    found: list[Finding] = []
    classes: set[float] = set()
    for site, read in readers.items():
        frame = read()
        found += contract.check(frame, site)
        if contract.outcome in frame.columns and contract.task != "number":
            values, _ = read_values(contract[contract.outcome], frame[contract.outcome])
            classes |= set(values[~np.isnan(values)].tolist())
    if len(classes) == 1:
        found.insert(0, _one_class(contract.outcome))
    errors = sum(finding.level == "error" for finding in found)
    if args.json:
        told = [asdict(one) for one in found]
        print(json.dumps({"sites": len(readers), "errors": errors, "findings": told}))
    else:
        _print_findings(contract, len(readers), found, None if args.all else _MAX_FINDINGS)
    return _BAD if errors else _DONE


def _one_class(outcome: str) -> "Finding":
    from fedray.data.findings import Finding
    return Finding(site="", column=outcome, check="one class", count="", fix="check how the outcome is coded",
                   text=f"the outcome {outcome} has one class only over all sites: nothing can be learnt")


def _print_findings(contract: "Contract", num_sites: int, found: "list[Finding]", limit: int | None) -> None:
    """Print findings, one for all sites that share it, errors first; errors go to standard error."""
    groups: dict[tuple[str, str, str, str, str], list[str]] = {}
    for one in sorted(found, key=lambda finding: finding.level != "error"):
        groups.setdefault((one.level, one.column, one.check, one.text, one.fix), []).append(one.site)
    errors = any(one.level == "error" for one in found)
    stream = sys.stderr if errors else sys.stdout
    print(f"{contract.name} version {contract.version}, {num_sites} sites: "
          f"{'the data cannot be used' if errors else 'no errors'}", file=stream)
    for (level, _, _, text, fix), sites in list(groups.items())[:limit]:
        named = ", ".join(sites[:3]) + (f" and {len(sites) - 3} more" if len(sites) > 3 else "")
        print(f"  - {level}{f', site {named}' if sites[0] else ''}: {text}\n    fix: {fix}", file=stream)
    if limit is not None and len(groups) > limit:
        print(f"  ... {len(groups) - limit} more: --all", file=stream)
