"""`fedray status` and `fedray logs`: what a run is doing, and what was said in it."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from fedray.errors import ConfigError
from fedray.observe import log, status, wanted
from fedray.observe.lines import unread

FOLLOWED_S = 0.5  # between two looks at a log that is followed
SHOWN_HOSTS = 8
MAX_ERROR = 240  # characters of the last error; the log has all of it
UP_TO_DATE_S = 10.0
LEVELS = tuple(level.lower() for level in log.LEVELS[:4])


def add_parser(subparsers: Any) -> None:
    """Add the two commands to argparse's subparsers."""
    told = subparsers.add_parser("status", help="say what a run is doing now, or how it ended")
    told.add_argument("run", nargs="?", default="runs/latest", help="directory of a run (runs/latest)")
    told.add_argument("--json", action="store_true", help="print it as JSON")
    logs = subparsers.add_parser(
        "logs", help="show the log of a run: driver, aggregator and hosts, the first error on top",
        description="Rounds are counted from 0, as in rounds.jsonl.")  # fmt: skip
    logs.add_argument("run", nargs="?", default="runs/latest", help="directory of a run (runs/latest)")
    logs.add_argument("--site", metavar="ID", help="lines of this site or host")
    logs.add_argument("--round", type=int, metavar="R", help="lines of this round")
    logs.add_argument("--level", choices=LEVELS, default="info", help="lines of this level and above (info)")
    logs.add_argument("--follow", action="store_true", help="go on until the run ends")
    logs.add_argument("--json", action="store_true", help="print the lines as they are, JSON")


def run(args: argparse.Namespace) -> int:
    """Run one of the two commands and return the exit code."""
    from fedray.report.commands import find

    return {"status": _status, "logs": _logs}[args.command](args, find(args.run))


def _status(args: argparse.Namespace, folder: Path) -> int:
    found = status.read(folder)
    print(json.dumps(found) if args.json else "\n".join(status_lines(found)))
    return 0


def status_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the state of a run for people."""
    from fedray.live import clock

    elsewhere = "" if found.get("unreadable") else " from another machine"
    why = {"crashed": f": its process ({found.get('pid')}) is gone and has left no end",
           "silent": f": no heartbeat for {clock(found.get('heartbeat_age_s', 0))}{elsewhere}",
           "resuming": f" (it was {found.get('before')}): its first round has not begun"}
    reason = f": {found['reason']}" if found["reason"] else why.get(found["state"], "")
    lines = [f"{found['run']}: {found['state']}{reason}"]
    if found.get("unreadable"):
        lines.append(f"  {found['unreadable']} cannot be read: a machine that went down leaves such. Its "
                     "last change and the records of rounds tell this")
    if found["state"] == "running" and found.get("heartbeat_age_s", 0.0) > status.SILENT_S:
        lines.append(f"  told {clock(found['heartbeat_age_s'])} ago; a full disk takes nothing newer")
    lines += [*_rounds(found, clock), *_hosts(found, clock), *_cost(found, clock)]
    if found.get("last_error"):
        lines.append(f"  last error: {shorten(log.told(found['last_error']), MAX_ERROR, placeholder=' ...')}")
    if found.get("go_on"):
        lines.append(f"  go on with: {found['go_on']}")
    return lines


def _rounds(found: Mapping[str, Any], clock: Any) -> Iterator[str]:
    now, last = found.get("doing") or {}, found.get("last_round")
    if "rounds" in found:
        yield f"  {found['done']} of {found['rounds']} rounds done"
    elif "done" in found:
        yield f"  {found['done']} rounds done"
    if found["state"] == "running" and now.get("doing") == "round":
        asked = f", stage {now['stage']}: {now['answered']} of {now['asked']} sites have answered" \
            if now["asked"] else ""
        yield f"  in round {now['round'] + 1} for {clock(found['now'] - now['since'])}{asked}"
    elif found["state"] == "running" and now.get("doing"):
        yield f"  in the {now['doing']} after round {now['round'] + 1}"
    if last:
        failed = "".join(f", {count} x {kind}" for kind, count in sorted(last["failed"].items()))
        counted = f"{last['counted']} of {last['asked']} sites counted, {last['late']} late{failed}"
        slow = f"{clock(last['seconds'])}, {clock(last['waited_s'])} of it for the slowest hosts"
        yield f"  last round: {counted}; {slow}"


def _hosts(found: Mapping[str, Any], clock: Any) -> Iterator[str]:
    hosts = found.get("hosts") or []
    if found["state"] != "running" or not hosts or found.get("where") != "ray":
        return
    fresh = [host for host in hosts if (host["seen_age_s"] or 0.0) < UP_TO_DATE_S]
    yield f"  hosts: {len(hosts)}, {len(fresh)} of them heard of in the last {UP_TO_DATE_S:.0f} s"
    oldest = sorted(hosts, key=lambda host: -(host["seen_age_s"] or 0.0))
    for host in oldest[:SHOWN_HOSTS]:
        age = "not heard of yet" if host["seen_age_s"] is None else f"{clock(host['seen_age_s'])} ago"
        work = f", {host['doing']} for {clock(found['now'] - host['since'])}" if host["doing"] else ""
        yield f"    {host['host']}: {age}{work}"
    if len(hosts) > SHOWN_HOSTS:
        yield f"    and {len(hosts) - SHOWN_HOSTS} more: --json names them"


def _cost(found: Mapping[str, Any], clock: Any) -> Iterator[str]:
    from fedray.live import size

    if "bytes_up" in found:
        yield f"  sent {size(found['bytes_up'])} up, {size(found['bytes_down'])} down"
    saved = found.get("checkpoint")
    if saved:
        yield f"  checkpoint after round {saved['round'] + 1}, {clock(saved['age_s'])} ago"
    elif found.get("rounds") and found["state"] != "done":
        yield "  no checkpoint yet"
    if found["state"] == "running" and found.get("left_s") is not None:
        yield f"  about {clock(found['left_s'])} left, at {found['seconds_a_round']:.2f} s a round"


def _logs(args: argparse.Namespace, folder: Path) -> int:
    if not (folder / log.FILE).exists():
        raise ConfigError(f"{folder} has no {log.FILE}: it has not begun to train, or an older fedray made "
                          f"it. Fix: read {folder / 'log.txt'}")
    arrived, bad = log.arrived(folder)
    lines = list(log.matching(log.in_time(arrived), args.site, args.round, args.level.upper()))
    if bad:
        print(unread(log.FILE, bad), file=sys.stderr)
    if not lines and not (args.follow and _is_going_on(folder)):
        known = wanted.known(folder, arrived)
        print(wanted.nothing(known, args.site, args.round, args.level), file=sys.stderr)
    _show(lines, args.json)
    if args.follow:
        _follow(args, folder, len(arrived))
    return 0


def _is_going_on(folder: Path) -> bool:
    return status.read(folder)["state"] in ("running", "resuming")


def _show(lines: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print lines, the first error above all of them where people read."""
    first = next((line for line in lines if line["level"] in log.LEVELS[3:]), None)
    if first is not None and not as_json:
        print(f"first error: {log.told(first)}\n")
    for line in lines:
        print(json.dumps(line) if as_json else log.told(line))


def _follow(args: argparse.Namespace, folder: Path, shown: int) -> None:
    """Print further lines in the order in which they arrive, until the run is over."""
    while True:
        is_over = not _is_going_on(folder)
        arrived = log.arrived(folder)[0]
        for line in log.matching(arrived[shown:], args.site, args.round, args.level.upper()):
            print(json.dumps(line) if args.json else log.told(line), flush=True)
        shown = max(shown, len(arrived))
        if is_over:
            return
        time.sleep(FOLLOWED_S)
