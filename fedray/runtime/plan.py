"""Plan: a lowered, verified, staged graph with a digest, ready to be shipped to hosts."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fedray.core.digest import digest
from fedray.core.graph import Graph, Key, Node, Op, Placement, stages
from fedray.core.rewrite import Pass, policies
from fedray.core.trace import Algorithm, trace
from fedray.core.verify import verify
from fedray.errors import ConfigError, VerifyError
from fedray.passes import lowering

SERVER, SITES = Placement.SERVER, Placement.SITES
FOLDS = ("exact", "fast")


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
    fold: str = "exact"  # how sums are added, or "fast": see runtime/fold.py
    before: "Plan | None" = None  # what the schedule asks its candidates before the round

    @property
    def name(self) -> str:
        """The algorithm and its passes."""
        return self.graph.name

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
        """The last site stage whose reductions reach the server's next state."""
        return self._stages.counting

    def received(self, stage: int) -> list[int]:
        """Return the BROADCAST and SCATTER nodes whose values the sites need in this stage."""
        return self._stages.received.get(stage, [])

    def reduced(self, stage: int) -> list[int]:
        """Return the reductions that take what this site stage sends."""
        return self._stages.reduced.get(stage, [])

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

    def with_sizes(self, sizes: Mapping[str, Size], before: Mapping[str, Size] | None = None) -> "Plan":
        """Return the plan with the bytes of each name that leaves, in the round and before it."""
        asked = None if self.before is None else self.before.with_sizes(before or {})
        return replace(self, sizes=dict(sizes), before=asked)


class _Stages:
    """The nodes of a plan by what is done with them in each stage."""

    def __init__(self, plan: Plan) -> None:
        placed = list(zip(range(len(plan.nodes)), plan.nodes, plan.stage, strict=True))
        self.last = max(plan.stage, default=0)
        self.at_sites = sorted({at for _, node, at in placed if at % 2 == 1 and node.placement is SITES})
        self.counting = _counting_stage(plan, self.at_sites)
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
        if plan.nodes[i].op is Op.REDUCE and plan.nodes[i].params["kind"] != "count"
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
    learner = getattr(schedule, "learner", None)
    graph = lowering.check_operands(trace(learner.watching(algorithm) if learner else algorithm))
    for step in passes:
        graph = step(graph)
    verify(graph)
    graph = lowering.lower_at_sites(lowering.lower_mean(graph))
    graph = lowering.fuse_sums(graph)
    verify(graph)
    plan = number(graph)
    if fold != "exact":
        plan = replace(plan, fold=fold, digest=hashlib.sha256(f"{plan.digest} {fold}".encode()).hexdigest())
    if getattr(schedule, "choice", None) is not None:
        plan = _with_choice(plan, compile(schedule.choice.program, policies(passes)))
    if schedule is not None and hasattr(schedule, "check"):
        schedule.check(plan)
    return plan


def _with_choice(plan: Plan, before: Plan) -> Plan:
    """Return the plan with what is asked before its rounds. Raises VerifyError where a name leaves twice."""
    leaving = [{n for node in each.nodes if node.op is Op.REDUCE for n in lane_names(node)} - {"count"}
               for each in (plan, before)]  # fmt: skip
    if both := leaving[0] & leaving[1]:
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
