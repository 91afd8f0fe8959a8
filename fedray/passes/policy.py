"""Policy: refuse a plan that releases more than was agreed, before a byte of data is touched."""

from collections.abc import Collection

from fedray.core.graph import Graph, is_one_site
from fedray.core.rewrite import Pass
from fedray.errors import PolicyError


def require(*, released: Collection[str] | None = None, visible: Collection[str] = ()) -> Pass:
    """Let pass only plans whose reductions are all in `released` and whose per-site values are all in
    `visible`.

    `released=None` allows every name that leaves as a sum. Raises PolicyError that lists each name too many.
    Privacy: unit and protection of a released sum are not judged here, only whether one site's value is
    visible.
    """

    def run(graph: Graph) -> Graph:
        problems = []
        for node in graph.reductions:
            kind = node.params["kind"]
            if kind == "count":
                continue
            if released is not None and node.name not in released and node.name not in visible:
                problems.append(
                    f"{node.name} ({kind}, {node.where}) is not among the released names {sorted(released)}"
                )
            if is_one_site(node) and node.name not in visible:
                problems.append(
                    f"{node.name} ({kind}, {node.where}) shows the value of one site; "
                    f"allowed to be visible: {sorted(visible) or 'none'}"
                )
        if problems:
            raise PolicyError(
                f"{graph.name} releases more than the policy allows:\n  "
                + "\n  ".join(problems)
                + "\nuse sum() or mean() in its place, of more than one site, or widen the policy; "
                "evaluations send one site's metrics unless evaluate.per_site=false"
            )
        return graph

    run.__name__ = "require"
    run.is_policy = True  # type: ignore[attr-defined]
    return run
