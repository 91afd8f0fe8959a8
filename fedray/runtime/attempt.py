"""One attempt of a round, written once: server stages, site stages, counting. Every host and transport uses
this.

`Attempt.run` walks the stages of a plan. At an even stage it computes the server's nodes; at an odd one it
sends the downlink to the hosts below, takes what they deliver, and checks the quorum up to the counting
stage.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedray import tree
from fedray.core.graph import Node, Op, Placement
from fedray.errors import LATE, QuorumError, SiteError, VerifyError
from fedray.rng import SERVER, Key
from fedray.runtime import totals
from fedray.runtime.hashes import sha256_of
from fedray.runtime.host import Contribution, Exponents, StageCall
from fedray.runtime.pack import nbytes
from fedray.runtime.plan import Plan, lane_names
from fedray.runtime.region import Region
from fedray.runtime.schedule import Latency, Synchronous


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What an attempt runs in: the hosts, the declared regions, the clock."""

    root: Region
    regions: Mapping[str, str]
    latency: Latency | None
    run: str


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One try at a round, and what it came to."""

    setting: Setting
    plan: Plan
    schedule: Synchronous
    state: Any
    seed: int
    round: int
    memory: Mapping[str, Any] = field(default_factory=dict)  # of passes, at the server
    number: int = 0
    exponents: Exponents = field(default_factory=dict)
    cohort: tuple[str, ...] = ()
    outputs: dict[str, Any] = field(default_factory=dict)
    counted: tuple[str, ...] = ()
    failures: list[SiteError] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    grids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    next_grids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    bytes_down: int = 0
    work_s: float = 0.0
    processes: set[int] = field(default_factory=set)

    def run(self, cohort: Sequence[str]) -> None:
        """Ask the cohort. Raises QuorumError where too few deliver; site state is then not committed."""
        self.cohort = tuple(cohort)
        env: dict[int, Any] = {}
        alive = self.cohort
        for stage in range(self.plan.last_stage + 1):
            if stage % 2 == 0:
                self._server_stage(stage, env, len(alive))
                continue
            if not alive:
                raise QuorumError(
                    f"round {self.round}: no site is left for stage {stage} of {self.plan.name}"
                )
            answer = self._ask(
                stage, alive, {i: env[self.plan.args[i][0]] for i in self.plan.received(stage)}
            )
            self.failures += answer.failures
            alive = answer.delivered
            if stage <= self.plan.counting_stage or self.plan.needs_all:
                self.counted = alive
                self._check_quorum(alive)
            self._reduce(stage, answer, env)
        outputs = self.plan.outputs.items()
        self.outputs = {
            slot: env[index] for (placement, slot), index in outputs if placement is Placement.SERVER
        }

    def _ask(self, stage: int, alive: tuple[str, ...], downlink: dict[int, Any]) -> Contribution:
        limit, root = self.schedule.deadline_s, self.setting.root
        on_time, late = self._simulate_time(stage, alive)
        if not on_time:
            return Contribution(delivered=(), failures=late)
        call = StageCall(
            run=self.setting.run,
            plan=self.plan.digest,
            seed=self.seed,
            round=self.round,
            attempt=self.number,
            stage=stage,
            cohort=on_time,
            exponents=self.exponents,
            deadline=time.time() + limit if limit and not self.setting.latency else None,
        )
        box = root.transport.put(downlink)
        self.bytes_down += nbytes(downlink) * len(root.by_child(on_time))
        answer = root.ask(call, box)
        self.work_s += answer.work_s
        while not answer.is_folded:  # ends: exponents only grow, up to what the values need
            wider = {
                name: tuple(map(max, needs, call.exponents.get(name, needs)))
                for name, needs in answer.needs.items()
            }
            call = replace(call, exponents={**call.exponents, **wider}, commits=())
            answer = root.ask(call, box)
            self.work_s += answer.work_s
        self._check_names(stage, answer)
        self.processes |= set(answer.processes)
        self.grids.update({name: call.exponents.get(name, found) for name, found in answer.needs.items()})
        return replace(answer, failures=answer.failures + late)

    def _simulate_time(
        self, stage: int, alive: tuple[str, ...]
    ) -> tuple[tuple[str, ...], tuple[SiteError, ...]]:
        """With a latency model, sites slower than the deadline are late, and the clock moves on."""
        if self.setting.latency is None:
            return alive, ()
        seconds = {site: self.setting.latency(site, self.round) for site in alive}
        limit = self.schedule.deadline_s or float("inf")
        on_time = tuple(site for site in alive if seconds[site] <= limit)
        self.setting.root.transport.advance(max(seconds.values()) if on_time == alive else limit)
        late = tuple(SiteError(site, self.round, stage, LATE) for site in alive if seconds[site] > limit)
        return on_time, late

    def _server_stage(self, stage: int, env: dict[int, Any], num_delivered: int) -> None:
        plan = self.plan
        for index, node in enumerate(plan.nodes):
            if node.op is Op.REDUCE and node.params["kind"] == "count" and plan.stage[index] == stage:
                env[index] = num_delivered
        for index in plan.at_server(stage):
            env[index] = self._server_node(plan.nodes[index], [env[arg] for arg in plan.args[index]])

    def _server_node(self, node: Node, args: list[Any]) -> Any:
        if node.op is Op.CONST:
            return node.params["value"]
        if node.op is Op.INPUT:
            return self._input(node.params["slot"])
        if node.op is Op.GET:
            key = node.params["key"]
            return getattr(args[0], key) if node.params["attribute"] else args[0][key]
        names = node.params.get("kwargs", ())
        cut = len(args) - len(names)
        try:
            if node.params["lift"] == "leafwise":
                return tree.map(node.fn or (lambda *values: values), *args)
            return node.fn(*args[:cut], **dict(zip(names, args[cut:], strict=True))) if node.fn else None
        except Exception as error:
            error.add_note(f"in the server step of {self.plan.name} at {node.where}")
            raise

    def _input(self, slot: str) -> Any:
        """Return what the server has under a name: state, regions, a key, or a pass's memory."""
        if slot == "state":
            return self.state
        if slot == "regions":
            return self.setting.regions
        if slot.startswith("rng:"):
            return Key(self.seed, self.round, SERVER, slot[4:])
        return self.memory.get(slot)

    @property
    def next_memory(self) -> dict[str, Any]:
        """What passes keep at the server after this attempt."""
        return {slot: value for slot, value in self.outputs.items() if slot not in ("state", "metrics")}

    def _reduce(self, stage: int, answer: Contribution, env: dict[int, Any]) -> None:
        for index in self.plan.reduced(stage):
            node = self.plan.nodes[index]
            if node.params["kind"] == "gather":
                found = answer.gathered.get(node.name, {})
                env[index] = {site: found[site] for site in sorted(found)}
                self.hashes[node.name] = sha256_of(env[index])[:16]
                continue
            env[index] = {}
            for name, _, _, is_exact, _ in node.params["lanes"]:
                total = totals.result(answer.sums[name], self.grids[name], is_exact)
                read = total.parts if is_exact else total
                self.hashes[name] = sha256_of(read)[:16]
                self.next_grids[name] = totals.next_exponents(read, answer.sums[name])
                env[index][name] = total

    def _check_names(self, stage: int, answer: Contribution) -> None:
        """Refuse a value under a name that the plan does not list for this stage."""
        listed = {name for index in self.plan.reduced(stage) for name in lane_names(self.plan.nodes[index])}
        if unknown := (answer.sums.keys() | answer.gathered.keys()) - listed:
            raise VerifyError(f"a host sent {sorted(unknown)} in stage {stage}, which `egress` does not list")

    def _check_quorum(self, alive: Sequence[str]) -> None:
        asked = len(self.setting.root.sites) if self.plan.needs_all else len(self.cohort)
        needed = asked if self.plan.needs_all else self.schedule.needed(asked)
        if len(alive) >= needed:
            return
        kinds: dict[str, int] = {}
        for failure in self.failures:
            kinds[failure.kind] = kinds.get(failure.kind, 0) + 1
        why = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
        first = f"; first: {self.failures[0]}" if self.failures else ""
        is_needed = "each is needed, for it holds a part of every record" * self.plan.needs_all
        fix = "ask all sites (schedule.cohort=1.0)" if self.plan.needs_all else "lower schedule.quorum"
        raise QuorumError(
            f"round {self.round} of {self.plan.name}: {len(alive)} of {asked} sites delivered and "
            f"{is_needed or f'the quorum is {needed}'} ({why}{first}). The server state is unchanged; {fix}, "
            "raise schedule.deadline_s, or mend the sites"
        )
