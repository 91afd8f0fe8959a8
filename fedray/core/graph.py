"""The graph of one federated round: seven ops, two placements, and stages.

A node is immutable and knows its arguments; a graph is a set of outputs. A message crosses between the server
and the sites only at BROADCAST, SCATTER and REDUCE, so these three cut a round into stages: even stages run
at the server, odd stages at the sites. `toposort` and `stages` are all the analysis that the runtime needs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any


class Op(StrEnum):
    """What a node does."""

    INPUT = "input"
    CONST = "const"
    CALL = "call"
    GET = "get"
    BROADCAST = "broadcast"
    SCATTER = "scatter"
    REDUCE = "reduce"


class Placement(StrEnum):
    """Where a value lives. ANY is for constants."""

    SERVER = "server"
    SITES = "sites"
    ANY = "any"


class Label(StrEnum):
    """What a value may reveal, weakest first, and two carriers, which hide what is inside until it is opened.

    A function that a pass places says by an attribute `grants: Label` what its result may reveal, whatever it
    was computed from; by `needs: Label` what it cannot work without: VISIBLE (at the server: each site's own
    value) or MASKED (at the sites: that its result leaves masked). See verify.py.
    """

    PUBLIC = "public"
    DP = "differentially private"
    AGG = "aggregate"
    VISIBLE = "one site visible"
    PRIVATE = "private"
    MASKED = "masked"
    SEALED = "sealed"


LABEL_ORDER = [Label.PUBLIC, Label.DP, Label.AGG, Label.VISIBLE, Label.PRIVATE]
CARRIERS = (Label.MASKED, Label.SEALED)
IN_REGION = " @ "  # stands between the name of a sum by region and the region, where both are one key
MADE_UP = ("rehearsal", "probe0", "probe1", "probe2")  # sites tried before a run, which no matrix names
Slot = str
Key = tuple[Placement, Slot]
CROSSING = (Op.BROADCAST, Op.SCATTER, Op.REDUCE)


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One step. `params` holds: INPUT slot; CONST value; CALL lift and kwargs; GET key and attr; REDUCE
    kind.
    """

    op: Op
    placement: Placement
    args: tuple["Node", ...] = ()
    fn: Callable[..., Any] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    where: str = ""

    def __repr__(self) -> str:
        return f"<{self.op} {self.name or getattr(self.fn, '__name__', '')} @ {self.placement} {self.where}>"


@dataclass(frozen=True, slots=True)
class Asked:
    """The server's input "asked": which attempt at which round this is, and whom it asks. Public."""

    run: str
    round: int
    attempt: int
    cohort: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a pass says of a plan: one line of its trust statement.

    `by` is the pass. `trusts` names who must be trusted for it to hold, `but` what it does not protect.
    `is_hidden` demands that nothing a site sends shows that site's value: every reduction is then masked,
    sealed, differentially private or public, or the plan is refused. `hub` is "curious" where the server may
    not be trusted with plaintext: noise that it adds protects nobody then. `is_simulated` says that the pass
    computes what it would with protection, and protects nobody here.
    """

    by: str
    text: str
    trusts: str = ""
    but: str = ""
    is_hidden: bool = False
    hub: str = "trusted"
    is_simulated: bool = False


@dataclass(frozen=True)
class Graph:
    """The outputs of a round by (placement, slot), and how a site's or the server's slot starts.

    `note` is a sentence for `explain` and `egress`: what nodes cannot say; `claims` are those of its passes.
    """

    outputs: Mapping[Key, Node]
    inits: Mapping[Key, Callable[..., Any]] = field(default_factory=dict)
    name: str = ""
    note: str = ""
    claims: tuple[Claim, ...] = ()

    @property
    def nodes(self) -> list[Node]:
        """Every node, arguments first."""
        return list(self._order)

    @cached_property
    def _order(self) -> tuple[Node, ...]:
        return tuple(toposort(self.outputs.values()))  # asked for a dozen times while a plan is compiled

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # not what was derived

    @property
    def reductions(self) -> list[Node]:
        """The nodes through which values leave the sites, in order."""
        return [node for node in self.nodes if node.op is Op.REDUCE]


def is_one_site(node: Node) -> bool:
    """Tell whether a reduction gives the server the value of a single site, whatever hides it."""
    return node.params["kind"] in ("gather", "mix") or bool(node.params.get("alone"))


def names_of(node: Node) -> tuple[str, ...]:
    """Return the names of what a reduction carries: its own, or those of the sums that a pass has hidden in
    it.
    """
    return tuple(node.params.get("names", (node.name,)))


def function_name(fn: Any) -> str:
    """Return a short name for a function or a callable record."""
    name = getattr(fn, "__qualname__", type(fn).__name__)
    return str(name).replace(".<locals>", "").split(".")[-1]


def is_one_shot(node: Node) -> bool:
    """Tell whether a function draws from the system's entropy: it runs once, and never again for a replay."""
    return bool(getattr(node.fn, "one_shot", False))


def toposort(roots: Iterable[Node]) -> list[Node]:
    """Return all nodes under the roots, each once, arguments before users; the order depends on the graph
    only.
    """
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args))
    return order


def is_floating(node: Node, floating: Mapping[Node, bool]) -> bool:
    """Tell whether a node depends on nothing but counts and constants, so that its user decides its stage."""
    if node.op is Op.REDUCE:
        return bool(node.params["kind"] == "count")
    if node.op is Op.CONST:
        return True
    return (
        node.op in (Op.CALL, Op.GET)
        and node.placement is not Placement.SITES
        and bool(node.args)
        and all(floating[arg] for arg in node.args)
    )


def stages(nodes: Iterable[Node]) -> dict[Node, int]:
    """Return the stage of every node (given arguments first).

    A stage is the largest of the arguments' stages, plus one at a crossing (plus two where a reduction's
    result is placed at the sites); inputs of sites start at 1. A `count` counts the stage in which it is
    used.
    """
    nodes = list(nodes)
    floating: dict[Node, bool] = {}
    stage: dict[Node, int] = {}
    for node in nodes:
        floating[node] = is_floating(node, floating)
        if floating[node]:
            continue
        own = max((stage[arg] for arg in node.args if arg in stage), default=0)
        if node.op is Op.INPUT and node.placement is Placement.SITES:
            own = 1
        elif node.op in CROSSING:
            own += 2 if node.op is Op.REDUCE and node.placement is Placement.SITES else 1
        elif node.placement is Placement.SITES and own % 2 == 0:
            own += 1
        stage[node] = own
    for node in reversed(nodes):
        if floating[node]:
            uses = [
                stage[user] - (user.op in CROSSING) for user in nodes if node in user.args and user in stage
            ]
            last = max((number for number in stage.values() if number % 2 == 0), default=0)
            stage[node] = min(uses, default=last)
    return stage
