"""Rewriting: how a pass replaces a reduction by a sub-program written in the language of algorithms.

    @on_reduce("mean", only={"delta"})
    def clipped(x, weight, name, site):
        return fr.mean(fr.map(clip_by_norm(1.0), x), weight=weight, name=name)

A pass is `Graph -> Graph`. One that matches nothing raises: a silent privacy no-op is the worst bug there is.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedray.core.graph import Graph, Key, Node, Op, Placement, toposort
from fedray.core.trace import Site
from fedray.core.value import Value
from fedray.errors import PassError, SecurityConflict
from fedray.settings import nearest

Pass = Callable[[Graph], Graph]
Rule = Callable[[Node], Node | None]


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """Rebuild the graph bottom-up, offering each rebuilt node once to `rule`; None keeps it."""
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        args = tuple(new[arg] for arg in node.args)
        is_same = all(a is b for a, b in zip(args, node.args, strict=True))
        rebuilt = node if is_same else replace(node, args=args)
        new[node] = rule(rebuilt) or rebuilt
    return replace(graph, outputs={key: new[node] for key, node in graph.outputs.items()})


Replacement = Callable[[Value, Value | None, str, Site], Value]


def on_reduce(
    kind: str, only: Collection[str] | None = None, title: str = ""
) -> Callable[[Replacement], Pass]:
    """Turn a function of (x, weight, name, site) into a pass that replaces the reductions of `kind` named in
    `only`.

    Raises PassError where nothing matches, or where a name of `only` is missing.
    """

    def decorate(fn: Replacement) -> Pass:
        def run(graph: Graph) -> Graph:
            return _replace(graph, kind, only, fn, title or fn.__name__)

        run.__name__ = title or fn.__name__
        return run

    return decorate


def _replace(graph: Graph, kind: str, only: Collection[str] | None, fn: Replacement, title: str) -> Graph:
    inputs: dict[Key, Node] = {
        (node.placement, node.params["slot"]): node for node in graph.nodes if node.op is Op.INPUT
    }
    stored: dict[Key, Node] = {}
    inits = dict(graph.inits)
    site = Site(inputs, stored, inits)
    matched: list[str] = []

    def rule(node: Node) -> Node | None:
        is_other = node.op is not Op.REDUCE or node.params["kind"] != kind
        if is_other or (only is not None and node.name not in only):
            return None
        if node.placement is Placement.SITES:
            raise PassError(
                f"{title}: {node.name} ({node.where}) goes from site to site (mix, or a mean within a "
                "region), and passes rewrite what goes to the server: name others in `only`"
            )
        if node.params.get("by"):
            raise PassError(
                f"{title}: {node.name} ({node.where}) is a {kind} for each region, and passes rewrite those "
                "over all sites: name others in `only`"
            )
        matched.append(node.name)
        return fn(Value(node.args[0]), _weight_of(node), node.name, site).node

    result = rewrite(graph, rule)
    if twice := sorted(slot for placement, slot in stored if (placement, slot) in graph.outputs):
        raise PassError(f"{title} is applied to {graph.name} twice: its memory {twice} is there already")
    missing = sorted(set(only or ()) - set(matched))
    if not matched or missing:
        there = ", ".join(sorted({f"{node.name} ({node.params['kind']})" for node in graph.reductions}))
        raise PassError(
            f"{title} found no {kind} named {missing or 'anything'} in {graph.name}; its reductions are "
            f"{there}: change `only`"
        )
    return replace(
        graph, outputs={**result.outputs, **stored}, inits=inits, name=f"{graph.name} + {title}"
    )


WEIGHT_UNITS = 2**14  # fractions of a public cap that a weight is rounded to


@dataclass(frozen=True)
class WholeUnits:
    """Round a weight to whole units of cap / 2^14, so that sums of weights stay exact."""

    cap: float

    def __call__(self, weight: Any) -> Any:
        """Return the weight as a whole number of units."""
        units = weight / self.cap * WEIGHT_UNITS
        return (
            units.round() if hasattr(units, "round") and not isinstance(units, float) else float(round(units))
        )


def in_units(weight: Node, cap: float | None, where: str) -> Node:
    """Return a weight in whole units of its public cap, where it has one."""
    if cap is None:
        return weight
    return Node(Op.CALL, Placement.SITES, (weight,), WholeUnits(cap), {"lift": "leafwise"}, where=where)


def _weight_of(node: Node) -> Value | None:
    """Return a mean's weight for a pass, which says weight= and never weight_cap=."""
    if len(node.args) < 2:
        return None
    return Value(in_units(node.args[1], node.params.get("weight_cap"), node.where))


def coders_of(node: Node) -> list[Any]:
    """Return the coders of what enters a reduction, sites' values only, the nearest last."""
    steps = [step for step in toposort(node.args) if step.placement is Placement.SITES]
    found = [getattr(step.fn, "coder", None) for step in steps]
    return list(dict.fromkeys(coder for coder in found if coder is not None))


def refuse_coded(node: Node, title: str) -> None:
    """Raise SecurityConflict where a pass that hides rows in a sum would mask rows that do not add up
    coded.
    """
    for coder in coders_of(node):
        if coder.conflict:
            raise SecurityConflict(
                f"{title}: {node.name} ({node.where}) was compressed by {coder.title}, and {coder.conflict}"
            )


def refuse_unknown(passes: Sequence[Pass], leaving: Collection[str], title: str) -> None:
    """Raise PassError where a pass was told something of a name that nothing leaves under.

    `named` of a pass says so: {setting: names}. A bound for a name that was misspelt would bound nothing.
    """
    for step in passes:
        settings: Mapping[str, Collection[str]] = getattr(step, "named", {})
        for setting, names in settings.items():
            if unknown := [name for name in names if name not in leaving]:
                fix = nearest(unknown[0], sorted(leaving))
                raise PassError(
                    f"{setting} names {', '.join(map(repr, unknown))}, and nothing leaves {title} under that "
                    f"name, but {', '.join(sorted(leaving))}. Fix: {fix or 'one of these'}"
                )


def policies(passes: Sequence[Pass]) -> list[Pass]:
    """Return the policies among some passes: they hold for evaluations too, which no other pass rewrites; in
    the form that they have there (`of_evaluations`), where they have one.
    """
    return [getattr(step, "of_evaluations", step) for step in passes if getattr(step, "is_policy", False)]
