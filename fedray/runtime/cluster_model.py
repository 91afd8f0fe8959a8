"""A model of a simulated cluster: seconds of a round from measured costs of operations and a stated network.

It answers what a run would take where no such machine is at hand: a thousand hospitals in five regions, a
million devices. Every formula stands in the docstring of its function; nothing is fitted here. Costs come
from measurements (`experiments/cluster_model`), the network from the person who asks.

A round: the server works and puts the model once; the model travels to the hosts, flat from the root to each
host, or regional from the root to each region and on to its hosts; the hosts work, the slowest counts; sums
travel back the same way and are folded at every aggregator as they come in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

FIRST_WINDOW_BYTES = 14_600  # ten segments of 1,460 bytes: how a TCP connection starts (RFC 6928)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of one core for each operation, as measured."""

    round_s: float  # server stage, sampling, records: once a round, whatever its size
    site_s: float  # a site's part of a round besides its steps
    site_byte_s: float  # ... for each byte of the model: copying it, and adding the update to the host's sum
    step_s: float  # one training step of one site
    fold_s: float  # folding one host's answer at an aggregator
    fold_byte_s: float  # ... for each byte of it
    call_s: float  # one call of a host, both ways, at the caller
    put_s: float  # making a value readable by all hosts, once a stage
    byte_s: float  # ... for each byte, writing and reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A connection between two machines."""

    round_trip_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Hosts of equal kind below one regional aggregator.

    `wide` joins the region's site to the root, and all its traffic with the root shares it. `local` joins one
    host to the regional aggregator, whose own connection carries `ingress_bytes_per_s` in all.
    """

    hosts: int
    wide: Link
    local: Link
    ingress_bytes_per_s: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a round asks for.

    `up_bytes` is one host's answer (an exact sum of a float32 model is 4 times the model's bytes; one site
    alone sends its float32 row). `spread` is the standard deviation of the log of a host's time.
    """

    cohort: int
    steps: float
    down_bytes: float
    up_bytes: float
    site_stages: int = 1
    spread: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The machines. `cores` work for one host at once; hosts on one machine share `shared_cores` of them."""

    regions: tuple[Region, ...]
    sites_per_host: float = 1.0
    cores_per_host: float = 1.0
    shared_cores: float = math.inf
    root_bytes_per_s: float = math.inf

    @property
    def hosts(self) -> int:
        """Number of hosts in all regions."""
        return sum(region.hosts for region in self.regions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Seconds of a round by cause; they add up to `round_s`."""

    server_s: float
    down_s: float
    work_s: float
    up_s: float
    fold_s: float
    root_bytes: float  # through the root's connection, both ways

    @property
    def round_s(self) -> float:
        """Seconds of a round."""
        return self.server_s + self.down_s + self.work_s + self.up_s + self.fold_s

    @property
    def rounds_per_hour(self) -> float:
        """Rounds in an hour."""
        return 3600 / self.round_s


def transfer_s(size: float, link: Link, sharing: float = 1.0) -> float:
    """Return the seconds of a message of `size` bytes over a link that `sharing` equal messages share.

    round_trip + size / rate + round_trip * log2(window / first window), rate being the link's over `sharing`
    and window = min(size, rate * round_trip): a connection doubles what is under way each round trip until
    message or link is full.
    """
    rate = link.bytes_per_s / max(1.0, sharing)
    window = min(size, rate * link.round_trip_s)
    doublings = max(0.0, math.log2(window / FIRST_WINDOW_BYTES)) if window > 0 else 0.0
    return link.round_trip_s * (1 + doublings) + size / rate


def slowest(hosts: float, spread: float) -> float:
    """Return the expected time of the slowest of `hosts` over the mean of one.

    Times are log-normal with mean 1: exp(spread * z - spread^2 / 2), where z is the expected largest of
    `hosts` normal numbers by Blom's formula, the quantile of (hosts - 0.375) / (hosts + 0.25).
    """
    if hosts <= 1 or spread <= 0:
        return 1.0
    return math.exp(spread * _largest_normal(hosts) - spread**2 / 2)


def _largest_normal(count: float) -> float:
    """Return the expected largest of `count` normal numbers (Blom's formula)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0


def fullest(cohort: float, hosts: int, sites_per_host: float = 1.0) -> float:
    """Return the expected number of asked sites on the host with most of them.

    mean + z * deviation of the sites of a host in the cohort (hypergeometric: c of n = hosts * s sites, s on
    the host), z the expected largest of `hosts` normal numbers; at least 1 and at most all sites of a host.
    """
    sites, share = hosts * sites_per_host, 1 / hosts
    mean = cohort * share
    left = (sites - cohort) / max(1.0, sites - 1)
    deviation = math.sqrt(max(0.0, mean * (1 - share) * left))
    return min(sites_per_host, max(1.0, mean + _largest_normal(hosts) * deviation))


def asked_hosts(cohort: float, hosts: int, sites_per_host: float = 1.0) -> float:
    """Return the expected number of hosts with a site in the cohort.

    hosts * (1 - C(n - s, c) / C(n, c)), for n = hosts * s sites of which c are drawn without repetition.
    """
    sites = hosts * sites_per_host
    if cohort > sites:
        raise ValueError(f"a cohort of {cohort} of {sites:.0f} sites: ask for at most all of them")
    if sites - sites_per_host < cohort:
        return float(hosts)
    log = math.lgamma
    left_out = log(sites - sites_per_host + 1) - log(sites - sites_per_host - cohort + 1)
    left_out += log(sites - cohort + 1) - log(sites + 1)
    return -hosts * math.expm1(left_out)


def work_s(workload: Workload, costs: Costs, cluster: Cluster) -> float:
    """Return the seconds until the slowest host has done its part.

    sites * (site_s + site_byte_s * down + steps * step_s) / cores * slowest, sites being those of the fullest
    host. Where hosts share a machine they take at least (all sites' work) / shared cores.
    """
    hosts = asked_hosts(workload.cohort, cluster.hosts, cluster.sites_per_host)
    one = costs.site_s + costs.site_byte_s * workload.down_bytes + workload.steps * costs.step_s
    sites = fullest(workload.cohort, cluster.hosts, cluster.sites_per_host)
    alone = sites * one / cluster.cores_per_host * slowest(hosts, workload.spread)
    return max(alone, workload.cohort * one / cluster.shared_cores)


def _message_s(size: float, region: Region, share: float, is_regional: bool, root_rate: float) -> float:
    """Return the seconds of one direction of a region's traffic; `share` hosts of it take part.

    Flat: every host's message crosses the wide link, which all share, and then the host's own. Regional: one
    message crosses it, and the hosts share the regional aggregator's own connection.
    """
    wide = Link(
        round_trip_s=region.wide.round_trip_s, bytes_per_s=min(region.wide.bytes_per_s, root_rate)
    )
    if not is_regional:
        return transfer_s(size, wide, share) + transfer_s(size, region.local)
    rate = min(region.local.bytes_per_s, region.ingress_bytes_per_s / max(1.0, share))
    local = Link(round_trip_s=region.local.round_trip_s, bytes_per_s=rate)
    return transfer_s(size, wide) + transfer_s(size, local)


def _each_way(size: float, cluster: Cluster, shares: Sequence[float], is_regional: bool) -> float:
    """Return the seconds until the last region is served; regions share the root's connection by messages."""
    messages = [1.0 if is_regional else share for share in shares]
    found = []
    for region, share, mine in zip(cluster.regions, shares, messages, strict=True):
        rate = cluster.root_bytes_per_s * mine / sum(messages)
        found.append(_message_s(size, region, share, is_regional, rate))
    return max(found)


def predict(workload: Workload, costs: Costs, cluster: Cluster, aggregation: str = "regional") -> Prediction:
    """Return the seconds of a round.

    server: round_s + stages * (put_s + byte_s * down) + call_s * calls, the calls of the root one after the
    other, beside them those of the largest region. fold: (fold_s + fold_byte_s * up) for each answer, at the
    root and, regional, at the largest region; answers are folded as they come, so only what the spread of
    arrivals does not hide is counted: all of it where `spread` is 0, the last answer's where it is above.
    Raises ValueError on another aggregation, or a cohort larger than the population.
    """
    if aggregation not in ("flat", "regional"):
        raise ValueError(f"aggregation={aggregation!r}: choose 'flat' or 'regional'")
    is_regional = aggregation == "regional"
    hosts, stages = asked_hosts(workload.cohort, cluster.hosts, cluster.sites_per_host), workload.site_stages
    shares = [hosts * region.hosts / cluster.hosts for region in cluster.regions]
    below = [float(len(shares)), max(shares)] if is_regional else [hosts]  # answers at each level
    put = costs.put_s + costs.byte_s * workload.down_bytes
    one_fold = costs.fold_s + costs.fold_byte_s * workload.up_bytes
    is_hidden = workload.spread > 0
    folds = sum(max(1.0, answers) for answers in below)
    work = work_s(workload, costs, cluster)
    fold = max(len(below) * one_fold, folds * one_fold - work) if is_hidden else folds * one_fold
    sizes = (workload.down_bytes, workload.up_bytes)
    down, up = (_each_way(size, cluster, shares, is_regional) for size in sizes)
    return Prediction(
        server_s=costs.round_s + stages * (put * len(below) + costs.call_s * sum(below)),
        down_s=stages * down,
        work_s=work,
        up_s=stages * up,
        fold_s=stages * fold,
        root_bytes=stages * below[0] * (workload.down_bytes + workload.up_bytes),
    )
