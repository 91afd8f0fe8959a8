"""`fr.connect`: a federation on a Ray cluster that runs already, placed by a site map or anywhere.

One Ray cluster is one trust domain: whoever drives it can run code on every node.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedray.cluster import layout, matching, node_data
from fedray.cluster.site_map import SiteMap
from fedray.errors import ConfigError
from fedray.runtime import devices
from fedray.runtime.federation import (
    PATIENCE_S,
    Federation,
    Topology,
    Tree,
    as_openers,
    declared_regions,
)

log = logging.getLogger(__name__)
ENDINGS = (".yaml", ".yml")


def connect(
    where: str | Path | SiteMap,
    data: Mapping[str, Any],
    *,
    address: str | None = None,
    packs: int | None = None,
    sites_per_actor: int | None = None,
    regions: Tree | None = None,
    group_size: int = 256,
    allow_empty: bool = False,
    device: str = devices.CPU,
    run: str = "",
    patience_s: float = PATIENCE_S,
    regional: bool = True,
    absent: bool = False,
) -> Federation:
    """Run every site on a Ray cluster that runs already.

    `where` is its address ("10.0.0.1:6379"): sites are then dealt to all nodes. Or it is a site map, a file
    or a `SiteMap`: each site is then on its own node, opens its data there, and takes what the map says; a
    region of the map has an aggregator of its own, unless `regional` is false. `packs` is then the number a
    node, and `address` (or the environment variable RAY_ADDRESS) that of the cluster. With `absent` sites may
    be without a node: they count as failed until it comes.
    Under the name of a `run` the aggregator outlives this process: connect again under that name, and
    `fit(..., resume=True)` goes on with it. A process that gives no sign of life for `patience_s` is lost.
    Raises HostError where the cluster does not answer, or another process drives the run; ConfigError where
    data, map and nodes do not fit.
    """
    topology = Topology(packs, sites_per_actor, group_size, allow_empty, device, patience_s=patience_s)
    site_map = _as_map(where)
    if site_map is None:
        return _anywhere(str(where), address, data, topology, regions, run)
    if regions is not None:
        raise ConfigError("regions= beside a site map, which says the region of each site. Fix: leave it "
                          f"out, and name regions in {site_map.file}")
    _check_sites(site_map, data)
    join = _Join(site_map, _address(address, site_map), run, regional, absent)
    return join.placed(as_openers(data), data, topology)


def _anywhere(where: str, address: str | None, data: Mapping[str, Any], topology: Topology,
              regions: Tree | None, run: str) -> Federation:
    from fedray.runtime import ray_attach, ray_transport

    if address is not None:
        raise ConfigError(f"address={address!r} beside {where!r}: an address is given twice. Fix: "
                          "connect(address, data), or connect('site-map.yaml', data, address=...)")
    declared, make = declared_regions(data, regions), ray_attach.attached(run)
    return ray_transport.federate(as_openers(data), topology, regions, where, declared, None, make)


def _as_map(where: str | Path | SiteMap) -> SiteMap | None:
    if isinstance(where, SiteMap):
        return where
    is_file = isinstance(where, Path) or str(where).endswith(ENDINGS)
    return SiteMap.read(where) if is_file else None


def _address(address: str | None, site_map: SiteMap) -> str:
    found = address or os.environ.get("RAY_ADDRESS")
    if not found:
        raise ConfigError(f"{site_map.file} says where sites are, and not where the cluster is. Fix: "
                          "connect(..., address='10.0.0.1:6379'), or set RAY_ADDRESS")
    return found


def _check_sites(site_map: SiteMap, data: Mapping[str, Any]) -> None:
    lacking = [site for site in data if site not in site_map.sites]
    if lacking:
        known = ", ".join(list(site_map.sites)[:5])
        raise ConfigError([
            f"{site_map.file}: site {site} of the data is not under sites (there are {known}"
            f"{', ...' * (len(site_map.sites) > 5)}). Fix: add it, or leave it out of the data"
            for site in lacking[:5]])


@dataclass(frozen=True, slots=True)
class _Join:
    """How a cluster is joined by a site map."""

    site_map: SiteMap
    address: str
    run: str
    regional: bool
    absent: bool

    def placed(self, openers: Mapping[str, Any], data: Mapping[str, Any], topology: Topology) -> Federation:
        """Start every host on its node. Raises ConfigError with what no living node has."""
        from fedray.runtime import ray_attach, ray_hosts
        from fedray.runtime.ray_start import start_ray

        site_map = self.site_map
        start_ray(self.address, sites=lambda: node_data.read_there(openers, site_map.sites))
        nodes = ray_hosts.living_nodes()
        problems = list(matching.selector_problems(site_map, list(data), nodes, self.absent, self.regional))
        if problems:
            raise ConfigError(problems)
        specs = layout.hosts(site_map, openers, topology, nodes, self.regional)
        if problems := matching.room_problems(site_map.file, specs, nodes):
            raise ConfigError(problems)
        declared = {site: found for site in data if (found := _region_of(site, site_map, data))}
        log.info("placement: %s", layout.summary(specs, nodes))
        make = ray_attach.attached(self.run, matching.aggregator_place(site_map, nodes))
        made = make(specs, declared, topology.placement)
        return Federation(made, specs, tuple(data), "ray", regions=declared,
                          layout=layout.told(site_map, specs, nodes), lets_away=self.absent)


def _region_of(site: str, site_map: SiteMap, data: Mapping[str, Any]) -> str | None:
    return site_map.sites[site].region or getattr(data, "regions", {}).get(site)
