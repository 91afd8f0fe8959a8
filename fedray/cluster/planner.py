"""`fedray cluster plan`: what regional aggregation and compression save on the links between regions.

The bytes are counted, not estimated: see edges.py. Seconds follow the formula of `cluster_model.transfer_s`,
money the price of a gigabyte; both for the link between a region and the aggregator, whose figures the person
who asks gives.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedray.errors import ConfigError

FLAT, REGIONAL = "flat", "regional"
GIGABYTE = 1e9
ELSEWHERE = "elsewhere"  # sites that declare no region


@dataclass(frozen=True)
class Link:
    """The connection of a region to the aggregator."""

    round_trip_ms: float = 80.0
    mbit_per_s: float = 100.0
    price_per_gb: float = 0.02


@dataclass(frozen=True)
class Row:
    """What a round puts on a region's link, in one way of running it."""

    region: str
    aggregation: str
    compression: str
    sites: int
    down_bytes: int
    up_bytes: int
    models: float  # both ways together, in models
    seconds: float  # of the transfers alone
    price_per_1000_rounds: float


def links_of(texts: Sequence[str], regions: Sequence[str]) -> dict[str, Link]:
    """Return the link of each region from "80:100:0.02" for all and "south=150:20:0.09" for one.

    The numbers are round trip in ms, rate in Mbit/s, price of a gigabyte. Raises ConfigError on other texts.
    """
    found = dict.fromkeys(regions, Link())
    for text in sorted(texts, key=lambda each: "=" in each):
        region, _, numbers = text.rpartition("=")
        try:
            link = Link(*(float(number) for number in numbers.split(":")))
        except (ValueError, TypeError):
            raise ConfigError(f"--link {text}: give [REGION=]ROUND_TRIP_MS:MBIT_PER_S:PRICE_PER_GB. Fix: "
                              "--link 80:100:0.02") from None  # fmt: skip
        if not (link.round_trip_ms >= 0 and link.mbit_per_s > 0 and link.price_per_gb >= 0):
            raise ConfigError(f"--link {text}: a rate is above 0, a round trip and a price are not below it")
        if region and region not in found:
            raise ConfigError(f"--link {text}: there is no region {region!r}. Fix: one of {', '.join(found)}")
        found |= {region: link} if region else dict.fromkeys(regions, link)
    return found


def rows_of(
    plan: Any, state: Any, blank: Any, schedule: Any, regions: Mapping[str, str], sites: Sequence[str],
    links: Mapping[str, Link], sites_per_host: int = 1, compression: str = "none", seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Return a round's traffic for each region, flat and regional; the last of the rounds that are counted.

    `regions` gives the region of each site; those without one are together, `elsewhere`.
    """
    from fedray import tree
    from fedray.cluster.edges import count
    from fedray.runtime.federation import Topology

    layout: dict[str, list[str]] = {}
    for site in sites:
        layout.setdefault(regions.get(site, ELSEWHERE), []).append(site)
    specs = Topology(sites_per_actor=sites_per_host, allow_empty=True).specs(dict.fromkeys(sites), layout, 1)
    flat = [host for spec in specs for host in spec.children]
    found, model = [], max(1, tree.nbytes(state))
    for aggregation, hosts in ((FLAT, flat), (REGIONAL, specs)):
        last = count(plan, state, blank, hosts, schedule, seed)[-1]
        for region, here in layout.items():
            names = {region} if aggregation == REGIONAL else {
                host.name for spec in specs if spec.name == region for host in spec.children}  # fmt: skip
            on_it = [each for (above, below), each in last.edges.items()
                     if above == "aggregator" and below in names]  # fmt: skip
            down, up = sum(each.down for each in on_it), sum(each.up for each in on_it)
            found.append(Row(region, aggregation, compression, len(here), down, up, (down + up) / model,
                             _seconds(down, up, len(on_it), links[region]),
                             1000 * (down + up) / GIGABYTE * links[region].price_per_gb))  # fmt: skip
    return found


def _seconds(down: int, up: int, hosts: int, link: Link) -> float:
    from fedray.runtime import cluster_model

    wide = cluster_model.Link(round_trip_s=link.round_trip_ms / 1e3, bytes_per_s=link.mbit_per_s * 1e6 / 8)
    if not hosts:
        return 0.0
    return sum(cluster_model.transfer_s(size / hosts, wide, hosts) for size in (down, up))


def add_parser(subparsers: Any) -> None:
    """Add the command to those of `fedray cluster`."""
    parser = subparsers.add_parser(
        "plan",
        help="count what a round puts on each region's link, flat and regional, with and without compression",
        description="Count, on made-up rows, the bytes of a round over the link of each region.",
    )
    parser.set_defaults(do=run)
    parser.add_argument("overrides", nargs="*", help="as of `fedray run`")
    parser.add_argument("--link", action="append", default=[], metavar="[REGION=]RTT_MS:MBIT:PRICE",
                        help="round trip, rate, price of a gigabyte (80:100:0.02)")  # fmt: skip
    parser.add_argument("--compression", default="none,qsgd,topk", metavar="A,B",
                        help="options of the group compression to compare (none,qsgd,topk)")  # fmt: skip
    parser.add_argument("--sites-per-host", type=int, default=1, metavar="N", help="1: each has its own")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit code. Raises ConfigError where the study cannot be built."""
    if args.sites_per_host < 1:
        raise ConfigError(f"--sites-per-host {args.sites_per_host}: give 1 or more")
    options = [name.strip() for name in args.compression.split(",") if name.strip()]
    rows = [row for option in options for row in _of_option(args, option)]
    if args.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
    else:
        print("\n".join(table(rows)))
    return 0


def _of_option(args: argparse.Namespace, option: str) -> list[Row]:
    import fedray as fr
    from fedray import config
    from fedray import experiment as runs

    here = [each for each in args.overrides if not each.startswith("runtime")]  # rows are made up here
    composed = config.compose_run([*here, "runtime=in_process", f"compression={option}"])
    config.check(composed.config)
    built = runs.build(runs.asked_for(composed))
    with built.federate() as federation:
        ready = runs.prepare(built, federation).experiment
        training = ready.training
        plan = fr.compile(training.algorithm, ready.passes, ready.schedule, ready.fold)
        state, blank = training.algorithm.init(training.init), federation.call("blank")
        regions, sites = federation.regions, federation.sites
    links = links_of(args.link, sorted({regions.get(site, ELSEWHERE) for site in sites}))
    return rows_of(plan, state, blank, ready.schedule, regions, sites, links, args.sites_per_host, option,
                   ready.seed)  # fmt: skip


def table(rows: Sequence[Row]) -> list[str]:
    """Return rows as lines of text, and what regional aggregation saves."""
    wide = max(len("region"), *(len(row.region) for row in rows)) + 2
    head = (f"{'region':<{wide}}{'sites':>6}  {'compression':<12}{'aggregation':<12}{'down':>10}{'up':>10}"
            f"{'models':>8}{'seconds':>9}{'price of 1,000 rounds':>23}")  # fmt: skip
    lines = [head]
    for row in sorted(rows, key=lambda row: row.region):
        lines.append(f"{row.region:<{wide}}{row.sites:>6}  {row.compression:<12}{row.aggregation:<12}"
                     f"{_size(row.down_bytes):>10}{_size(row.up_bytes):>10}{row.models:>8.1f}"
                     f"{row.seconds:>9.2f}{row.price_per_1000_rounds:>23.2f}")  # fmt: skip
    for option in dict.fromkeys(row.compression for row in rows):
        flat, regional = (sum(row.down_bytes + row.up_bytes for row in rows
                              if (row.compression, row.aggregation) == (option, way))
                          for way in (FLAT, REGIONAL))  # fmt: skip
        saved = 100 * (1 - regional / flat) if flat else 0.0
        told = f"{abs(saved):.0f} % {'less' if saved >= 0 else 'more'}"
        lines.append(f"compression={option}: regional aggregation sends {_size(regional)} a round where flat "
                     f"sends {_size(flat)}: {told}")  # fmt: skip
    return lines


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return ""
