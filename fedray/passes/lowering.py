"""Lowering: the last step of `compile`, which leaves `sum`, `gather` and `count` as the only reductions.

`check_operands` runs before the user's passes: what enters a reduction as traced is tested for finite
numbers, so that no pass can hide a broken update. `lower_mean`, `lower_at_sites` and `fuse_sums` run after
them.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fedray import tree
from fedray.coded import Decode
from fedray.core.graph import Graph, Node, Op, Placement, is_one_site, stages, toposort
from fedray.core.rewrite import in_units, rewrite
from fedray.core.value import HOLE, Record

SERVER, SITES = Placement.SERVER, Placement.SITES


def check_operands(graph: Graph) -> Graph:
    """Mark the operands of every reduction: a row that is not finite makes its site fail, by name."""

    def rule(node: Node) -> Node | None:
        if node.op is not Op.REDUCE or not node.args:
            return None
        checked = tuple(
            Node(Op.CALL, SITES, (arg,), None, {"lift": "check"}, arg.name, node.where)
            if arg.placement is SITES
            else arg
            for arg in node.args
        )
        return replace(node, args=checked)

    return rewrite(graph, rule)


def show_one_site(graph: Graph) -> Graph:
    """Mark every sum and mean as that of a single site, which a schedule takes one by one."""

    def rule(node: Node) -> Node | None:
        if node.op is not Op.REDUCE or node.params["kind"] not in ("sum", "mean") or is_one_site(node):
            return None
        return replace(node, params={**node.params, "alone": True})

    return rewrite(graph, rule)


def divide(total: Any, weight: Any) -> Any:
    """Return an exact sum over its weight, rounded once to the leaf's own dtype."""
    return total.divided_by(weight)


def _together_with(x: Node, weight: Node) -> Node:
    """Return a weight in the stage of its value, so that both sums see the same sites."""
    stage = stages(toposort([x, weight]))
    if weight not in stage or stage[weight] >= stage[x]:
        return weight
    both = Record({"x": HOLE, "weight": HOLE})
    node = Node(Op.CALL, SITES, (x, weight), both, {"lift": "record"}, where=weight.where)
    return Node(Op.GET, SITES, (node,), params={"key": "weight", "attribute": False}, where=weight.where)


def lower_mean(graph: Graph) -> Graph:
    """Turn a weighted mean into sum(x, weight=w) and sum(w), a uniform one into sum(x) and count."""

    def rule(node: Node) -> Node | None:
        if node.op is not Op.REDUCE or node.params["kind"] != "mean" or node.placement is SITES:
            return None
        x, *rest = node.args
        exact = {"kind": "sum", "exact": True}
        if not rest:
            total = Node(Op.REDUCE, SERVER, (x,), params=exact, name=node.name, where=node.where)
            weight = Node(Op.REDUCE, SERVER, (), params={"kind": "count"}, name="count", where=node.where)
        else:
            w = in_units(rest[0], node.params.get("weight_cap"), node.where)
            total = Node(Op.REDUCE, SERVER, (x, w), params=exact, name=node.name, where=node.where)
            counted, name = _together_with(x, w), f"{node.name}.weight"
            weight = Node(Op.REDUCE, SERVER, (counted,), params={"kind": "sum"}, name=name, where=node.where)
        return Node(
            Op.CALL, SERVER, (total, weight), divide, {"lift": "server", "kwargs": ()}, node.name, node.where
        )

    return rewrite(graph, rule)


def mixed(values: Mapping[str, Any], matrix: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return {site: sum_j matrix[site][j] value_j}; the weight of an absent neighbour goes to the site
    itself.
    """
    result = {}
    for site, value in values.items():
        row = matrix[site]
        own = row.get(site, 0.0) + sum(weight for other, weight in row.items() if other not in values)
        total = tree.scale(value, own)
        for other in sorted(row):
            if other != site and other in values:
                total = tree.add(total, tree.scale(values[other], row[other]))
        result[site] = total
    return result


def region_means(pairs: Mapping[str, Any], regions: Mapping[str, str]) -> dict[str, Any]:
    """Return {site: weighted mean over the sites of its region}."""
    members: dict[str, list[str]] = {}
    for site in sorted(pairs):
        members.setdefault(regions.get(site, ""), []).append(site)
    result = {}
    for sites in members.values():
        total = tree.scale(pairs[sites[0]]["value"], pairs[sites[0]]["weight"])
        for site in sites[1:]:
            total = tree.add(total, tree.scale(pairs[site]["value"], pairs[site]["weight"]))
        weight = sum(pairs[site]["weight"] for site in sites)
        shared = tree.scale(total, 1.0 / weight)
        result.update(dict.fromkeys(sites, shared))
    return result


def pair(value: Any, weight: Any = 1.0) -> dict[str, Any]:
    """Put a value beside its weight."""
    return {"value": value, "weight": weight}


def lower_at_sites(graph: Graph) -> Graph:
    """Turn `mix` and a mean within a region into gather, a server function and scatter."""

    def lowered(node: Node, operand: Node, fn: Callable[..., Any], extra: Node) -> Node:
        up = Node(
            Op.REDUCE,
            SERVER,
            (operand,),
            params={"kind": "gather", "to": "neighbours"},
            name=node.name,
            where=node.where,
        )
        at_server = Node(Op.CALL, SERVER, (up, extra), fn, {"lift": "server", "kwargs": ()}, where=node.where)
        return Node(Op.SCATTER, SITES, (at_server,), name=node.name, where=node.where)

    regions = next(
        (node for node in graph.nodes if node.op is Op.INPUT and node.params["slot"] == "regions"),
        Node(Op.INPUT, SERVER, params={"slot": "regions"}, where="server"),
    )

    def rule(node: Node) -> Node | None:
        if node.op is not Op.REDUCE or node.placement is not SITES:
            return None
        if node.params["kind"] == "mix":
            return lowered(node, node.args[0], mixed, node.args[1])
        pairs = Node(Op.CALL, SITES, node.args, pair, {"lift": "site", "kwargs": ()}, where=node.where)
        return lowered(node, pairs, region_means, regions)

    return rewrite(graph, rule)


def fuse_sums(graph: Graph) -> Graph:
    """Join all sums of one stage into one record, so that a stage sends one message up.

    The fused node's `lanes` say (name, argument, weight argument or None, exact, coded argument or None) of
    each sum in it. Where a sum takes decoded rows, a site that is alone in its pack sends them coded.
    """
    stage = stages(graph.nodes)
    groups: dict[int, list[Node]] = {}
    for node in graph.reductions:
        if node.params["kind"] == "sum" and "lanes" not in node.params:
            groups.setdefault(stage[node], []).append(node)
    if not groups:
        return graph
    return Graph(_fused(graph, groups), graph.inits, graph.name)


def _fused(graph: Graph, groups: Mapping[int, list[Node]]) -> dict[Any, Node]:
    group_of = {node: members for members in groups.values() for node in members}
    made: dict[int, Node] = {}
    new: dict[Node, Node] = {}
    pending = list(graph.nodes)
    while pending:  # a fused node needs the arguments of all its members first
        later = []
        for node in pending:
            members = group_of.get(node)
            needed = [arg for member in members for arg in member.args] if members else list(node.args)
            if any(arg not in new for arg in needed):
                later.append(node)
            elif members:
                fused = made.setdefault(id(members), _fuse(members, new))
                new[node] = Node(
                    Op.GET,
                    SERVER,
                    (fused,),
                    params={"key": node.name, "attribute": False},
                    name=node.name,
                    where=node.where,
                )
            else:
                args = tuple(new[arg] for arg in node.args)
                new[node] = node if all(map(operator.is_, args, node.args)) else replace(node, args=args)
        pending = later
    return {key: new[node] for key, node in graph.outputs.items()}


def _fuse(members: list[Node], new: Mapping[Node, Node]) -> Node:
    args: list[Node] = []

    def place(arg: Node) -> int:
        if arg not in args:
            args.append(arg)
        return args.index(arg)

    lanes = []
    for node in members:
        value, *weight = (new[arg] for arg in node.args)
        coded = place(value.args[0]) if isinstance(value.fn, Decode) else None
        exact = node.params.get("exact", False)
        lanes.append((node.name, place(value), place(weight[0]) if weight else None, exact, coded))
    return Node(
        Op.REDUCE,
        SERVER,
        tuple(args),
        params={"kind": "sum", "lanes": tuple(lanes)},
        name="+".join(node.name for node in members),
        where=members[0].where,
    )
