"""Secure sums: the server learns the sum of the sites' values, and of no site its own.

    passes=[fr.passes.secure_sum(mode="real")]

The pass asks for the lowered form of a round and puts, in place of the fused sums of each stage, a
sub-program: sites write their values as words of a ring (`secure_words.py`), masks are added, the masked rows
are summed, and the server takes the masks off the sum with what survivors reveal (`secure_masks.py`; the
protocol and its citations are in docs/secure-sums.md). `mode="ideal"` adds the same words without masks:
equal bits, no protection, for simulation.

Start reading at `secure_sum`, then `_Rewriting`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedray.core.flow import check_flow
from fedray.core.graph import Claim, Graph, Key, Node, Op, Placement, stages
from fedray.core.rewrite import Pass, refuse_coded
from fedray.errors import PassError
from fedray.passes.lowering import fuse_sums, lower_at_sites, lower_mean
from fedray.passes.secure_steps import Agree, Lane, Learn, Named, ReadPlain, Write

SERVER, SITES = Placement.SERVER, Placement.SITES
MODES = ("ideal", "real")
SERVERS = ("active", "curious")
MIN_COHORT = 5  # of three with one colluder, two are left, and their sum is the other's value
IDEAL = "simulated, no protection: the sites' words are added without masks (mode=ideal)"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user says of secure sums; see `secure_sum`."""

    mode: str = "ideal"
    threshold: float | int | None = None
    server: str = "active"
    groups: int | None = None
    min_cohort: int = MIN_COHORT
    clip: float | Mapping[str, float] | None = None
    weight_cap: float | None = None

    def __post_init__(self) -> None:
        is_fraction = isinstance(self.threshold, float) and 0 < self.threshold < 1
        is_number = isinstance(self.threshold, int) and self.threshold >= 1
        problems = {
            f"mode={self.mode!r}: choose one of {', '.join(MODES)}": self.mode in MODES,
            f"server={self.server!r}: choose one of {', '.join(SERVERS)}": self.server in SERVERS,
            f"min_cohort={self.min_cohort}: a sum of fewer than 3 sites hides nobody": self.min_cohort >= 3,
            f"threshold={self.threshold}: give a fraction in (0, 1), or a number of sites": is_fraction
            or is_number
            or self.threshold is None,
            f"weight_cap={self.weight_cap}: give the most rows of a site": self.weight_cap is None
            or self.weight_cap > 0,
        }
        if wrong := [problem for problem, is_fine in problems.items() if not is_fine]:
            raise ValueError("secure_sum: " + "; ".join(wrong))

    @property
    def is_real(self) -> bool:
        """Tell whether masks are added."""
        return self.mode == "real"

    def bound_of(self, name: str, value: Node) -> float | None:
        """Return the public bound of a sum's numbers: as given, or that of a clip in the graph; None where
        neither is there, and it follows the last total.
        """
        given = self.clip.get(name) if isinstance(self.clip, Mapping) else self.clip
        return given if given is not None else clip_of(value)


def clip_of(value: Node) -> float | None:
    """Return the bound of the clip that a value comes from; reading a field keeps it."""
    node: Node | None = value
    while node is not None:
        bound = getattr(node.fn, "bound", None)
        if bound is not None:
            return float(bound)
        is_read = node.op is Op.GET or (node.op is Op.CALL and node.params["lift"] == "check")
        node = node.args[0] if is_read else None
    return None


def secure_sum(
    mode: str = "ideal",
    threshold: float | int | None = None,
    server: str = "active",
    min_cohort: int = MIN_COHORT,
    clip: float | Mapping[str, float] | None = None,
    weight_cap: float | None = None,
) -> Pass:
    """Show the server sums of at least `min_cohort` sites, and of no site its own value.

    `mode="ideal"` computes the same words and adds them without masks: for simulation. `clip` is the public
    bound of a number, one for all or {name: bound}; without one it is that of a clip in the graph, else it
    follows the last total with room of 64 times, and a round that has cut numbers is told in the log.
    `weight_cap` is the public bound of a weight (rows of the largest site), else it follows the last total.
    `threshold` is how many sites must live to the end: a fraction f is floor(f n) + 1, None is 2/3 with
    `server="active"`, which may lie, and 1/2 with "curious", which follows the protocol.
    Privacy: hides one site's value from the server and from fewer colluding sites than the threshold leaves;
    the sum itself is shown, and of few sites it tells much (docs/secure-sums.md).
    Raises SecurityConflict where the round shows the server more than sums.
    """
    settings = Settings(mode=mode, threshold=threshold, server=server, min_cohort=min_cohort, clip=clip,
                        weight_cap=weight_cap)  # fmt: skip

    def run(graph: Graph) -> Graph:
        return secured(graph, settings)

    run.__name__ = "secure_sum"
    run.is_policy = True  # type: ignore[attr-defined]  # evaluations show the server no more than rounds do
    return run


def secured(graph: Graph, settings: Settings) -> Graph:
    """Return the graph with its sums hidden."""
    for node in graph.reductions:
        if node.params["kind"] in ("sum", "mean"):
            refuse_coded(node, "secure_sum")
    lowered = fuse_sums(lower_mean(lower_at_sites(graph)))
    rewriting = _Rewriting(lowered, settings)
    text = f"the server sees sums of at least {settings.min_cohort} sites, and no site's own value"
    claim = Claim(by="secure_sum", text=text if settings.is_real else IDEAL, is_hidden=True)
    found = replace(
        rewriting.result(), claims=(*graph.claims, claim), name=f"{graph.name} + {_title(settings)}"
    )
    check_flow(found)
    if not rewriting.opened:
        raise PassError(f"secure_sum found no sum in {graph.name}: leave it out")
    return found


def _title(settings: Settings) -> str:
    return "secure_sum()" if settings.is_real else "secure_sum(ideal)"


class _Rewriting:
    """One pass over a lowered graph: each fused sum becomes a sub-program, each count of a stage with such a
    sum the number of sites in it.
    """

    def __init__(self, graph: Graph, settings: Settings) -> None:
        self.graph, self.settings = graph, settings
        self.stage = stages(graph.nodes)
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
            self.new[node] = _get(self.opened[self.stage[node]], "num_sites", node.where)
            return True
        if any(arg not in self.new for arg in node.args):
            return False
        args = tuple(self.new[arg] for arg in node.args)
        if self.fused.get(self.stage[node]) is node:
            found = self._hidden(node, args)
            self.opened[self.stage[node]] = found
            self.new[node] = _get(found, "sums", node.where)
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
        bounds = {name: self.settings.bound_of(name, node.args[value]) for name, value, _, _ in lanes}
        fixed = {name: bound for name, bound in bounds.items() if bound is not None}
        weighted = tuple(name for name, _, weight, _ in lanes if weight is not None)
        memory = Node(Op.INPUT, SERVER, params={"slot": f"{prefix}.bounds"}, where=where)
        asked = Node(Op.REDUCE, SERVER, params={"kind": "count"}, name="count", where=where)
        agree = Agree(fixed, weighted, self.settings.weight_cap)
        agreed = _call(agree, SERVER, (asked, memory), where)
        told = Node(Op.BROADCAST, SITES, (agreed,), name="agreed", where=where)
        words = _call(Write(lanes), SITES, (told, *args), where)
        found = self._summed(node, words, lanes, prefix)
        learnt = _call(Learn(), SERVER, (memory, agreed, found), where)
        self.stored[SERVER, f"{prefix}.bounds"] = learnt
        return found

    def _summed(self, node: Node, words: Node, lanes: tuple[Lane, ...], prefix: str) -> Node:
        total = masked_total(node, words)
        delivered = gathered(
            _call(Named(), SITES, (self.site_id, words), node.where), f"{prefix}.delivered", node.where
        )
        return _call(ReadPlain(lanes, self.settings.min_cohort), SERVER, (total, delivered), node.where)


def _call(fn: Any, placement: Placement, args: tuple[Node, ...], where: str) -> Node:
    lift = "server" if placement is SERVER else "site"
    return Node(Op.CALL, placement, args, fn, {"lift": lift, "kwargs": ()}, where=where)


def _get(node: Node, key: str, where: str) -> Node:
    params = {"key": key, "attribute": True}
    return Node(Op.GET, node.placement, (node,), params=params, name=key, where=where)


def gathered(value: Node, name: str, where: str) -> Node:
    """Return the gather of a protocol's own message."""
    params = {"kind": "gather", "is_protocol": True}
    return Node(Op.REDUCE, SERVER, (value,), params=params, name=name, where=where)


def masked_total(node: Node, words: Node) -> Node:
    """Return the sum of the sites' words under the name of the sums that are in them."""
    names = tuple(lane[0] for lane in node.params["lanes"])
    lanes = ((node.name, 0, None, True, None),)
    params = {"kind": "sum", "lanes": lanes, "names": names}
    total = Node(Op.REDUCE, SERVER, (words,), params=params, name=node.name, where=node.where)
    key = {"key": node.name, "attribute": False}
    return Node(Op.GET, SERVER, (total,), params=key, name=node.name, where=node.where)
