"""Plan: a lowered, verified, staged graph with a digest, ready to be shipped to hosts.

An algorithm whose rounds are of several kinds (`Algorithm.every`) has a plan for each kind; they share the
states, and the plan of `round` holds the others.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fedray.core.digest import digest
from fedray.core.graph import Graph, Key, Label, Node, Op, Placement, is_one_shot, names_of, stages
from fedray.core.rewrite import Pass, policies, refuse_unknown
from fedray.core.trace import Algorithm, trace
from fedray.core.verify import verify
from fedray.errors import ConfigError, TraceError, VerifyError
from fedray.passes import lowering

SERVER, SITES = Placement.SERVER, Placement.SITES
FOLDS = ("exact", "regional", "fast")


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes under one name: of a single site's own row, and of a partial sum over several sites."""

    row_bytes: int
    sum_bytes: int


@dataclass(frozen=True)
class Plan:
    """What is shipped to hosts. Nodes are numbered: `nodes[i]` has arguments `args[i]` and stage
    `stage[i]`.
    """

    graph: Graph
    nodes: tuple[Node, ...]
    args: tuple[tuple[int, ...], ...]
    stage: tuple[int, ...]
    digest: str
    outputs: Mapping[Key, int]
    sizes: Mapping[str, Size] = field(default_factory=dict)
    fold: str = "exact"  # how sums are added, "regional" or "fast": see fold.py
    before: "Plan | None" = None  # what the schedule asks its candidates before the round
    every: Mapping[int, "Plan"] = field(default_factory=dict)  # by period: of rounds of another kind
    once: Mapping[int, int] = field(default_factory=dict)  # bytes of a broadcast that a host gets once
    needs_all: bool = False  # every site holds a part of every record: a round without one is none
    needs_rows: bool = False  # a site without training rows would count as much as any other
    sites: tuple[str, ...] = ()  # that the algorithm was made for, where not any will do

    @property
    def name(self) -> str:
        """The algorithm and its passes."""
        return self.graph.name

    @property
    def kinds(self) -> "list[Plan]":
        """The plans of all kinds of rounds, this one first."""
        return [self, *self.every.values()]

    def of_round(self, round: int) -> "Plan":
        """Return the plan of a round: of the longest period that falls due."""
        due = [period for period in self.every if (round + 1) % period == 0]
        return self.every[max(due)] if due else self

    @property
    def is_by_region(self) -> bool:
        """Tell whether hosts must know the region of each site, in a round of this kind."""
        return self._stages.is_by_region

    @property
    def is_one_shot(self) -> bool:
        """Tell whether a round draws from the system's entropy (keys of masks, noise): it is never replayed.

        A host that is lost has lost its round, and what it answered once it never answers otherwise.
        """
        return self._stages.is_one_shot

    @property
    def last_stage(self) -> int:
        """The highest stage number."""
        return self._stages.last

    @property
    def site_stages(self) -> list[int]:
        """Stages that run at the sites."""
        return self._stages.at_sites

    @property
    def counting_stage(self) -> int:
        """The last site stage whose reductions reach the server's next state; a protocol's own messages are
        not among them: a site that is lost while masks are taken off is in the sum.
        """
        return self._stages.counting

    def received(self, stage: int) -> list[int]:
        """Return the BROADCAST and SCATTER nodes whose values the sites need in this stage."""
        return self._stages.received.get(stage, [])

    def reduced(self, stage: int) -> list[int]:
        """Return the reductions that take what this site stage sends."""
        return self._stages.reduced.get(stage, [])

    @property
    def divisors(self) -> frozenset[int]:
        """Counts that a uniform mean is divided by, and nothing else is made of."""
        return self._stages.divisors

    def local(self, stage: int) -> list[int]:
        """Return what the sites compute in this stage, arguments first; constants among it."""
        return self._stages.local.get(stage, [])

    def at_server(self, stage: int) -> list[int]:
        """Return what the server computes in this stage, arguments first; constants among it."""
        return self._stages.at_server.get(stage, [])

    @cached_property
    def _stages(self) -> "_Stages":
        """The nodes by stage, looked through once: each round asks a dozen times."""
        return _Stages(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # not what was derived

    def site_starts(self, state: Any) -> dict[str, Any]:
        """Return what each slot of a site starts with, computed once, at the server."""
        return {
            slot: init(state)
            for kind in self.kinds
            for (placement, slot), init in kind.graph.inits.items()
            if placement is SITES
        }

    @property
    def num_gathered(self) -> int:
        """How often the server holds a value of every site at a time, for a function that compares them."""
        return sum(getattr(node.fn, "needs", None) is Label.VISIBLE for node in self.nodes)

    @property
    def slots(self) -> list[str]:
        """Names of what the sites keep between rounds."""
        return [slot for placement, slot in self.outputs if placement is SITES]

    @property
    def site_bytes(self) -> int | None:
        """Bytes that a site alone in its process sends in a round; None where they are not known."""
        names = [name for stage in self.site_stages for i in self.reduced(stage)
                 for name in lane_names(self.nodes[i])]
        if any(name not in self.sizes for name in names):
            return None
        return sum(self.sizes[name].row_bytes for name in names)

    def with_sizes(
        self,
        sizes: Mapping[str, Size],
        before: Mapping[str, Size] | None = None,
        every: Mapping[int, Mapping[str, Size]] | None = None,
        once: Mapping[int, int] | None = None,
    ) -> "Plan":
        """Return the plan with the bytes of each name that leaves: in the round, before it, and in rounds of
        other kinds, by period; and those of what a host gets once.
        """
        asked = None if self.before is None else self.before.with_sizes(before or {})
        told = every or {}
        others = {period: plan.with_sizes(told.get(period, {})) for period, plan in self.every.items()}
        return replace(self, sizes=dict(sizes), before=asked, every=others, once=dict(once or {}))


class _Stages:
    """The nodes of a plan by what is done with them in each stage."""

    def __init__(self, plan: Plan) -> None:
        placed = list(zip(range(len(plan.nodes)), plan.nodes, plan.stage, strict=True))
        self.last = max(plan.stage, default=0)
        self.at_sites = sorted({at for _, node, at in placed if at % 2 == 1 and node.placement is SITES})
        self.counting = _counting_stage(plan, self.at_sites)
        self.is_one_shot = any(is_one_shot(node) for node in plan.nodes)
        self.is_by_region = any(node.params.get("by") for node in plan.nodes)
        users: dict[int, list[Node]] = {}
        for _, node, args in zip(range(len(plan.nodes)), plan.nodes, plan.args, strict=True):
            for arg in args:
                users.setdefault(arg, []).append(node)
        self.divisors = frozenset(
            i
            for i, node, _ in placed
            if node.op is Op.REDUCE
            and node.params["kind"] == "count"
            and all(user.fn is lowering.divide for user in users.get(i, ()))
        )
        self.received: dict[int, list[int]] = {}
        self.reduced: dict[int, list[int]] = {}
        self.local: dict[int, list[int]] = {}
        self.at_server: dict[int, list[int]] = {}
        for stage in range(self.last + 1):
            here = [(i, node) for i, node, at in placed if at == stage or node.op is Op.CONST]
            self.local[stage] = [i for i, node in here if node.op is Op.CONST or node.placement is SITES]
            at_server = (Op.CALL, Op.GET, Op.INPUT)
            self.at_server[stage] = [
                i
                for i, node in here
                if node.op is Op.CONST or (node.placement is SERVER and node.op in at_server)
            ]
            self.received[stage] = [i for i, node in here if node.op in (Op.BROADCAST, Op.SCATTER)]
            self.reduced[stage - 1] = [
                i for i, node in here if node.op is Op.REDUCE and node.params["kind"] != "count"
            ]


def _counting_stage(plan: Plan, site_stages: Sequence[int]) -> int:
    reached: set[int] = set()
    todo = [index for (placement, _), index in plan.outputs.items() if placement is SERVER]
    while todo:
        index = todo.pop()
        if index not in reached:
            reached.add(index)
            todo.extend(plan.args[index])
    found = [
        plan.stage[i] - 1
        for i in reached
        if plan.nodes[i].op is Op.REDUCE
        and plan.nodes[i].params["kind"] != "count"
        and not plan.nodes[i].params.get("is_protocol")
    ]
    return max(found, default=max(site_stages, default=0))


def lane_names(node: Node) -> list[str]:
    """Return the names under which a reduction's values leave."""
    return [lane[0] for lane in node.params["lanes"]] if "lanes" in node.params else [node.name]


def compile(
    algorithm: Algorithm, passes: Sequence[Pass] = (), schedule: Any = None, fold: str = "exact"
) -> Plan:
    """Trace the round, apply the passes, lower, verify and number it. For `fold` see `fit`.

    Raises TraceError, PassError, PolicyError, VerifyError or ScheduleError, before any site is touched.
    """
    if fold not in FOLDS:
        raise ConfigError(f"fold={fold!r}: choose one of {', '.join(FOLDS)}")
    plan = _compiled(algorithm, passes, schedule, fold)
    refuse_unknown(passes, _values(plan), plan.name)
    return plan


def _values(plan: Plan) -> set[str]:
    """Return the names of the values that leave in rounds of any kind, without weights and protocols."""
    sums = [node for kind in plan.kinds for node in kind.nodes
            if node.op is Op.REDUCE and node.params["kind"] != "count"]  # fmt: skip
    found = [names_of(node) if "names" in node.params else lane_names(node) for node in sums]
    names = {name for of_node in found for name in of_node}
    return {name for name in names if not name.endswith(".weight") and not name.startswith("secure.")}


def _compiled(algorithm: Algorithm, passes: Sequence[Pass], schedule: Any, fold: str) -> Plan:
    learner, shows_one = getattr(schedule, "learner", None), getattr(schedule, "shows_one_site", False)
    graph = lowering.check_operands(trace(learner.watching(algorithm) if learner else algorithm))
    for step in passes:
        is_judged = shows_one and policies([step])
        graph = step(lowering.show_one_site(graph) if is_judged else graph)
    verify(graph)
    graph = lowering.lower_mean(lowering.lower_at_sites(graph))
    graph = lowering.fuse_sums(graph)
    graph = lowering.show_one_site(graph) if shows_one else graph
    verify(graph)
    plan = replace(number(graph), needs_all=algorithm.needs_all, needs_rows=algorithm.needs_rows,
                   sites=algorithm.sites)  # fmt: skip
    if fold != "exact":
        plan = replace(plan, fold=fold, digest=hashlib.sha256(f"{plan.digest} {fold}".encode()).hexdigest())
    if algorithm.every:
        plan = _with_others(plan, algorithm, passes, fold)
    if getattr(schedule, "choice", None) is not None:
        plan = _with_choice(plan, compile(schedule.choice.program, policies(passes)))
    if schedule is not None and hasattr(schedule, "check"):
        for kind in plan.kinds:
            schedule.check(kind)
    return plan


def _with_others(plan: Plan, algorithm: Algorithm, passes: Sequence[Pass], fold: str) -> Plan:
    """Return the plan with those of rounds of other kinds. Raises TraceError on a period below 2."""
    if wrong := [period for period in algorithm.every if not isinstance(period, int) or period < 2]:
        raise TraceError(
            f"{plan.name}: every={wrong}: a period is a whole number of rounds, 2 or more; where every round "
            "is of that kind, make it the algorithm's round="
        )
    every = {
        period: _compiled(replace(algorithm, round=algorithm.every[period], every={}), passes, None, fold)
        for period in sorted(algorithm.every)
    }
    told = " ".join(f"{period}:{other.digest}" for period, other in every.items())
    return replace(plan, every=every, digest=hashlib.sha256(f"{plan.digest} {told}".encode()).hexdigest())


def _with_choice(plan: Plan, before: Plan) -> Plan:
    """Return the plan with what is asked before its rounds. Raises VerifyError where a name leaves twice."""
    *leaving, told = [{n for node in each.nodes if node.op is Op.REDUCE for n in lane_names(node)} - {"count"}
                      for each in (*plan.kinds, before)]  # fmt: skip
    if both := told & set().union(*leaving):
        raise VerifyError(
            f"{plan.name} and {before.name}, which chooses its sites, both send {sorted(both)}: "
            "give one another name="
        )
    digest = hashlib.sha256(f"{plan.digest} {before.digest}".encode()).hexdigest()
    return replace(plan, before=before, digest=digest)


def number(graph: Graph) -> Plan:
    """Number the nodes of a graph and stage them."""
    nodes = tuple(graph.nodes)
    index = {node: i for i, node in enumerate(nodes)}
    stage = stages(nodes)
    for node in nodes:
        if node.placement is SERVER and node.op in (Op.CALL, Op.GET) and stage[node] % 2:
            raise VerifyError(f"{graph.name}, {node.where}: a server step has fallen into a site stage")
    return Plan(
        graph,
        nodes,
        tuple(tuple(index[arg] for arg in node.args) for node in nodes),
        tuple(stage[node] for node in nodes),
        digest(graph),
        {key: index[node] for key, node in graph.outputs.items()},
    )
