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
from fedray.core.graph import IN_REGION, Asked, Node, Op, Placement
from fedray.errors import LATE, QuorumError, SiteError, VerifyError, Withheld
from fedray.rng import SERVER, Key
from fedray.runtime import totals
from fedray.runtime.buffered import Buffered
from fedray.runtime.fold import LaneSum
from fedray.runtime.hashes import sha256_of
from fedray.runtime.host import Contribution, Exponents, StageCall, name_of
from fedray.runtime.kept import Sender
from fedray.runtime.late import Aged, LateWork
from fedray.runtime.plan import Plan, lane_names
from fedray.runtime.region import Region
from fedray.runtime.schedule import Latency, Synchronous

ONE_SET = "E_DIFFERENCING"
WAYS_OUT = (
    "sites have opened shares of a sum of this model over other sites, in an attempt without a result, and "
    "refuse another (E_DIFFERENCING): the difference would show who is missing. Fix: go on when those are "
    "back; where one never is, a new run without it from other first parameters (seed=), with "
    "secure.second_set=true or differential privacy against the next such case"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What an attempt runs in: the hosts and the clock."""

    root: Region
    latency: Latency | None
    run: str
    sender: Sender = field(default_factory=Sender)


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One try at a round, and what it came to."""

    setting: Setting
    plan: Plan
    schedule: Synchronous | Buffered
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
    env: dict[int, Any] = field(default_factory=dict)  # what the server has computed, by node
    bytes_down: int = 0
    work_s: float = 0.0
    processes: set[int] = field(default_factory=set)
    late: LateWork | None = None  # who takes what misses the deadline
    aged: Sequence[Aged] = ()  # what was asked in earlier rounds and counts in this one

    def run(self, cohort: Sequence[str]) -> None:
        """Ask the cohort. Raises QuorumError where too few deliver; site state is then not committed."""
        self.cohort = tuple(cohort)
        try:
            self._stages()
        except QuorumError as error:
            refusals = sum(failure.kind == f"SecrecyError {ONE_SET}" for failure in self.failures)
            if not refusals:
                raise
            raise QuorumError(f"{error}. {refusals} {WAYS_OUT}") from error

    def _stages(self) -> None:
        alive = self.cohort
        for stage in range(self.plan.last_stage + 1):
            if stage % 2 == 0:
                self._server_stage(stage, *self._numbers_of(len(alive), self.aged if stage else ()))
                continue
            if not alive and (self.cohort or not self.aged):
                raise QuorumError(
                    f"round {self.round}: no site is left for stage {stage} of {self.plan.name}"
                )
            answers = list(self.aged)
            if alive:
                answer = self._ask(stage, alive, self._downlink(stage))
                self.failures += answer.failures
                alive = answer.delivered
                if stage <= self.plan.counting_stage or self.plan.needs_all:
                    self.counted = alive
                    self._check_quorum(alive)
                answers.insert(0, Aged(1.0, answer, self.grids))
            for each in answers:
                self._gather(stage, each.answer)
            self._reduce(stage, answers)
        self._end()

    @staticmethod
    def _numbers_of(num_alive: int, aged: Sequence[Aged]) -> tuple[int, float | None]:
        """Return how many sites are counted, and by what a uniform mean is divided where it is not that."""
        if not aged:
            return num_alive, None
        older = [(each.factor, len(each.answer.delivered)) for each in aged]
        return num_alive + sum(n for _, n in older), num_alive + sum(factor * n for factor, n in older)

    def begin(self) -> dict[int, Any]:
        """Do what the server does before it asks anyone; return what the sites of the first stage get."""
        self._server_stage(0, 0)
        return self._downlink(1)

    def finish(self, answers: Sequence[tuple[float, Contribution]]) -> None:
        """End a round of one site stage with answers that count by a factor, each of them apart."""
        self.counted = tuple(sorted(site for _, answer in answers for site in answer.delivered))
        for _, answer in answers:
            self.grids.update(answer.needs)
            self._gather(1, answer)
        self._reduce(1, [Aged(factor, answer, self.grids) for factor, answer in answers])
        weight = sum(factor * len(answer.delivered) for factor, answer in answers)
        self._server_stage(2, len(self.counted), weight)
        self._end()

    def _downlink(self, stage: int) -> dict[int, Any]:
        return {i: self.env[self.plan.args[i][0]] for i in self.plan.received(stage)}

    def _end(self) -> None:
        outputs = self.plan.outputs.items()
        self.outputs = {
            slot: self.env[index] for (placement, slot), index in outputs if placement is Placement.SERVER
        }
        self.env = {}  # of a large model it is several

    def _call(self, stage: int, cohort: tuple[str, ...]) -> StageCall:
        limit = self.schedule.deadline_s
        return StageCall(
            run=self.setting.run,
            plan=self.plan.digest,
            seed=self.seed,
            round=self.round,
            attempt=self.number,
            stage=stage,
            cohort=cohort,
            exponents=self.exponents,
            deadline=time.monotonic() + limit if limit and not self.setting.latency else None,
            is_awaited=self.late is not None,
        )

    def _ask(self, stage: int, alive: tuple[str, ...], downlink: dict[int, Any]) -> Contribution:
        root, left_s = self.setting.root, self._simulate_time(alive)
        on_time = tuple(site for site in alive if site not in left_s)
        late = tuple(SiteError(site, self.round, stage, LATE) for site in left_s)
        call = self._call(stage, on_time)
        if self.late is not None:
            self.late.keep(call, downlink, left_s)
        if not on_time:
            return Contribution(delivered=(), failures=late)
        nodes = {index: self.plan.nodes[index] for index in downlink}
        dealt = [i for i, node in nodes.items() if node.op is Op.SCATTER and not node.params.get("by")]
        box, sent = root.deal(self._message(downlink), dealt, on_time)
        self.bytes_down += sent
        answer = root.ask(call, box)
        self._note(answer)
        while not answer.is_folded:  # ends: exponents only grow, up to what the values need
            wider = {
                name: tuple(map(max, needs, call.exponents.get(name, needs)))
                for name, needs in answer.needs.items()
            }
            call = replace(call, exponents={**call.exponents, **wider}, commits=())
            answer = root.ask(call, box)
            self._note(answer)
        if self.late is not None:
            missed = [failure.site for failure in answer.failures if failure.kind == LATE]
            self.late.keep(call, box, dict.fromkeys(missed, 0.0))
        self._check_names(stage, answer)
        self.processes |= set(answer.processes)
        self.grids.update({name: call.exponents.get(name, found) for name, found in answer.needs.items()})
        return replace(answer, failures=answer.failures + late)

    def _note(self, answer: Contribution) -> None:
        self.work_s += answer.work_s
        self.bytes_down += answer.opened_bytes

    def _message(self, downlink: Mapping[int, Any]) -> dict[int, Any]:
        """Return the downlink without what hosts hold already."""
        plan, setting = self.plan, self.setting
        return {
            index: setting.sender.message(plan.digest, index, value, setting.root.transport.put)
            if plan.nodes[index].op is Op.BROADCAST
            else value
            for index, value in downlink.items()
        }

    def _simulate_time(self, alive: tuple[str, ...]) -> dict[str, float]:
        """Let the simulated clock move on; return who is late by then, and the seconds each needs yet."""
        if self.setting.latency is None:
            return {}
        seconds = {site: self.setting.latency(site, self.round) for site in alive}
        limit = self.schedule.deadline_s or float("inf")
        left_s = {site: seconds[site] - limit for site in alive if seconds[site] > limit}
        self.setting.root.transport.advance(limit if left_s else max(seconds.values()))
        return left_s

    def _server_stage(self, stage: int, num_delivered: int, weight: float | None = None) -> None:
        """Compute the server's nodes of a stage; `weight` is what a uniform mean is divided by, where it is
        not the number of sites.
        """
        plan, env = self.plan, self.env
        for index, node in enumerate(plan.nodes):
            if node.op is Op.REDUCE and node.params["kind"] == "count" and plan.stage[index] == stage:
                is_divisor = weight is not None and index in plan.divisors
                env[index] = weight if is_divisor else num_delivered
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
        """Return what the server has under a name: state, a key, who was asked, or a pass's memory."""
        if slot == "state":
            return self.state
        if slot == "asked":
            return Asked(self.setting.run, self.round, self.number, self.cohort)
        if slot.startswith("rng:"):
            return Key(self.seed, self.round, SERVER, slot[4:])
        return self.memory.get(slot)

    @property
    def numbers(self) -> dict[str, float]:
        """The plain numbers among the metrics, by path; a metric that is one number by its own name."""
        index = self.plan.outputs.get((Placement.SERVER, "metrics"))
        name = self.plan.nodes[index].name if index is not None else ""
        return {
            path or name or "value": float(leaf)
            for path, leaf in tree.leaves(self.outputs.get("metrics") or {})
            if tree.is_number(leaf) or (hasattr(leaf, "numel") and leaf.numel() == 1)
        }

    @property
    def next_memory(self) -> dict[str, Any]:
        """What passes keep at the server after this attempt."""
        return {slot: value for slot, value in self.outputs.items() if slot not in ("state", "metrics")}

    def _gather(self, stage: int, answer: Contribution) -> None:
        for index in self.plan.reduced(stage):
            node = self.plan.nodes[index]
            if node.params["kind"] == "gather":
                found = {**self.env.get(index, {}), **answer.gathered.get(node.name, {})}
                self.env[index] = {site: found[site] for site in sorted(found)}
                self.hashes[node.name] = sha256_of(self.env[index])[:16]

    def _reduce(self, stage: int, answers: Sequence[Aged]) -> None:
        for index in self.plan.reduced(stage):
            node = self.plan.nodes[index]
            if node.params["kind"] == "gather":
                continue
            self.env[index] = {}
            for name, _, _, is_exact, _ in node.params["lanes"]:
                keys = [name]
                if node.params.get("by"):
                    every = {key for each in answers for key in each.answer.sums}
                    keys = sorted(key for key in every if name_of(key) == name)
                found = {
                    key: self._total(
                        key,
                        [(each.factor, each.answer.sums[key], each.grids[key]) for each in answers],
                        is_exact,
                    )
                    for key in keys
                }
                by_region = {key.partition(IN_REGION)[2]: total for key, total in found.items()}
                self.env[index][name] = by_region if node.params.get("by") else found[name]

    def _total(
        self, key: str, sums: Sequence[tuple[float, Sequence[LaneSum], Sequence[int]]], is_exact: bool
    ) -> Any:
        """Return what the partial sums under a key come to, each of them times its factor."""
        found = [(factor, totals.result(parts, grid, True)) for factor, parts, grid in sums]
        total = totals.scaled(found, is_exact)
        if adds_noise(self.plan):
            return total  # its hash, and a grid that follows it, would tell of the sum without its noise
        read = total.parts if is_exact else total
        self.hashes[key] = sha256_of(read)[:16]
        grids = [
            totals.next_exponents(each.parts if is_exact or len(sums) > 1 else read, parts)
            for (_, each), (_, parts, _) in zip(found, sums, strict=True)
        ]
        self.next_grids[key] = tuple(map(max, *grids)) if len(grids) > 1 else grids[0]
        return total

    def _check_names(self, stage: int, answer: Contribution) -> None:
        """Refuse a value under a name that the plan does not list for this stage."""
        listed = {name for index in self.plan.reduced(stage) for name in lane_names(self.plan.nodes[index])}
        if unknown := ({name_of(key) for key in answer.sums} | answer.gathered.keys()) - listed:
            raise VerifyError(f"a host sent {sorted(unknown)} in stage {stage}, which `egress` does not list")

    def _check_quorum(self, alive: Sequence[str]) -> None:
        asked = len(self.setting.root.sites) if self.plan.needs_all else len(self.cohort)
        assert isinstance(self.schedule, Synchronous)  # a buffer is full, or its round is not over
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
        if Withheld.kind in kinds:
            fix = f"leave out sites that are too small, change what policy.airlock tests, {fix}"
        raise QuorumError(
            f"round {self.round} of {self.plan.name}: {len(alive)} of {asked} sites delivered and "
            f"{is_needed or f'the quorum is {needed}'} ({why}{first}). The server state is unchanged; {fix}, "
            "raise schedule.deadline_s, or mend the sites"
        )


def adds_noise(plan: Plan) -> bool:
    """Tell whether the server adds noise to sums before it releases them."""
    return any(node.placement is Placement.SERVER and hasattr(node.fn, "mechanism") for node in plan.nodes)
