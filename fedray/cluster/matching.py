"""Which living nodes the selectors of a site map mean, and whether what is asked for is there.

Ray lets an actor wait for ever for a node that no selector finds, or that has less than it asks for. So all
of them are looked up before the first actor is started, and what is wrong is said by name, all at once.
"""

from collections.abc import Iterator, Mapping, Sequence

from fedray.cluster.site_map import AGGREGATOR, ROLE_LABEL, SiteMap
from fedray.runtime.federation import HostSpec
from fedray.runtime.place import Node, Place

MOST_TOLD = 5  # of findings of one kind, and of nodes
AMOUNTS = {"CPU": "num_cpus", "memory": "memory", "GPU": "num_gpus"}


def matching(place: Place, nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes that a place means and that have what it takes."""
    return [node for node in nodes if place.fits(node)]


def aggregator_place(site_map: SiteMap, nodes: Sequence[Node]) -> Place:
    """Return the place of the aggregator: by the map, by its label, or the head."""
    place = site_map.aggregator or Place(labels=((ROLE_LABEL, AGGREGATOR),))
    if site_map.aggregator is None and not matching(place, nodes):
        return Place(is_head=True)
    return place


def selector_problems(
    site_map: SiteMap, sites: Sequence[str], nodes: Sequence[Node], absent: bool, regional: bool
) -> Iterator[str]:
    """Yield what is wrong with the selectors of some sites, of their regions and of the aggregator.

    With `absent` a site or a region may be without a node; one whose nodes have too little never is.
    """
    asked = {f"sites.{name}": (f"site {name}", site_map.sites[name].place) for name in sites}
    if regional:
        used = {site_map.sites[name].region for name in sites} - {""}
        asked |= {f"regions.{name}.aggregator": (f"the aggregator of region {name}",
                                                 site_map.regions[name].place) for name in sorted(used)}
    if site_map.aggregator is not None:
        asked["aggregator"] = ("the aggregator", site_map.aggregator)
    elif not matching(aggregator_place(site_map, nodes), nodes):
        yield (f"the aggregator: no living node has {ROLE_LABEL}={AGGREGATOR}, and none is the head. "
               f"{_told(nodes)} Fix: `ray start ... --labels={ROLE_LABEL}={AGGREGATOR}` on one of them")
    lacking = {}
    for key, (who, place) in asked.items():
        meant = [node for node in nodes if place.selects(node.labels)]
        if not meant and not (absent and key != "aggregator"):
            lacking[key] = (who, place)
        elif meant and not matching(place, meant):
            yield _too_little(site_map.file, key, who, place, meant)
    for key, (who, place) in list(lacking.items())[:MOST_TOLD]:
        yield _unmatched(site_map.file, key, who, place, nodes)
    if len(lacking) > MOST_TOLD:
        yield (f"{len(lacking) - MOST_TOLD} more are on no living node either: "
               f"{', '.join(who for who, _ in list(lacking.values())[MOST_TOLD:2 * MOST_TOLD])}"
               f"{', ...' * (len(lacking) > 2 * MOST_TOLD)}. Fix: start their nodes, or connect with "
               "absent=True (topology.absent=true): they join when their nodes come")


def _unmatched(file: str, key: str, who: str, place: Place, nodes: Sequence[Node]) -> str:
    at = f"{key}.labels" if key.startswith("sites.") else key
    return (f"{who}: no living node has {place.selector}. {_told(nodes)} Fix: `ray start --address=HEAD "
            f"--labels={place.matching_labels}` on its machine, mend {at} in {file}, or connect with "
            "absent=True (topology.absent=true) where it may come later")


def _too_little(file: str, key: str, who: str, place: Place, meant: Sequence[Node]) -> str:
    has = "; ".join(f"{node.address} has {_amounts(node, place)}" for node in meant[:MOST_TOLD])
    lines = ", ".join(AMOUNTS[name] for name in place.needs)
    return (f"{who} asks for {place.told} on {place.selector}, and no such node has that much: {has}. "
            f"Fix: lower {lines} of {key.removesuffix('.aggregator')} in {file}, or start a larger node")


def _amounts(node: Node, place: Place) -> str:
    has = {name: node.resources.get(name, 0) for name in place.needs}
    return Place(num_cpus=has.get("CPU", 0), memory=int(has.get("memory", 0)),
                 num_gpus=has.get("GPU", 0)).told or "none"


def _told(nodes: Sequence[Node]) -> str:
    told = "; ".join(node.told for node in nodes[:MOST_TOLD]) + "; ..." * (len(nodes) > MOST_TOLD)
    return f"The {len(nodes)} living nodes are: {told}." if nodes else "There is no living node."


def room_problems(file: str, specs: Sequence[HostSpec], nodes: Sequence[Node]) -> list[str]:
    """Return what is wrong where hosts together ask for more than their nodes have: one of them would wait
    for ever.
    """
    left = {node.id: dict(node.resources) for node in nodes}
    placed = [(spec, matching(spec.place, nodes)) for spec in _all(specs) if spec.place and spec.place.needs]
    problems = []
    for spec, meant in sorted(placed, key=lambda pair: len(pair[1])):
        if not meant or spec.place is None:
            continue  # it may come later
        room = [node for node in meant if _has_room(left[node.id], spec.place)]
        if not room:
            problems.append(
                f"host {spec.name} asks for {spec.place.told} on {spec.place.selector}, of which the hosts "
                f"before it leave too little: {'; '.join(node.address for node in meant[:MOST_TOLD])}. Fix: "
                f"lower num_cpus, memory or num_gpus in {file} (0 CPUs reserve none), or give fewer packs "
                "(runtime.packs)")
            continue
        best = max(room, key=lambda node: left[node.id].get("CPU", 0))
        for name, need in spec.place.needs.items():
            left[best.id][name] -= need
    return problems[:MOST_TOLD]


def _has_room(left: Mapping[str, float], place: Place) -> bool:
    return all(left.get(name, 0) >= need for name, need in place.needs.items())


def _all(specs: Sequence[HostSpec]) -> Iterator[HostSpec]:
    for spec in specs:
        yield spec
        yield from _all(spec.children)
