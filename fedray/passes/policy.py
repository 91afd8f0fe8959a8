"""Policy: refuse a plan that releases more than was agreed, before a byte of data is touched."""

from collections.abc import Collection
from dataclasses import replace

from fedray.core.flow import marks
from fedray.core.graph import CARRIERS, Claim, Graph, Label, is_one_site, names_of
from fedray.core.rewrite import Pass
from fedray.errors import PolicyError

HUBS = ("trusted", "curious")


def require(
    *, released: Collection[str] | None = None, visible: Collection[str] = (), hub: str = "trusted"
) -> Pass:
    """Let pass only plans whose reductions are all in `released` and whose per-site values are all in
    `visible`.

    `released=None` allows every name that leaves as a sum. `hub="curious"` says that the server may not be
    trusted with plaintext: what leaves a site must then be masked, sealed or noised there, and noise that the
    server adds is refused (SecurityConflict). Raises PolicyError that lists each name too many.
    Privacy: unit and protection of a released sum are not judged here, only whether one site's value is
    visible.
    """
    if hub not in HUBS:
        raise ValueError(f"require: hub={hub!r}: choose one of {', '.join(HUBS)}")

    def run(graph: Graph) -> Graph:
        problems = _problems(graph, released, visible)
        if problems:
            raise PolicyError(
                f"{graph.name} releases more than the policy allows:\n  "
                + "\n  ".join(problems)
                + "\nuse sum() or mean() in its place, of more than one site, or widen the policy; "
                "evaluations send one site's metrics unless evaluate.per_site=false"
            )
        if hub == "trusted":
            return graph
        text = "nothing that a site sends shows its value to the server"
        claim = Claim(by="require(hub='curious')", text=text, is_hidden=True, hub=hub)
        return replace(graph, claims=(*graph.claims, claim))

    run.__name__ = "require"
    run.is_policy = True  # type: ignore[attr-defined]
    return run


def _problems(graph: Graph, released: Collection[str] | None, visible: Collection[str]) -> list[str]:
    """Return what is released too much, a sentence each; a protocol's own messages are not judged."""
    problems = []
    known = marks(graph)
    for node in graph.reductions:
        kind = node.params["kind"]
        is_protocol = node.params.get("is_protocol") and known[node].label is not Label.VISIBLE
        if kind == "count" or is_protocol:
            continue
        allowed = {*visible, *(released or ())}  # a mean's weight goes with it
        unknown = [name for name in names_of(node) if not {name, name.removesuffix(".weight")} & allowed]
        if released is not None and unknown:
            problems.append(
                f"{', '.join(unknown)} ({kind}, {node.where}) is not among the released names "
                f"{sorted(released)}"
            )
        if is_one_site(node) and node.name not in visible and known[node].label not in CARRIERS:
            problems.append(
                f"{node.name} ({kind}, {node.where}) shows the value of one site; "
                f"allowed to be visible: {sorted(visible) or 'none'}"
            )
    return problems
