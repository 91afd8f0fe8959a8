"""One attempt of a round, written once: server stages, site stages, counting. Every host and transport uses
this.

`Attempt.run` walks the stages of a plan. At an even stage it computes the server's nodes; at an odd one it
sends the downlink to the hosts below, takes what they deliver, and checks the quorum up to the counting
stage.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fedray import tree
from fedray.core.graph import Node, Op, Placement
from fedray.errors import QuorumError, SiteError, VerifyError
from fedray.runtime import fold
from fedray.runtime.host import Contribution, Exponents, StageCall
from fedray.runtime.pack import nbytes
from fedray.runtime.plan import Plan, lane_names
from fedray.runtime.region import Region
from fedray.runtime.schedule import Latency, Synchronous

HASHED_BYTES = 8 * 2**20  # leaves up to this size are hashed bit by bit
BLOCK_WORDS = 2**14  # 32-bit words of a block digest


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
            if stage <= self.plan.counting_stage:
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
        answer = root.run(call, box)
        self.work_s += answer.work_s
        while not answer.is_folded:  # ends: exponents only grow, up to what the values need
            wider = {
                name: tuple(map(max, needs, call.exponents.get(name, needs)))
                for name, needs in answer.needs.items()
            }
            call = replace(call, exponents={**call.exponents, **wider}, commits=())
            answer = root.run(call, box)
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
        late = tuple(SiteError(site, self.round, stage, "late") for site in alive if seconds[site] > limit)
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
            return self.state if node.params["slot"] == "state" else self.setting.regions
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

    def _reduce(self, stage: int, answer: Contribution, env: dict[int, Any]) -> None:
        for index in self.plan.reduced(stage):
            node = self.plan.nodes[index]
            if node.params["kind"] == "gather":
                found = answer.gathered.get(node.name, {})
                env[index] = {site: found[site] for site in sorted(found)}
                self.hashes[node.name] = sha256_of(env[index])[:16]
                continue
            env[index] = {}
            for name, _, _, is_exact in node.params["lanes"]:
                total = fold.result(answer.sums[name], self.grids[name], is_exact)
                plain = total.value if is_exact else total
                self.hashes[name] = sha256_of(plain)[:16]
                self.next_grids[name] = fold.next_exponents(plain, answer.sums[name])
                env[index][name] = total

    def _check_names(self, stage: int, answer: Contribution) -> None:
        """Refuse a value under a name that the plan does not list for this stage."""
        listed = {name for index in self.plan.reduced(stage) for name in lane_names(self.plan.nodes[index])}
        if unknown := (answer.sums.keys() | answer.gathered.keys()) - listed:
            raise VerifyError(f"a host sent {sorted(unknown)} in stage {stage}, which `egress` does not list")

    def _check_quorum(self, alive: Sequence[str]) -> None:
        needed = self.schedule.needed(len(self.cohort))
        if len(alive) >= needed:
            return
        kinds: dict[str, int] = {}
        for failure in self.failures:
            kinds[failure.kind] = kinds.get(failure.kind, 0) + 1
        why = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
        first = f"; first: {self.failures[0]}" if self.failures else ""
        raise QuorumError(
            f"round {self.round} of {self.plan.name}: {len(alive)} of {len(self.cohort)} sites delivered and "
            f"the quorum is {needed} ({why}{first}). The server state is unchanged; lower schedule.quorum, "
            "raise schedule.deadline_s, or mend the sites"
        )


def sha256_of(value: Any) -> str:
    """Return the SHA-256 of a value's paths, dtypes and bits; equal values have equal hashes everywhere.

    Of a leaf of more than 8 MB the digests of its blocks enter in place of its bits: wrapping dot products of
    the 32-bit words with fixed odd 64-bit numbers, one digest for each 64 kB. That finds changed bits and
    moved blocks at twice the speed of SHA-256, without a copy; it does not stop who seeks a collision.
    """
    digest = hashlib.sha256()
    for path, leaf in tree.leaves(value):
        numbers = leaf.buffer if isinstance(leaf, tree.Flat) else leaf
        digest.update(path.encode())
        if hasattr(numbers, "detach"):
            digest.update(str(numbers.dtype).encode())
            bits = numbers.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            digest.update((bits if bits.nbytes <= HASHED_BYTES else block_digests(bits)).data)
        else:
            digest.update((numbers.hex() if isinstance(numbers, float) else repr(numbers)).encode())
    return digest.hexdigest()


def block_digests(bits: np.ndarray) -> np.ndarray:
    """Return the length of some bytes and a 64-bit digest of each block of them."""
    words = bits[: bits.nbytes // 4 * 4].view("<u4")
    # the finaliser of splitmix64 spreads the counter over all 64 bits
    factors = np.arange(1, BLOCK_WORDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        factors = (factors ^ (factors >> np.uint64(shift))) * np.uint64(factor)
    factors |= np.uint64(1)
    starts = range(0, len(words), BLOCK_WORDS)
    found = np.empty(len(starts) + 2, dtype="<u8")
    for index, start in enumerate(starts):
        block = words[start : start + BLOCK_WORDS].astype(np.uint64)
        found[index] = np.dot(block, factors[: len(block)])  # modulo 2^64
    found[-2] = int.from_bytes(bits[len(words) * 4 :].tobytes(), "little")
    found[-1] = bits.nbytes
    return found
