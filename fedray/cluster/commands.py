"""`fedray cluster check`, `certs`, `plan`, `runs` and `stop`: is it fit, who may join, what runs there."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedray.cluster import certs, planner
from fedray.errors import ConfigError
from fedray.runtime.credentials import ENDS_SOON_DAYS, Certificate, read_certificate
from fedray.runtime.findings import FAIL, Finding
from fedray.runtime.handshake import parse


def add_parser(subparsers: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = subparsers.add_parser(
        "cluster", help="check a Ray cluster; make its certificates; plan its traffic"
    )
    actions = parser.add_subparsers(dest="action", required=True)
    _add_check(actions)
    planner.add_parser(actions)
    _add_runs(actions)
    made = actions.add_parser("certs", help="an authority, certificates of nodes, and the token")
    kinds = made.add_subparsers(dest="certs_action", required=True)
    init = _add(kinds, "init", _init, "make an authority of one's own")
    init.add_argument("--days", type=int, default=certs.CA_DAYS, help=f"valid for ({certs.CA_DAYS})")
    init.add_argument("--renew", action="store_true", help="same key, new validity")
    node = _add(kinds, "node", _node, "make the certificate of a node")
    node.add_argument("name", metavar="NAME", help="name of the node's folder, such as h001")
    node.add_argument("--ip", action="append", default=[], metavar="IP", help="address of the node; several")
    node.add_argument(
        "--dns", action="append", default=[], metavar="NAME", help="DNS name of the node; several"
    )
    node.add_argument("--days", type=int, default=certs.NODE_DAYS, help=f"valid for ({certs.NODE_DAYS})")
    node.add_argument("--renew", action="store_true", help="new key; addresses as before where none is given")
    show = _add(kinds, "show", _show, "list certificates; exit code 1 where one has ended")
    show.add_argument("--json", action="store_true", help="print them as JSON")
    token = _add(kinds, "token", _token, "make the token that all nodes share")
    token.add_argument("--file", type=Path, default=None, help="file to make (default: token in the folder)")


def _add_check(actions: Any) -> None:
    check = actions.add_parser("check", help="check the cluster, from any of its nodes")
    check.set_defaults(do=_check)
    check.add_argument(
        "--address", metavar="HOST:PORT", help="the head's; without it only this machine is checked"
    )
    check.add_argument("--site-map", metavar="FILE", help="check labels and data of every site in it")
    check.add_argument("--all-pairs", action="store_true", help="each node's way to each other too")
    check.add_argument("--node-ip", action="append", default=[], metavar="IP",
                       help="without --address: what others will call this node; several")  # fmt: skip
    check.add_argument("--json", action="store_true", help="print the findings as JSON")


def _add_runs(actions: Any) -> None:
    runs = actions.add_parser("runs", help="list the runs that stand on a cluster, and who drives them")
    runs.add_argument("--json", action="store_true", help="print them as JSON")
    runs.set_defaults(do=_runs)
    stop = actions.add_parser("stop", help="end a run's aggregator and its hosts, for good")
    stop.add_argument("run", metavar="RUN", help="name of the run, as `fedray cluster runs` lists it")
    stop.add_argument("--force", action="store_true", help="even where a driver was heard a moment ago")
    stop.set_defaults(do=_stop)
    for parser in (runs, stop):
        parser.add_argument("--address", metavar="HOST:PORT", required=True, help="the head's")


def _add(
    kinds: Any, name: str, do: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = kinds.add_parser(name, help=text, description=text)
    parser.add_argument("--folder", type=Path, default=certs.HOME, help=f"(default: {certs.HOME})")
    parser.set_defaults(do=do)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run one command and return its exit code. Raises: FedrayError on bad input."""
    try:
        return int(args.do(args))
    except OSError as error:
        if args.action != "certs":
            raise
        raise ConfigError(
            f"the folder of certificates cannot be made, read or written ({type(error).__name__}). "
            "Fix: --folder FOLDER, one that is yours and no file"
        ) from error


def _check(args: argparse.Namespace) -> int:
    """Print every finding and return 0, or 1 where one failed."""
    from fedray.cluster import preflight

    sites = None
    if args.site_map:
        from fedray.cluster.site_map import SiteMap

        sites = SiteMap.read(args.site_map).sites
    began, findings = time.monotonic(), []
    for finding in preflight.check(preflight.Asked(args.address, sites, args.node_ip, args.all_pairs)):
        findings.append(finding)
        if not args.json:
            print(finding, flush=True)
    return _told(findings, time.monotonic() - began, args.json)


def _runs(args: argparse.Namespace) -> int:
    """Print the runs that stand on a cluster, with or without a driver."""
    found = _standing(args.address).leftovers()
    if args.json:
        print(json.dumps(found))
        return 0
    for run_name, facts in found.items():
        told = f"does not answer ({facts['error']})" if "error" in facts else (
            f"driven by {facts['driver'] or 'nobody'}, silent for {facts['silent_s']:.0f} s"
        )
        print(f"{run_name}: {told}")
    if not found:
        print("no run's aggregator is there")
    return 0


def _stop(args: argparse.Namespace) -> int:
    """End what a run has left on a cluster."""
    _standing(args.address).stop(args.run, args.force)
    print(f"{args.run}: its aggregator and its hosts are ended; checkpoints stay")
    return 0


def _standing(address: str) -> Any:
    """Join the cluster at an address, and return the module that knows of the runs there.

    Raises ConfigError where it is no address of a cluster: `local` would start a Ray of our own.
    """
    parse(address)
    from fedray.runtime import ray_standing
    from fedray.runtime.ray_start import start_ray

    start_ray(address)
    return ray_standing


def _told(findings: Sequence[Finding], seconds: float, as_json: bool) -> int:
    failed = sum(finding.status == FAIL for finding in findings)
    if as_json:
        checks = [asdict(finding) for finding in findings]
        print(json.dumps({"ok": not failed, "seconds": round(seconds, 2), "checks": checks}))
    elif failed:
        print(f"{failed} problem{'s' if failed > 1 else ''} to mend ({seconds:.1f} s)")
    else:
        print(f"nothing to mend ({seconds:.1f} s)")
    return 1 if failed else 0


def _init(args: argparse.Namespace) -> int:
    made = certs.make_authority(args.folder.expanduser(), args.days, args.renew)
    print(f"authority {made.subject}, until {made.ends:%Y-%m-%d}: ca.crt goes to every node, ca.key to none")
    return 0


def _node(args: argparse.Namespace) -> int:
    folder = args.folder.expanduser()
    made = certs.make_node(folder, args.name, args.ip, args.dns, args.days, args.renew)
    if made.ends == read_certificate(folder / "ca.crt").ends:
        print(f"it ends with its authority, on {made.ends:%Y-%m-%d}, and not after {args.days} days. Fix: "
              "fedray cluster certs init --renew, then this again with --renew", file=sys.stderr)  # fmt: skip
    print(f"{made.subject} for {made.told_hosts}, until {made.ends:%Y-%m-%d}, "
          f"serial {made.serial}")  # fmt: skip
    print(f"copy {folder / 'nodes' / args.name} to the node, and before every `ray` and `fedray` there:")
    print("  export RAY_USE_TLS=1 RAY_TLS_SERVER_CERT=FOLDER/node.crt RAY_TLS_SERVER_KEY=FOLDER/node.key "
          "RAY_TLS_CA_CERT=FOLDER/ca.crt")  # fmt: skip
    return 0


def _token(args: argparse.Namespace) -> int:
    path = (args.file or args.folder / "token").expanduser()
    certs.make_token(path)
    print(
        f"token in {path}: copy it to every node with mode 0600, and before every `ray` and `fedray` there:"
    )
    print("  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE")
    return 0


def _show(args: argparse.Namespace) -> int:
    found = list(certs.certificates(args.folder.expanduser()))
    ended = any(certificate.days_left < 0 for _, certificate in found)
    if args.json:
        print(json.dumps([{"name": name, **_plain(each)} for name, each in found]))
        return 1 if ended else 0
    for name, each in found:
        print(f"{_state(each)}  {name:<13} {each.subject}, {each.starts:%Y-%m-%d} to {each.ends:%Y-%m-%d}")
        if each.addresses or each.names:
            print(f"{'':<20} for {each.told_hosts}")
        print(f"{'':<20} serial {each.serial}, SHA-256 {each.fingerprint[:16]}...")
    return 1 if ended else 0


def _state(certificate: Certificate) -> str:
    if certificate.days_left < 0:
        return "ENDED"
    return "SOON " if certificate.days_left < ENDS_SOON_DAYS else "GOOD "


def _plain(certificate: Certificate) -> dict[str, Any]:
    times = {"starts": certificate.starts.isoformat(), "ends": certificate.ends.isoformat()}
    return {**asdict(certificate), **times, "days_left": certificate.days_left}
