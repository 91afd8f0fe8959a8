"""Lowering: the last step of `compile`, which leaves `sum`, `gather` and `count` as the only reductions.

`check_operands` runs before the user's passes: what enters a reduction as traced is tested for finite
numbers, so that no pass can hide a broken update, and leaves without what is frozen. `lower_at_sites`,
`lower_mean` and `fuse_sums` run after them.
"""

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedray.coded import Decode
from fedray.core.graph import Graph, Node, Op, Placement, is_one_site, stages, toposort
from fedray.core.rewrite import in_units, rewrite
from fedray.core.value import HOLE, Record
from fedray.frozen import UPDATE, with_frozen
from fedray.passes.mixing import Mix
from fedray.rows import Group, Tagged, column, rows_of

SERVER, SITES = Placement.SERVER, Placement.SITES


def check_operands(graph: Graph) -> Graph:
    """Mark the operands of every reduction: a row that is not finite makes its site fail, by name.

    Updates, which have the name "delta", leave without their frozen leaves. At the server these are zeros.
    """

    def rule(node: Node) -> Node | None:
        if node.op is not Op.REDUCE or not node.args:
            return None
        is_update = node.name == UPDATE and node.placement is SERVER

        def checked(arg: Node, is_cut: bool) -> Node:
            params = {"lift": "check", "is_cut": is_cut}
            return Node(Op.CALL, SITES, (arg,), None, params, arg.name, node.where)

        args = tuple(
            checked(arg, is_update and place == 0) if arg.placement is SITES else arg
            for place, arg in enumerate(node.args)
        )
        reduced = replace(node, args=args)
        if not is_update:
            return reduced
        params = {"lift": "server", "kwargs": ()}
        return Node(Op.CALL, SERVER, (reduced,), with_frozen, params, node.name, node.where)

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


def divide_each(totals: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return {region: mean}, without regions whose weights add up to 0."""
    return {region: divide(total, weights[region]) for region, total in totals.items() if weights[region]}


def one(value: Any) -> int:
    """Return the weight of a site in a uniform mean by region."""
    return 1


@rows_of(one)
def one_rows(group: Group, value: Tagged) -> Any:
    """Return a 1 for each site."""
    return column([1] * group.k)


def lower_mean(graph: Graph) -> Graph:
    """Turn a weighted mean into sum(x, weight=w) and sum(w), a uniform one into sum(x) and count.

    A uniform one by region is summed with weights of 1: a count does not know regions.
    """

    def rule(node: Node) -> Node | None:
        if node.op is not Op.REDUCE or node.params["kind"] != "mean" or node.placement is SITES:
            return None
        x, *rest = node.args
        by = {"by": node.params["by"]} if node.params.get("by") else {}
        if by and not rest:
            rest = [Node(Op.CALL, SITES, (x,), one, {"lift": "site", "kwargs": ()}, where=node.where)]
        exact = {"kind": "sum", "exact": True, **by}
        if not rest:
            total = Node(Op.REDUCE, SERVER, (x,), params=exact, name=node.name, where=node.where)
            weight = Node(Op.REDUCE, SERVER, (), params={"kind": "count"}, name="count", where=node.where)
        else:
            w = in_units(rest[0], node.params.get("weight_cap"), node.where)
            total = Node(Op.REDUCE, SERVER, (x, w), params=exact, name=node.name, where=node.where)
            counted, name = _together_with(x, w), f"{node.name}.weight"
            params = {"kind": "sum", **by}
            weight = Node(Op.REDUCE, SERVER, (counted,), params=params, name=name, where=node.where)
        fn = divide_each if by else divide
        return Node(
            Op.CALL, SERVER, (total, weight), fn, {"lift": "server", "kwargs": ()}, node.name, node.where
        )

    return rewrite(graph, rule)


def lower_at_sites(graph: Graph) -> Graph:
    """Turn `mix` into gather, a product at the server and scatter; a mean within a region into one by region
    and scatter.
    """

    def rule(node: Node) -> Node | None:
        if node.op is not Op.REDUCE or node.placement is not SITES:
            return None
        if node.params["kind"] == "mean":
            near = replace(node, placement=SERVER, params={**node.params, "by": node.params["within"]})
            by = {"by": node.params["within"]}
            return Node(Op.SCATTER, SITES, (near,), params=by, name=node.name, where=node.where)
        told = {"kind": "gather", "to": "neighbours"}
        up = Node(Op.REDUCE, SERVER, node.args[:1], params=told, name=node.name, where=node.where)
        args, fn = (up, node.args[1]), Mix(node.params["keep"])
        at_server = Node(Op.CALL, SERVER, args, fn, {"lift": "server", "kwargs": ()}, where=node.where)
        return Node(Op.SCATTER, SITES, (at_server,), name=node.name, where=node.where)

    return rewrite(graph, rule)


def fuse_sums(graph: Graph) -> Graph:
    """Join all sums of one stage into one record, those by region into another.

    The fused node's `lanes` say (name, argument, weight argument or None, exact, coded argument or None) of
    each sum in it. Where a sum takes decoded rows, a site that is alone in its pack sends them coded.
    """
    stage = stages(graph.nodes)
    groups: dict[tuple[int, str], list[Node]] = {}
    for node in graph.reductions:
        if node.params["kind"] == "sum" and "lanes" not in node.params:
            groups.setdefault((stage[node], node.params.get("by", "")), []).append(node)
    if not groups:
        return graph
    return replace(graph, outputs=_fused(graph, groups))


def _fused(graph: Graph, groups: Mapping[Any, list[Node]]) -> dict[Any, Node]:
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
    by = {"by": members[0].params["by"]} if members[0].params.get("by") else {}
    return Node(
        Op.REDUCE,
        SERVER,
        tuple(args),
        params={"kind": "sum", "lanes": tuple(lanes), **by},
        name="+".join(node.name for node in members),
        where=members[0].where,
    )
