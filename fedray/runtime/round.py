"""One round, written once: server stages, site stages, counting, commit. Every host and transport uses this file.

The `Aggregator` holds the server's state and the root of the host tree. In Ray it is an actor, so model bytes go
from host to aggregator and never through the driver; in process it is a plain object. Same code, same bits.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedray import tree
from fedray.core.graph import Op, Placement
from fedray.errors import CheckpointError, FedrayError, QuorumError, SiteError, VerifyError
from fedray.runtime import checkpoint, fold
from fedray.runtime.host import Commit, Contribution, Load, StageCall
from fedray.runtime.pack import nbytes
from fedray.runtime.plan import Plan, lane_names
from fedray.runtime.records import CallRecord, RoundRecord
from fedray.runtime.region import Region
from fedray.runtime.schedule import Latency, Synchronous

SERVER, SITES = Placement.SERVER, Placement.SITES
JOURNAL_BYTES = 256 * 2**20  # downlinks kept for a replay; beyond it the sites' state is saved


@dataclass(slots=True)
class Attempt:
    """What one attempt of a round came to."""

    outputs: dict[str, Any] = field(default_factory=dict)
    counted: tuple[str, ...] = ()
    failures: list[SiteError] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    grids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    next_grids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    bytes_down: int = 0
    processes: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Training:
    """The run that an aggregator is in: its plan, schedule, seed and name."""

    plan: Plan
    schedule: Synchronous
    seed: int
    run: str


class Aggregator:
    """The server: state, rounds, commits, checkpoints."""

    def __init__(self, root: Region, regions: Mapping[str, str] | None = None, latency: Latency | None = None) -> None:
        self.root, self.regions, self.latency = root, dict(regions or {}), latency
        self.sizes: dict[str, int] = {}
        self.state: Any = None
        self.training: Training | None = None
        self.exponents: dict[str, dict[str, tuple[int, ...]]] = {}  # plan -> lane -> grid
        self.loaded: set[str] = set()
        self.names: dict[str, dict[int, frozenset[str]]] = {}  # plan -> stage -> names that may arrive
        self.last: Attempt = Attempt()
        self._start = ""  # hash of the run's first server state, part of every checkpoint
        self._initial: dict[str, Any] = {}
        self._kept_bytes = 0
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def hello(self) -> dict[str, int]:
        """Let every host open its data; return the training rows of each site."""
        self.sizes = self.root.hello()
        return self.sizes

    def blank(self) -> Any:
        """Return a made-up site: the columns of one site with zeros in a few rows."""
        return self.root.blank()

    def prepare(self, transform: Any) -> None:
        """Pass every site's data through a function, where it lies."""
        self.root.prepare(transform)

    def start(self, training: Training, state: Any, restore: tuple[str, int] | None = None) -> int:
        """Take a run on, from `state` or from a checkpoint; return the first round to run."""
        self.training, self.state, self._start = training, state, sha256_of(state)
        self.loaded.clear()
        first = 0
        self._initial = initial = {slot: init(state) for (placement, slot), init in
                                   training.plan.graph.inits.items() if placement is SITES}
        if restore is not None:
            facts, self.state = checkpoint.read_server(*restore)
            if facts["digest"] != training.plan.digest or facts["start"] != self._start:
                raise CheckpointError(f"the checkpoint of round {restore[1]} belongs to another plan or another start "
                                      "(algorithm, passes or initial parameters differ): resume with the same ones")
            grids = facts["grids"]
            self.exponents[training.plan.digest] = {name: tuple(found) for name, found in grids.items()}
            first = int(facts["round"]) + 1
        else:
            self.exponents.pop(training.plan.digest, None)
        self._load(training.plan, initial, restore)
        return first

    def _load(self, plan: Plan, initial: Mapping[str, Any], restore: tuple[str, int] | None = None) -> None:
        if plan.digest not in self.loaded:
            self.root.load(Load(plan=plan, initial=initial, restore=restore))
            self.names[plan.digest] = {stage: frozenset(name for index in plan.reduced(stage)
                                                        for name in lane_names(plan.nodes[index]))
                                       for stage in plan.site_stages}
            self.loaded.add(plan.digest)

    def run_round(self, round: int) -> RoundRecord:
        """Run one round. Raises QuorumError where too few sites were counted and the schedule says to raise."""
        training = self._in_training()
        schedule, started = training.schedule, self.root.transport.now()
        up = sum(self.root.bytes_up.values())
        cohort = schedule.cohort_of(round, training.seed, self.root.sites, self.sizes)
        if not cohort:  # poisson sampling may ask nobody
            return RoundRecord(round=round, attempt=0, metrics={}, asked=0, counted=0, failures=(), seconds=0.0,
                               bytes_up=0, bytes_down=0, status="skipped")
        failures: list[SiteError] = []
        for number in range(1 + (schedule.retries if schedule.on_failure == "retry" else 0)):
            attempt = Attempt()
            error: QuorumError | None = None
            try:
                self._attempt(attempt, training.plan, self.state, training.seed, round, number, cohort, schedule)
            except QuorumError as caught:
                error = caught
            failures += attempt.failures
            if error is None:
                break
        self.last = attempt
        if error is not None and schedule.on_failure != "skip":
            raise error
        if error is None:
            self._accept(attempt, training.plan, round, number)
        metrics = {path: float(leaf) for path, leaf in tree.leaves(attempt.outputs.get("metrics") or {})
                   if tree.is_number(leaf) or (hasattr(leaf, "numel") and leaf.numel() == 1)}
        return RoundRecord(round=round, attempt=number, metrics=metrics, asked=len(cohort),
                           counted=len(attempt.counted) if error is None else 0, failures=tuple(failures),
                           seconds=self.root.transport.now() - started,
                           bytes_up=sum(self.root.bytes_up.values()) - up, bytes_down=attempt.bytes_down,
                           hashes=attempt.hashes, grids=attempt.grids, status="counted" if error is None else "skipped")

    def _accept(self, attempt: Attempt, plan: Plan, round: int, number: int) -> None:
        self.state = attempt.outputs["state"]
        self.exponents.setdefault(plan.digest, {}).update(attempt.next_grids)
        self.root.owe([Commit(plan.digest, round, number, frozenset(attempt.counted))])
        attempt.hashes["server"] = sha256_of(self.state)[:16]
        if self.root.is_replaying:
            self._kept_bytes += attempt.bytes_down
            if self._kept_bytes > JOURNAL_BYTES:
                self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="fedray-sites-")
                self._save_sites(self._scratch.name, round)

    def _save_sites(self, directory: str, round: int) -> None:
        self.root.commit([])
        self.root.save(directory, round)
        self._kept_bytes = 0

    def _in_training(self) -> Training:
        if self.training is None:
            raise FedrayError("no run was started: call fit()")
        return self.training

    def _attempt(self, attempt: Attempt, plan: Plan, state: Any, seed: int, round: int, number: int,
                 cohort: Sequence[str], schedule: Synchronous) -> None:
        env: dict[int, Any] = {}
        alive = tuple(cohort)
        for stage in range(plan.last_stage + 1):
            if stage % 2 == 0:
                self._server_stage(plan, stage, env, state, len(alive))
                continue
            if not alive:
                raise QuorumError(f"round {round}: no site is left for stage {stage} of {plan.name}")
            call = StageCall(run=self.training.run if self.training else "", plan=plan.digest, seed=seed, round=round,
                             attempt=number, stage=stage, cohort=alive, exponents=self.exponents.get(plan.digest, {}),
                             deadline=time.time() + schedule.deadline_s if schedule.deadline_s and not self.latency
                             else None)
            answer = self._ask(attempt, call, {i: env[plan.args[i][0]] for i in plan.received(stage)}, schedule)
            attempt.failures += answer.failures
            alive = answer.delivered
            if stage <= plan.counting_stage:
                attempt.counted = alive
                _check_quorum(plan, round, schedule, cohort, alive, attempt.failures)
            self._reduce(attempt, plan, stage, answer, env)
        attempt.outputs = {slot: env[index] for (placement, slot), index in plan.outputs.items() if placement is SERVER}

    def _ask(self, attempt: Attempt, call: StageCall, downlink: dict[int, Any], schedule: Synchronous) -> Contribution:
        call, late = self._simulate_time(call, schedule)
        if not call.cohort:
            return Contribution(delivered=(), failures=late)
        box = self.root.transport.put(downlink)
        attempt.bytes_down += nbytes(downlink) * sum(
            1 for child in self.root.children.values() if not set(child.sites).isdisjoint(call.cohort))
        answer = self.root.run(call, box)
        while (wider := _widened(answer, call)) is not None:  # ends: exponents only grow, up to what is needed
            call = replace(call, exponents=wider, commits=())
            answer = self.root.run(call, box)
        _check_names(call, answer, self.names[call.plan])
        attempt.processes |= set(answer.processes)
        attempt.grids.update({name: call.exponents.get(name, found) for name, found in answer.needs.items()})
        return replace(answer, failures=answer.failures + late)

    def _simulate_time(self, call: StageCall, schedule: Synchronous) -> tuple[StageCall, tuple[SiteError, ...]]:
        """With a latency model, sites slower than the deadline are late, and the clock moves on."""
        if self.latency is None:
            return call, ()
        seconds = {site: self.latency(site, call.round) for site in call.cohort}
        limit = schedule.deadline_s or float("inf")
        on_time = tuple(site for site in call.cohort if seconds[site] <= limit)
        is_complete = len(on_time) == len(call.cohort)
        self.root.transport.advance(max(seconds.values()) if is_complete else limit)
        late = tuple(SiteError(site, call.round, call.stage, "late") for site in call.cohort if seconds[site] > limit)
        return replace(call, cohort=on_time), late

    def _server_stage(self, plan: Plan, stage: int, env: dict[int, Any], state: Any, num_delivered: int) -> None:
        for index, node in enumerate(plan.nodes):
            if node.op is Op.REDUCE and node.params["kind"] == "count" and plan.stage[index] == stage:
                env[index] = num_delivered
        for index in plan.at_server(stage):
            node, args = plan.nodes[index], [env[arg] for arg in plan.args[index]] if plan.args[index] else []
            if node.op is Op.CONST:
                env[index] = node.params["value"]
            elif node.op is Op.INPUT:
                env[index] = state if node.params["slot"] == "state" else self.regions
            elif node.op is Op.GET:
                key = node.params["key"]
                env[index] = getattr(args[0], key) if node.params["attribute"] else args[0][key]
            else:
                env[index] = _server_call(plan, node.fn, node.params, args, node.where)

    def _reduce(self, attempt: Attempt, plan: Plan, stage: int, answer: Contribution, env: dict[int, Any]) -> None:
        for index in plan.reduced(stage):
            node = plan.nodes[index]
            if node.params["kind"] == "gather":
                found = answer.gathered.get(node.name, {})
                env[index] = {site: found[site] for site in sorted(found)}
                attempt.hashes[node.name] = sha256_of(env[index])[:16]
                continue
            env[index] = {}
            for name, _, _, is_exact in node.params["lanes"]:
                part = answer.sums[name]
                exponents = attempt.grids[name]
                total = fold.result(part, exponents, is_exact)
                plain = total.value if is_exact else total
                attempt.hashes[name] = sha256_of(plain)[:16]
                attempt.next_grids[name] = fold.next_exponents(plain, part)
                env[index][name] = total

    def compute(self, plan: Plan, state: Any, seed: int = 0, round: int = 0, quorum: float = 1.0) -> dict[str, Any]:
        """Run one round of another program on all sites; nothing is committed. Return its outputs by slot."""
        initial = {slot: init(state) for (placement, slot), init in plan.graph.inits.items() if placement is SITES}
        self._load(plan, {**initial, **self._initial})  # a site not visited yet has what the run starts it with
        attempt = Attempt()
        schedule = Synchronous(quorum=quorum)
        self._attempt(attempt, plan, self.state if state is None else state, seed, round, 0,
                      tuple(sorted(self.root.sites)), schedule)
        self.exponents.setdefault(plan.digest, {}).update(attempt.next_grids)
        return {**attempt.outputs, "failures": tuple(attempt.failures)}

    def call_with_state(self, fn: Callable[[Any], Any]) -> Any:
        """Return fn(server state), computed here: evaluation on the server's own data, and reading results."""
        return fn(self.state)

    def save(self, directory: str, round: int) -> None:
        """Write a checkpoint of the state after `round`."""
        training = self._in_training()
        self._save_sites(directory, round)
        checkpoint.write_server(directory, round, {
            "digest": training.plan.digest, "seed": training.seed, "run": training.run,
            "start": self._start, "grids": {name: list(found) for name, found in
                                                    self.exponents.get(training.plan.digest, {}).items()}}, self.state)

    def training_processes(self) -> set[int]:
        """Return the ids of the processes that trained in the last round."""
        return set(self.last.processes)

    def arrived(self) -> dict[str, int]:
        """Return the bytes that have arrived under each name since the start."""
        return dict(self.root.bytes_up)

    def take_calls(self) -> list[CallRecord]:
        """Return the calls submitted since the last time, and forget them."""
        calls, self.root.calls = self.root.calls, []
        return calls

    def close(self) -> None:
        """End every host."""
        self.root.transport.close()
        if self._scratch is not None:
            self._scratch.cleanup()


def _check_names(call: StageCall, answer: Contribution, names: Mapping[int, frozenset[str]]) -> None:
    """Refuse an answer that holds a value under a name that the plan does not list for this stage."""
    if unknown := (answer.sums.keys() | answer.gathered.keys()) - names.get(call.stage, frozenset()):
        raise VerifyError(f"a host sent {sorted(unknown)} in stage {call.stage}, which `egress` does not list")


def _check_quorum(plan: Plan, round: int, schedule: Synchronous, cohort: Sequence[str], alive: Sequence[str],
                  failures: Sequence[SiteError]) -> None:
    needed = schedule.needed(len(cohort))
    if len(alive) >= needed:
        return
    kinds: dict[str, int] = {}
    for failure in failures:
        kinds[failure.kind] = kinds.get(failure.kind, 0) + 1
    why = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
    first = f"; first: {failures[0]}" if failures else ""
    raise QuorumError(f"round {round} of {plan.name}: {len(alive)} of {len(cohort)} sites delivered and the quorum is "
                      f"{needed} ({why}{first}). The server state is unchanged; lower schedule.quorum, raise "
                      "schedule.deadline_s, or mend the sites")


def _widened(answer: Contribution, call: StageCall) -> dict[str, tuple[int, ...]] | None:
    """Return the coarser grid that an answer needs, None where all was folded on the grid asked for."""
    if answer.is_folded:
        return None
    return {**call.exponents, **{name: tuple(map(max, needs, call.exponents.get(name, needs)))
                                 for name, needs in answer.needs.items()}}


def _server_call(plan: Plan, fn: Any, params: Mapping[str, Any], args: list[Any], where: str) -> Any:
    names = params.get("kwargs", ())
    cut = len(args) - len(names)
    try:
        if params["lift"] == "leafwise":
            return tree.map(fn, *args)
        return fn(*args[:cut], **dict(zip(names, args[cut:], strict=True)))
    except Exception as error:
        error.add_note(f"in the server step of {plan.name} at {where}")
        raise


def sha256_of(value: Any) -> str:
    """Return the SHA-256 of a value's paths, dtypes and bits."""
    digest = hashlib.sha256()
    for path, leaf in tree.leaves(value):
        numbers = leaf.buffer if isinstance(leaf, tree.Flat) else leaf
        digest.update(path.encode())
        if hasattr(numbers, "detach"):
            digest.update(str(numbers.dtype).encode())
            digest.update(numbers.detach().cpu().contiguous().numpy().tobytes())
        else:
            digest.update((numbers.hex() if isinstance(numbers, float) else repr(numbers)).encode())
    return digest.hexdigest()
