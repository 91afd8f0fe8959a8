"""From a site map to hosts: which sites share a pack, on which node it runs, and that in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedray.cluster.matching import aggregator_place, matching
from fedray.cluster.node_data import at_node
from fedray.cluster.site_map import Site, SiteMap
from fedray.errors import ConfigError
from fedray.runtime import devices
from fedray.runtime.federation import HostSpec, Topology, openers_of, split
from fedray.runtime.place import Labels, Node, Place

MOST_NODES = 3  # named of those that a selector means


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How sites of one node share processes: `sites_per_actor`, or `packs` a node; else one a processor."""

    packs: int | None = None
    sites_per_actor: int | None = None

    def count(self, num_sites: int, nodes: Sequence[Node]) -> int:
        """Return the number of packs for sites of the same node."""
        if self.sites_per_actor:
            return -(-num_sites // self.sites_per_actor)
        cpus = sum(int(node.resources.get("CPU", 1)) for node in nodes) or 1
        return min(self.packs or cpus, num_sites)


def hosts(site_map: SiteMap, data: Mapping[str, Any], topology: Topology, nodes: Sequence[Node],
          regional: bool) -> list[HostSpec]:
    """Return the hosts below the aggregator: of each region its aggregator with packs, where `regional` says
    so, and packs of sites without a region. Sites of a pack have the same labels, so it is on a node of all.
    """
    sites = [site_map.sites[name] for name in data]
    regions = sorted({site.region for site in sites if site.region}) if regional else []
    found = [HostSpec(name, children=tuple(_packs(f"{name}.", data, _of(sites, name), topology, nodes)),
                      patience_s=topology.patience_s, place=site_map.regions[name].place) for name in regions]
    alone = [site for site in sites if not (regional and site.region)]
    return [*found, *_packs("", data, alone, topology, nodes)]


def _of(sites: Sequence[Site], region: str) -> list[Site]:
    return [site for site in sites if site.region == region]


def _packs(prefix: str, data: Mapping[str, Any], sites: Sequence[Site], topology: Topology,
           nodes: Sequence[Node]) -> list[HostSpec]:
    by_labels: dict[Labels, list[Site]] = {}
    for site in sites:
        by_labels.setdefault(site.place.labels, []).append(site)
    packing = Packing(packs=topology.packs, sites_per_actor=topology.sites_per_actor)
    sizes = dict(getattr(data, "sizes", {}))
    found: list[HostSpec] = []
    for labels, of_node in by_labels.items():
        meant = [node for node in nodes if Place(labels=labels).selects(node.labels)]
        by_id = {site.id: site for site in of_node}
        for names in split(list(by_id), packing.count(len(by_id), meant), sizes):
            place = together([by_id[name].place for name in names])
            if topology.device != devices.CPU and not place.num_gpus:
                raise ConfigError(f"device={topology.device!r}, and the site map gives site {names[0]} no "
                                  f"GPU. Fix: num_gpus: 1 under sites.{names[0]} (or defaults)")
            found.append(HostSpec(f"{prefix}pack{len(found)}", at_node(openers_of(data, names), by_id),
                                  group_size=topology.group_size, allow_empty=topology.allow_empty,
                                  device=topology.device, patience_s=topology.patience_s, place=place))
    return found


def together(places: Sequence[Place]) -> Place:
    """Return what a pack takes: the memory of all of its sites, and as many CPUs and GPUs as one of them, for
    it computes them one after the other.
    """
    return replace(places[0], num_cpus=max(place.num_cpus for place in places),
                   num_gpus=max(place.num_gpus for place in places),
                   memory=sum(place.memory for place in places))


def told(site_map: SiteMap, specs: Sequence[HostSpec], nodes: Sequence[Node]) -> str:
    """Return which site is on which node, in lines."""
    lines = [f"placement by {site_map.file}, {len(nodes)} living nodes",
             f"aggregator  {_where(aggregator_place(site_map, nodes), nodes)}"]
    for spec in specs:
        if spec.children:
            lines.append(f"region {spec.name}  {_where(spec.place, nodes)}")
        for pack in spec.children or (spec,):
            takes = f"  {pack.place.told}" if pack.place and pack.place.told else ""
            own = [site for site in pack.sites if site_map.sites[site].data]
            data = f"  data by the map: {len(own)} of {len(pack.sites)}" if own else ""
            lines.append(f"  {pack.name}  {_where(pack.place, nodes)}{takes}{data}")
            lines += [f"    {site}" for site in pack.sites]
    return "\n".join(lines) + "\n"


def _where(place: Place | None, nodes: Sequence[Node]) -> str:
    if place is None:
        return "anywhere"
    meant = matching(place, nodes)
    if not meant:
        return f"away: no living node has {place.selector}"
    names = ", ".join(node.told for node in meant[:MOST_NODES]) + ", ..." * (len(meant) > MOST_NODES)
    return names if len(meant) == 1 else f"one of {names}"


def summary(specs: Sequence[HostSpec], nodes: Sequence[Node]) -> str:
    """Return the placement in one line."""
    packs = [pack for spec in specs for pack in (spec.children or (spec,))]
    meant = [matching(pack.place, nodes) if pack.place else list(nodes) for pack in packs]
    on = {node.id for found in meant for node in found[:1]}
    away = sum(len(pack.sites) for pack, found in zip(packs, meant, strict=True) if not found)
    sites = sum(len(pack.sites) for pack in packs)
    regions = sum(bool(spec.children) for spec in specs)
    return (f"{sites} sites in {len(packs)} packs on {len(on)} nodes, {regions} regional aggregators"
            + (f", {away} sites whose node is not there yet" if away else ""))
