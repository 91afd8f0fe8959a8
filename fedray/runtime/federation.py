"""Federations: the running set of sites and their aggregator, in this process or on Ray.

`simulate` makes one from a data set; `connect` (fedray/cluster) does the same on a Ray cluster that runs
already. The host tree is described by `HostSpec`s, which are small and pickle: sites are opened where their
pack lives.
"""

import heapq
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedray.core.graph import MADE_UP
from fedray.errors import ConfigError, FedrayError
from fedray.runtime import devices
from fedray.runtime import placement as placements
from fedray.runtime.pack import Pack
from fedray.runtime.place import Place
from fedray.runtime.records import CallRecord
from fedray.runtime.region import Region
from fedray.runtime.round import Aggregator
from fedray.runtime.schedule import Latency
from fedray.runtime.timeline import Stamped
from fedray.runtime.transport import InProcess

PATIENCE_S = 90.0  # of silence of a process of Ray: a link that is cut for a minute is borne
SITE_ROWS = 30  # what a site costs besides its rows, in rows: drawing, gathering and a step of 32, measured
Tree = Mapping[str, Any] | Sequence[str]  # {"eu": {"de": [...], "fr": [...]}, "us": [...]}


@dataclass(frozen=True)
class HostSpec:
    """How to make a host: a pack of sites, or a region with children."""

    name: str
    sites: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    children: tuple["HostSpec", ...] = ()
    group_size: int = 256
    allow_empty: bool = False
    device: str = devices.CPU
    halvings: int = 0  # of the sites computed together: for a pack that was killed for memory
    gpu_share: float = 0.0  # of a Ray actor: what the packs on GPUs ask for, so that all of them find a place
    patience_s: float = PATIENCE_S
    place: Place | None = None  # on a cluster: its node, and what it takes there; None is anywhere

    def smaller(self) -> "HostSpec":
        """Return the same host with half of the sites computed together, which needs less memory."""
        below = tuple(child.smaller() for child in self.children)
        return replace(self, halvings=self.halvings + 1, children=below)

    @property
    def num_packs(self) -> int:
        """Number of packs below, this one included where it is one."""
        return sum(child.num_packs for child in self.children) if self.children else 1

    @property
    def all_sites(self) -> tuple[str, ...]:
        """Every site below."""
        return tuple(self.sites) + tuple(site for child in self.children for site in child.all_sites)


MakeTransport = Callable[[Sequence[HostSpec]], Any]


def make_host(spec: HostSpec, make_transport: MakeTransport) -> Pack | Region:
    """Make the host that a spec describes, in this process; its children come from `make_transport`."""
    if not spec.children:
        return Pack(spec.name, spec.sites, spec.group_size, spec.allow_empty, spec.device, spec.halvings)
    return make_region(spec.name, spec.children, make_transport)


def make_region(name: str, children: Sequence[HostSpec], make_transport: MakeTransport) -> Region:
    """Make a region over children."""
    sites = {child.name: child.all_sites for child in children}
    return Region(name, sites, Stamped(make_transport(children)))


def in_process_transport(latency: Latency | None = None) -> MakeTransport:
    """Return how to make hosts in this process."""

    def make(specs: Sequence[HostSpec]) -> InProcess:
        return InProcess({spec.name: make_host(spec, make) for spec in specs}, latency)

    return make


def made_inside(specs: Sequence[HostSpec], placement: str) -> Callable[[], Region] | None:
    """Return how the sites are put into the aggregator's process; None where they stay in actors.

    Packs on a GPU stay: Ray has given it to them, and none to the aggregator.
    """
    if placement == "actors" or device_of(specs) != devices.CPU:
        return None
    return lambda: make_region("aggregator", _one_pack(specs), in_process_transport())


def _one_pack(specs: Sequence[HostSpec]) -> Sequence[HostSpec]:
    """Return a spec of one pack with all sites below, whatever the layout: on one core several cost more.

    Where a data set makes its openers when they are asked for, the packs are kept with their mappings.
    """
    packs = list(_packs(specs))
    if not all(isinstance(pack.sites, dict) for pack in packs):
        return packs
    sites = {site: opener for pack in packs for site, opener in pack.sites.items()}
    return [replace(packs[0], name="pack", sites=sites)]


def _packs(specs: Sequence[HostSpec]) -> Iterator[HostSpec]:
    for spec in specs:
        yield from _packs(spec.children) if spec.children else (spec,)


class Federation:
    """Sites and an aggregator. A context manager: leaving it ends what it started."""

    def __init__(
        self,
        aggregator: Any,
        specs: Sequence[HostSpec],
        sites: Sequence[str],
        where: str,
        on_close: Callable[[], None] | None = None,
        regions: Mapping[str, str] | None = None,
        layout: str = "",
        lets_away: bool = False,
    ) -> None:
        self.aggregator, self.sites, self.where = aggregator, tuple(sites), where
        self.specs = tuple(specs)
        self.layout = layout  # which site is on which node, in words
        self.lets_away = lets_away  # whether programs beside a run go without sites whose node is away
        self.regions = dict(regions or {})
        self.run_name = ""  # of the run directory, where there is one
        self.learnt: Any = None  # a `Learnt` that several runs share: each has its own otherwise
        self._on_close = on_close
        self._sizes: dict[str, int] | None = None
        self._is_closed = False

    @property
    def is_standing(self) -> bool:
        """Tell whether the aggregator outlives its driver, and keeps records for the next one."""
        return bool(getattr(type(self.aggregator), "is_standing", False))

    @property
    def num_sites(self) -> int:
        """Number of sites."""
        return len(self.sites)

    def call(self, method: str, *args: Any) -> Any:
        """Call the aggregator, wherever it is."""
        if self._is_closed:
            raise FedrayError("this federation is closed; make another with simulate() or connect()")
        return getattr(self.aggregator, method)(*args)

    def hello(self) -> dict[str, int]:
        """Open every site's data, where it lies, and return the training rows of each site."""
        if self._sizes is None:
            self._sizes = self.call("hello")
        return self._sizes

    def prepare(self, transform: Any) -> None:
        """Pass every site's data through `transform(SiteData) -> SiteData`, where it lies."""
        self.call("prepare", transform)
        self._sizes = None

    def refresh(self) -> tuple[str, ...]:
        """Let sites join whose node has come, as every round does; return those whose node is away."""
        away: tuple[str, ...] = self.call("refresh")
        self._sizes = None
        return away

    def calls(self) -> list[CallRecord]:
        """Return the calls that the aggregator's transport submitted since the last time: see
        `fr.explain`.
        """
        found: list[CallRecord] = self.call("take_calls")
        return found

    def close(self) -> None:
        """End every process that this federation started. Closing twice does nothing."""
        if not self._is_closed:
            self.call("close")
            self._is_closed = True
            if self._on_close is not None:
                self._on_close()

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def split(sites: Sequence[str], parts: int, sizes: Mapping[str, int]) -> list[list[str]]:
    """Deal sites to packs, the largest first to the pack with the fewest rows; bits do not depend on it."""
    packs: list[list[str]] = [[] for _ in range(parts)]
    lightest = [(0.0, i) for i in range(parts)]
    for site in sorted(sites, key=lambda name: -sizes.get(name, 1)):
        rows, i = lightest[0]
        packs[i].append(site)
        heapq.heapreplace(lightest, (rows + sizes.get(site, 1) + SITE_ROWS, i))
    return [pack for pack in packs if pack]


@dataclass(frozen=True)
class Topology:
    """How sites are put into hosts."""

    packs: int | None = None
    sites_per_actor: int | None = None
    group_size: int = 256
    allow_empty: bool = False
    device: str = devices.CPU
    placement: str = "actors"  # or "auto": see placement.py
    patience_s: float = PATIENCE_S

    def __post_init__(self) -> None:
        if self.patience_s <= 0:
            raise ConfigError(f"patience_s={self.patience_s}: give seconds above 0, such as {PATIENCE_S:g}")
        for name in ("packs", "sites_per_actor", "group_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: give 1 or more")
        devices.check(self.device)
        placements.check(self.placement)

    def specs(
        self, data: Mapping[str, Callable[[], Any]], layout: Tree | None, default_packs: int
    ) -> list[HostSpec]:
        """Return the hosts below the aggregator. Raises ConfigError on sites named twice, not at all, or
        unknown.
        """
        layout = list(data) if layout is None else layout
        named = _leaves(layout)
        known = set(named)
        problems = [
            f"site {site!r} is in two regions"
            for site in sorted(site for site, times in Counter(named).items() if times > 1)
        ]
        problems += [f"regions name {site!r}, which is not in the data" for site in named if site not in data]
        problems += [f"site {site!r} is in no region" for site in data if site not in known][:5]
        if problems:
            raise ConfigError([f"{problem}: mend regions=" for problem in problems])
        hosts = self._hosts("", data, layout, default_packs)
        return hosts if self.device == devices.CPU else shared_gpus(hosts, sum(s.num_packs for s in hosts))

    def _hosts(
        self, prefix: str, data: Mapping[str, Any], layout: Tree, default_packs: int
    ) -> list[HostSpec]:
        if isinstance(layout, Mapping):
            return [
                HostSpec(
                    f"{prefix}{name}",
                    children=tuple(self._hosts(f"{prefix}{name}.", data, below, 1)),
                    patience_s=self.patience_s,
                )
                for name, below in layout.items()
            ]
        count = self.packs or default_packs
        if self.sites_per_actor:
            count = -(-len(layout) // self.sites_per_actor)
        sizes = dict(getattr(data, "sizes", {}).items())  # one pass, not a look-up for each site
        return [
            HostSpec(
                f"{prefix}pack{i}",
                openers_of(data, sites),
                group_size=self.group_size,
                allow_empty=self.allow_empty,
                device=self.device,
                patience_s=self.patience_s,
            )
            for i, sites in enumerate(split(layout, min(count, len(layout)), sizes))
        ]


def shared_gpus(specs: Sequence[HostSpec], packs: int) -> list[HostSpec]:
    """Let every pack ask for an equal share of one GPU, cut to the ten-thousandths that Ray counts in."""
    share = int(1e4 / packs) / 1e4
    return [
        replace(spec, children=tuple(shared_gpus(spec.children, packs)))
        if spec.children
        else replace(spec, gpu_share=share)
        for spec in specs
    ]


def device_of(specs: Sequence[HostSpec]) -> str:
    """Return the device of the packs; all have the same."""
    return device_of(specs[0].children) if specs[0].children else specs[0].device


def openers_of(data: Mapping[str, Any], sites: Sequence[str]) -> Mapping[str, Any]:
    """Return the openers of these sites; a data set may make them when they are asked for."""
    select = getattr(data, "select", None)
    return select(sites).sites if select is not None else {site: data[site] for site in sites}


def _leaves(layout: Tree) -> list[str]:
    if isinstance(layout, Mapping):
        return [site for below in layout.values() for site in _leaves(below)]
    return list(layout)


def declared_regions(data: Mapping[str, Any], layout: Tree | None) -> dict[str, str]:
    """Return the region of each site: the first level of the layout, or what the data set declares."""
    if isinstance(layout, Mapping):
        return {site: name for name, below in layout.items() for site in _leaves(below)}
    return dict(getattr(data, "regions", {}))


def as_openers(data: Mapping[str, Any]) -> Mapping[str, Callable[[], Any]]:
    """Accept {site: open} and, for small things, {site: data}. Raises ConfigError where there is no site, or
    one has the name of a made-up one, whose values no pass hides.
    """
    if not data:
        raise ConfigError("the data set has no site: give at least one")
    if taken := [name for name in MADE_UP if name in data]:
        raise ConfigError(f"{', '.join(taken)}: sites that are made up to try a plan are called so: rename")
    if hasattr(data, "sites") or all(callable(value) for value in data.values()):
        return data
    return {site: value if callable(value) else _Held(value) for site, value in data.items()}


@dataclass(frozen=True)
class _Held:
    value: Any

    def __call__(self) -> Any:
        return self.value


def simulate(
    data: Mapping[str, Any],
    *,
    runtime: str = "in_process",
    packs: int | None = None,
    sites_per_actor: int | None = None,
    regions: Tree | None = None,
    group_size: int = 256,
    latency: Latency | None = None,
    allow_empty: bool = False,
    num_cpus: int | None = None,
    device: str = devices.CPU,
    placement: str = "auto",
    patience_s: float = PATIENCE_S,
) -> Federation:
    """Run every site on this machine: in this process, or in packs of sites, actors of `runtime="ray"`.

    `data` maps site ids to functions that open a site's data. `regions` nests: {"eu": {"de": [...]}, "us":
    [...]}. `sites_per_actor=1` gives each site an actor of its own. Results have equal bits in every layout.
    `device="cuda"` computes on a GPU, which the packs share; bits are then those of the GPU.
    `placement="auto"`: on Ray, sites whose rounds are under 20 ms of work move into the aggregator's process.
    A process of Ray that gives no sign of life for `patience_s` is lost, and started again.
    `latency(site, round) -> seconds` runs the schedule on a simulated clock (in process only).
    Raises ConfigError on a layout that does not fit the data, or a device that is not there.
    """
    if runtime not in ("in_process", "ray"):
        raise ConfigError(f"runtime={runtime!r}: choose 'in_process' or 'ray'")
    topology = Topology(packs, sites_per_actor, group_size, allow_empty, device, placement, patience_s)
    devices.available(device)
    openers, declared = as_openers(data), declared_regions(data, regions)
    if runtime == "in_process":
        specs = topology.specs(openers, regions, 1)
        root = make_region("aggregator", specs, in_process_transport(latency))
        made = Aggregator(root, declared, latency)
        return Federation(made, specs, tuple(openers), "in_process", regions=declared)
    if latency is not None:
        raise ConfigError("a latency model needs the simulated clock: use runtime='in_process'")
    from fedray.runtime import ray_transport

    return ray_transport.federate(openers, topology, regions, "local", declared, num_cpus)


OPTIONS = tuple(inspect.signature(simulate).parameters)
