"""How the sums of a round are put into other hands: the part that masking and two servers share.

`hidden` takes the lowered round, and in place of the fused sums of each stage it puts: bounds that all agree
on, the sites' words, what hides them (`Hiding.hide`), and the sums as the round reads them. Counts of such a
stage become the number of sites in the sum.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fedray.core.flow import check_flow
from fedray.core.graph import Claim, Graph, Key, Node, Op, Placement, stages
from fedray.core.rewrite import refuse_coded
from fedray.errors import PassError, SecurityConflict
from fedray.passes.lowering import fuse_sums, lower_at_sites, lower_mean
from fedray.passes.secure_graph import Fused, call, get
from fedray.passes.secure_steps import Agree, Lane, Learn, Write

SERVER, SITES = Placement.SERVER, Placement.SITES


@dataclass(frozen=True, slots=True)
class Hiding:
    """What a pass says of the sums that it hides: `hide` builds what leaves and how the total is opened."""

    title: str
    bound_of: Callable[[str, Node], float | None]
    weight_cap: float | None
    hide: Callable[[Fused], Node]
    guard: str = ""
    grouped: tuple[str, ...] = ()  # names of which a rule is given the mean of each group


def hidden(graph: Graph, hiding: Hiding, claim: Claim) -> Graph:
    """Return the graph with its sums hidden.

    Raises SecurityConflict where it shows more than sums, or hides them already.
    """
    for node in graph.reductions:
        if node.params.get("masked"):
            raise SecurityConflict(
                f"{claim.by}: the sums of {graph.name} are hidden already. Fix: one secure sum in passes="
            )
        if node.params["kind"] in ("sum", "mean"):
            refuse_coded(node, claim.by)
    rewriting = _Rewriting(fuse_sums(lower_mean(lower_at_sites(graph))), hiding)
    name = f"{graph.name} + {hiding.title}"
    found = replace(rewriting.result(), claims=(*graph.claims, claim), name=name)
    check_flow(found)
    if not rewriting.opened:
        raise PassError(f"{claim.by} found no sum in {graph.name}: leave it out")
    return found


class _Rewriting:
    """One pass over a lowered graph: each fused sum becomes a sub-program, each count of a stage with such a
    sum the number of sites in it.
    """

    def __init__(self, graph: Graph, hiding: Hiding) -> None:
        self.graph, self.hiding = graph, hiding
        self.stage = stages(graph.nodes)
        noisy = [node for node in graph.nodes if getattr(node.fn, "mechanism", None) is not None]
        self.learns = not any(node.placement is SERVER for node in noisy)
        self.opened: dict[int, Node] = {}  # stage of the sum -> what was opened
        self.stored: dict[Key, Node] = {}
        self.new: dict[Node, Node] = {}
        ids = (node for node in graph.nodes if node.op is Op.INPUT and node.params["slot"] == "id")
        self.site_id = next(ids, Node(Op.INPUT, SITES, params={"slot": "id"}, where="secure_sum"))
        self.fused = {
            self.stage[node]: node
            for node in graph.reductions
            if "lanes" in node.params and not node.params.get("by")
        }

    def result(self) -> Graph:
        """Return the rewritten graph."""
        pending = self.graph.nodes
        while pending:  # a count needs the sum of its stage first
            later = [node for node in pending if not self._take(node)]
            pending = later
        outputs = {key: self.new[node] for key, node in self.graph.outputs.items()}
        return replace(self.graph, outputs={**outputs, **self.stored})

    def _take(self, node: Node) -> bool:
        """Rewrite a node, if what it needs is there."""
        is_count = node.op is Op.REDUCE and node.params["kind"] == "count"
        if is_count and self.stage[node] in self.fused:
            if self.stage[node] not in self.opened:
                return False
            self.new[node] = get(self.opened[self.stage[node]], "num_sites", node.where)
            return True
        if any(arg not in self.new for arg in node.args):
            return False
        args = tuple(self.new[arg] for arg in node.args)
        if self.fused.get(self.stage[node]) is node:
            found = self._hidden(node, args)
            self.opened[self.stage[node]] = found
            self.new[node] = get(found, "sums", node.where)
        else:
            is_same = all(a is b for a, b in zip(args, node.args, strict=True))
            self.new[node] = node if is_same else replace(node, args=args)
        return True

    def _hidden(self, node: Node, args: tuple[Node, ...]) -> Node:
        """Return what the server opens in place of a fused sum."""
        where, number = node.where, len(self.opened)
        prefix = "secure" if not number else f"secure{number + 1}"
        lanes: tuple[Lane, ...] = tuple(
            (name, value, weight, is_mean) for name, value, weight, is_mean, _ in node.params["lanes"]
        )
        bounds = {name: self.hiding.bound_of(name, node.args[value]) for name, value, _, _ in lanes}
        fixed = {name: bound for name, bound in bounds.items() if bound is not None}
        weighted = tuple(name for name, _, weight, _ in lanes if weight is not None)
        memory = self._memory(f"{prefix}.bounds", where)
        asked = Node(Op.REDUCE, SERVER, params={"kind": "count"}, name="count", where=where)
        agree = Agree(fixed, weighted, self.hiding.weight_cap)
        agreed = call(agree, SERVER, (asked, memory), where)
        told = Node(Op.BROADCAST, SITES, (agreed,), name="agreed", where=where)
        words = call(Write(lanes, self.hiding.guard), SITES, (told, *args), where)
        grouped = tuple(name for name, *_ in lanes if name in self.hiding.grouped)
        found = self.hiding.hide(Fused(node, words, lanes, prefix, agreed, self.site_id, grouped))
        if self.learns:
            learnt = call(Learn(), SERVER, (memory, agreed, found), where)
            self.stored[SERVER, f"{prefix}.bounds"] = learnt
        return found

    def _memory(self, slot: str, where: str) -> Node:
        """Return what the server remembers of sums: nothing where it adds noise to them, for a bound that
        follows a sum would tell of it without its noise.
        """
        if not self.learns:
            return Node(Op.CONST, Placement.ANY, params={"value": None}, where=where)
        return Node(Op.INPUT, SERVER, params={"slot": slot}, where=where)
