"""Rewriting: how a pass replaces a reduction by a sub-program written in the language of algorithms.

    @on_reduce("mean", only={"delta"})
    def clipped(x, weight, name, site):
        return fr.mean(fr.map(clip_by_norm(1.0), x), weight=weight, name=name)

A pass is `Graph -> Graph`. One that matches nothing raises: a silent privacy no-op is the worst bug there is.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from fedray.core.graph import Graph, Key, Node, Op
from fedray.core.trace import Site
from fedray.core.value import Value
from fedray.errors import PassError

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
    return Graph({key: new[node] for key, node in graph.outputs.items()}, graph.inits, graph.name)


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
        matched.append(node.name)
        weight = Value(node.args[1]) if len(node.args) > 1 else None
        return fn(Value(node.args[0]), weight, node.name, site).node

    result = rewrite(graph, rule)
    missing = sorted(set(only or ()) - set(matched))
    if not matched or missing:
        there = ", ".join(sorted({f"{node.name} ({node.params['kind']})" for node in graph.reductions}))
        raise PassError(
            f"{title} found no {kind} named {missing or 'anything'} in {graph.name}; its reductions are "
            f"{there}: change `only`"
        )
    return Graph({**result.outputs, **stored}, inits, f"{graph.name} + {title}")

def policies(passes: Sequence[Pass]) -> list[Pass]:
    """Return the policies among some passes: they hold for evaluations too, which no other pass rewrites."""
    return [step for step in passes if getattr(step, "is_policy", False)]
