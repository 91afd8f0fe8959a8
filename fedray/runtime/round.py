"""The aggregator: the server's state, its rounds, commits and checkpoints. What a round does is in
`attempt.py`.

In Ray the `Aggregator` is an actor, so model bytes go from host to aggregator and never through the driver;
in process it is a plain object. Same code, same bits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedray.errors import CheckpointError, FedrayError, QuorumError, SiteError
from fedray.rng import SERVER, Key
from fedray.runtime import checkpoint
from fedray.runtime.absent import Absent, absences
from fedray.runtime.ages import by_age, bytes_of, facts, told
from fedray.runtime.attempt import Attempt, Setting
from fedray.runtime.between import Between
from fedray.runtime.buffered import Buffered
from fedray.runtime.checkpoint import Parts
from fedray.runtime.flights import Flights
from fedray.runtime.hashes import sha256_of
from fedray.runtime.host import Commit, Load
from fedray.runtime.kept import Sender
from fedray.runtime.late import Aged, LateWork, facts_of
from fedray.runtime.placement import Work
from fedray.runtime.plan import Plan
from fedray.runtime.records import CallRecord, RoundRecord
from fedray.runtime.region import Region
from fedray.runtime.result import params_of
from fedray.runtime.schedule import Latency, Synchronous
from fedray.runtime.storage import below
from fedray.runtime.timeline import Watch
from fedray.runtime.training import Training
from fedray.runtime.under_way import flights_of, late_of

FLIGHTS, LATE = "schedule.flights", "schedule.late"  # where a checkpoint keeps who is under way


class Aggregator:
    """The server: state, rounds, commits, checkpoints.

    `make_inside` makes hosts for all sites in this process, which take over when rounds are measured to be
    small; None leaves the sites where they are.
    """

    def __init__(
        self,
        root: Region,
        regions: Mapping[str, str] | None = None,
        latency: Latency | None = None,
        make_inside: Callable[[], Region] | None = None,
    ) -> None:
        self.root, self.regions, self.latency = root, dict(regions or {}), latency
        self._make_inside = make_inside
        self._work = Work()
        self.sizes: dict[str, int] = {}
        self._names = tuple(sorted(root.sites))
        self.absent = Absent(self._names)
        self.state: Any = None
        self.memory: dict[str, Any] = {}  # slot of a pass -> what it keeps at the server
        self.training: Training | None = None
        self._trained: set[int] = set()  # processes of the last round; an attempt itself holds two models
        self._grids: dict[str, dict[str, tuple[int, ...]]] = {}  # plan -> lane -> grid
        self._loaded: set[str] = set()
        self.start_sha256 = ""  # hash of the run's first server state, part of every checkpoint
        self._initial: dict[str, Any] = {}  # slot -> what a site starts with
        self._between = Between()
        self._turn = 0  # of programs beside the run: a host takes what has the names of the last call for it
        self._sender = Sender()  # of what hosts hold
        self._flights: Flights | None = None  # of a buffered run
        self.watch = Watch(root)
        self.observed, self.progress = self.watch.take, self.watch.progress
        self._late: LateWork | None = None  # of a synchronous one that waits for it

    def hello(self) -> dict[str, int]:
        """Let every host open its data; return the training rows of each site."""
        self.sizes = self.absent.met(self.root.hello())
        return self.sizes

    def wait_for(self, num_sites: int, seconds: float) -> None:
        """Wait until so many sites answer. Raises HostError where the time is over first."""
        self.root.wait_for(num_sites, seconds)

    def blank(self) -> Any:
        """Return a made-up site: the columns of one site with zeros in a few rows."""
        return self.root.blank()

    def rehearse(self, asked: Any) -> Any:
        """Let a host try programs on made-up rows: see rehearsal.py. None where data cannot be made up."""
        return self.root.rehearse(self.root.transport.put(asked))

    def prepare(self, transform: Any) -> None:
        """Pass every site's data through a function, where it lies."""
        self.root.prepare(transform)

    def start(self, training: Training, state: Any, restore: tuple[str, int] | None = None) -> int:
        """Take a run on, from `state` or from a checkpoint; return the first round to run.

        Raises CheckpointError where the checkpoint belongs to another plan or another start.
        """
        self.training, self.state, self.memory, self.start_sha256 = training, state, {}, sha256_of(state)
        self._work, self._sender, sizes = Work(), Sender(), self.absent.guessed(self.sizes)
        self._flights = flights_of(training, self.root, self.latency, self._names, sizes)
        self._late = late_of(training, self.root, self.latency)
        self._between.storage = training.storage
        self._loaded.clear()
        for kind in training.plan.kinds:
            self._grids.pop(kind.digest, None)
        self._initial = training.plan.site_starts(state)
        first, saved = 0, None
        if restore is not None:
            is_ahead = self._flights is not None or self._late is not None
            asked = self._attempt(training, training.schedule, 0).begin() if is_ahead else {}
            kinds = checkpoint.record_kinds(state, asked)
            facts, self.state, self.memory = checkpoint.read_server(*restore, kinds)
            if facts["digest"] != training.plan.digest or facts["start"] != self.start_sha256:
                raise CheckpointError(
                    f"the checkpoint of round {restore[1]} belongs to another plan or another start "
                    "(algorithm, passes or initial parameters differ): resume with the same ones"
                )
            for digest, grids in facts["grids"].items():
                self._grids[digest] = {name: tuple(found) for name, found in grids.items()}
            first, saved = int(facts["round"]) + 1, (*restore, facts["parts"])
            if (late := self.memory.pop(LATE, None)) and self._late is not None:
                self._late.restore(late, training.run)
            under_way = self.memory.pop(FLIGHTS, None)
            if self._flights is not None and under_way is not None:
                self._flights.restore(under_way)
        self._load(training.plan, self._initial, is_start=True, restore=saved)
        for other in training.plan.every.values():
            self._load(other, self._initial)
        return first

    def _load(self, plan: Plan, initial: Mapping[str, Any], **start: Any) -> None:
        if plan.digest not in self._loaded:
            regions = self.regions if plan.is_by_region else {}
            shipped = replace(plan, every={}) if plan.every else plan  # each kind is loaded by itself
            journal = ""  # a host in this process ends with it, and is not asked again by another
            if plan.is_one_shot and self.root.transport.can_restart:
                run = f"-{self.training.run}" if self.training is not None else ""
                journal = below(self._between.place, f"answered{run}")
            start |= {"regions": regions, "journal": journal}
            start |= {"run": self.training.name} if self.training else {}
            self.root.load(Load(plan=shipped, initial=initial, **start))
            self._loaded.add(plan.digest)

    def run_round(self, round: int, number: int = 0) -> RoundRecord:
        """Run one round, its attempts numbered from `number`. Raises QuorumError where too few sites were
        counted and the schedule does not skip.
        """
        training = self._in_training()
        schedule, started = training.schedule, self.root.transport.now()
        self.watch.begin(round)
        if isinstance(schedule, Buffered):
            return self._run_buffered(training, schedule, round)
        self._move_in_where_small(training, round)
        up = sum(self.root.bytes_up.values())
        aged, missed = self._late.take(round) if self._late else ([], ())
        free = self._late.free(self._names) if self._late else self._names
        known = free, self.absent.guessed(self.sizes), self.memory, self.latency
        candidates = schedule.candidates_of(round, training.seed, *known)
        cohort, silent, down = self._chosen(training, schedule, round, candidates)
        attempt, failures, error = self._ask(training, schedule, round, cohort, number, aged)
        self._trained = attempt.processes
        if error is not None and schedule.on_failure != "skip":
            self.watch.failed(silent + failures)
            raise error
        is_counted = not error and bool(cohort or aged)
        return self._record(
            attempt,
            asked=len(cohort),
            counted=len(attempt.counted) if is_counted else 0,
            failures=missed + silent + failures,
            seconds=self.root.transport.now() - started,
            bytes_up=sum(self.root.bytes_up.values()) - up,
            bytes_down=attempt.bytes_down + down,
            status="counted" if is_counted else "skipped",
            **(facts_of(aged) if is_counted else {}),
        )

    def _run_buffered(self, training: Training, schedule: Buffered, round: int) -> RoundRecord:
        """Wait until a buffer is full, and step."""
        flights, attempt = self._flights, self._attempt(training, schedule, round)
        assert flights is not None
        started = flights.now
        landed, failures = flights.take(round, attempt.begin())
        attempt.finish(by_age(landed, round, schedule.discount, attempt.exponents))
        attempt.bytes_down, attempt.work_s = flights.bytes_down, flights.work_s
        self._trained = flights.processes
        self._accept(attempt, flights.commits(landed))
        return self._record(
            attempt,
            asked=len(landed) + len(failures),
            counted=len(landed),
            failures=told(failures, round),
            seconds=flights.now - started,
            bytes_up=bytes_of(landed),
            bytes_down=flights.bytes_down,
            **facts(landed, round, len(flights.versions)),
        )

    def _record(self, attempt: Attempt, *, counted: int, **others: Any) -> RoundRecord:
        plan = attempt.plan
        if self.absent.note(others["failures"], attempt.counted):
            self.hello()  # how many rows those have who came
        return RoundRecord(
            round=attempt.round,
            attempt=attempt.number,
            metrics=attempt.numbers,
            counted=counted,
            site_bytes=counted * one if (one := plan.site_bytes) is not None else None,
            hashes=attempt.hashes,
            grids=attempt.grids,
            fold=plan.fold,
            work_s=attempt.work_s,
            placement=self.root.transport.placement,
            away=tuple(sorted(self.absent.sites)),
            **self.watch.end(is_over=self._flights is None and self._late is None),
            **others,
        )

    def _chosen(
        self, training: Training, schedule: Synchronous, round: int, candidates: tuple[str, ...]
    ) -> tuple[tuple[str, ...], tuple[SiteError, ...], int]:
        """Return whom the schedule chooses among its candidates, who of them did not answer, and bytes down.

        Raises QuorumError where nobody answers, unless the schedule skips.
        """
        choice, plan = schedule.choice, training.plan.before
        if choice is None or plan is None or not candidates:
            return candidates, (), 0
        anybody = replace(schedule, quorum=1e-9, choice=None)
        attempt = self._other(plan, params_of(self.state), training.seed, round, anybody)
        try:
            attempt.run(candidates)
        except QuorumError:
            if schedule.on_failure != "skip":
                raise
            return (), tuple(attempt.failures), attempt.bytes_down
        size = schedule.expected_cohort(len(self._names))
        key = Key(training.seed, round, SERVER, "choice")
        chosen = choice.chosen(attempt.outputs["metrics"], size, key)
        return chosen, tuple(attempt.failures), attempt.bytes_down

    def _ask(
        self, training: Training, schedule: Synchronous, round: int, cohort: tuple[str, ...], first: int,
        aged: Sequence[Aged],
    ) -> tuple[Attempt, tuple[SiteError, ...], QuorumError | None]:
        """Ask the cohort as often as the schedule allows; return the last attempt and what went wrong."""
        failures: list[SiteError] = []
        error: QuorumError | None = None
        attempt = self._attempt(training, schedule, round)
        for number in range(first, first + schedule.attempts * bool(cohort or aged)):  # none: poisson
            attempt, error = self._attempt(training, schedule, round, number, aged), None
            try:
                attempt.run(cohort)
            except QuorumError as caught:
                error = caught
                if self._late is not None:
                    self._late.give_up(round, number)
            failures += attempt.failures
            if error is None:
                self._accept(attempt, self._commits(attempt))
                break
        return attempt, tuple(failures), error

    def _commits(self, attempt: Attempt) -> list[Commit]:
        """Return what makes the state of counted sites current, those among them that had been late."""
        now = (attempt.round, attempt.number)
        commits = [Commit(attempt.plan.digest, *now, frozenset(attempt.counted))]
        if self._late is None:
            return commits
        keeps = self._late.under_way | {now}
        return [replace(commit, keeps=keeps) for commit in commits + self._late.counted()]

    def _move_in_where_small(self, training: Training, round: int) -> None:
        """Take the sites into this process where their rounds are small, and no bit can change by it.

        Not where a deadline has to pass over a site that hangs, nor where a site has taken its process down
        or has keys, which stay there.
        """
        is_needed_outside = training.schedule.deadline_s is not None or self.root.restarts > 0
        is_wanted = self._work.is_small and training.is_layout_free and not training.plan.is_one_shot
        if self._make_inside is None or is_needed_outside or not is_wanted:
            return
        if self.root.is_replaying:
            self._save_sites(self._between.place, round - 1)
        self.root.move(self._make_inside)
        self._make_inside, self._sender = None, Sender()

    def _attempt(
        self, training: Training, schedule: Synchronous | Buffered, round: int, number: int = 0,
        aged: Sequence[Aged] = (),
    ) -> Attempt:
        plan = training.plan.of_round(round)
        return Attempt(
            setting=self._setting(), plan=plan, schedule=schedule, state=self.state, memory=self.memory,
            seed=training.seed, round=round, number=number, exponents=self._grids.get(plan.digest, {}),
            late=self._late, aged=aged,
        )  # fmt: skip

    def _setting(self) -> Setting:
        run = self.training.run if self.training else ""
        return Setting(root=self.root, latency=self.latency, run=run, sender=self._sender)

    def _accept(self, attempt: Attempt, commits: Sequence[Commit]) -> None:
        # what a pass keeps stays as it is in a round of a kind that it is not part of
        self.state, self.memory = attempt.outputs["state"], {**self.memory, **attempt.next_memory}
        self._grids.setdefault(attempt.plan.digest, {}).update(attempt.next_grids)
        self.root.owe(commits)
        attempt.hashes["server"] = sha256_of(self.state)[:16]
        self._work.take(attempt.work_s)
        if self.root.is_replaying:
            is_one_shot = attempt.plan.is_one_shot
            self._between.take(attempt.bytes_down, attempt.round, is_one_shot, self._save_sites)

    def _save_sites(self, address: str, round: int) -> Parts:
        self.root.commit([])
        parts = self.root.save(address, round)
        self._between.kept_bytes = 0
        return parts

    def _in_training(self) -> Training:
        if self.training is None:
            raise FedrayError("no run was started: call fit()")
        return self.training

    def compute(
        self, plan: Plan, state: Any, seed: int = 0, round: int = 0, quorum: float = 1.0, lets: bool = False
    ) -> dict[str, Any]:
        """Run a round of another program on all sites, or `lets` say on those there; return its outputs."""
        state = self.state if state is None else state
        away = self.refresh() if lets and self.absent.sites else ()
        attempt = self._other(plan, state, seed, round, Synchronous(quorum=quorum))
        with self.watch.during("evaluation" if self.training else "preparation", round):
            attempt.run([site for site in self._names if site not in away])
        self._grids.setdefault(plan.digest, {}).update(attempt.next_grids)
        return {**attempt.outputs, "failures": (*absences(away, round), *attempt.failures)}

    def refresh(self) -> tuple[str, ...]:
        """Start hosts whose node has come; return the sites whose node is still away."""
        self.hello()
        return tuple(sorted(self.absent.sites))

    def _other(self, plan: Plan, state: Any, seed: int, round: int, schedule: Synchronous) -> Attempt:
        """Return an attempt at a program beside the run; nothing of it is committed."""
        self._turn += 1
        # a site that was not visited yet has what the training run starts it with
        self._load(plan, {**plan.site_starts(state), **self._initial})
        return Attempt(
            setting=self._setting(),
            plan=plan,
            schedule=schedule,
            state=state,
            seed=seed,
            round=round,
            number=self._turn if plan.is_one_shot else self._turn % 2,  # a key of masks never comes again
            exponents=self._grids.get(plan.digest, {}),
        )

    def call_with_state(self, fn: Callable[[Any], Any]) -> Any:
        """Return fn(server state), computed here: evaluation on the server's own data, and reading
        results.
        """
        return fn(self.state)

    def save(self, address: str, round: int) -> None:
        """Write a checkpoint of the state after `round`."""
        training = self._in_training()
        with self.watch.during("checkpoint", round):
            parts = self._save_sites(address, round)
            facts = training.facts(self._grids, self.start_sha256)
            under_way = {} if self._flights is None else {FLIGHTS: self._flights.saved()}
            under_way |= {} if self._late is None else {LATE: self._late.saved()}
            memory = {**self.memory, **under_way}
            checkpoint.write_server(address, round, facts, self.state, memory, parts)

    def training_processes(self) -> set[int]:
        """Return the ids of the processes that trained in the last round."""
        return set(self._trained)

    def arrived(self) -> dict[str, int]:
        """Return the bytes that have arrived under each name since the start."""
        return dict(self.root.bytes_up)

    def take_calls(self) -> list[CallRecord]:
        """Return the calls submitted since the last time, and forget them."""
        calls = list(self.root.calls)
        self.root.calls.clear()
        return calls

    def close(self) -> None:
        """End every host."""
        self.root.transport.close()
        self._between.close()
