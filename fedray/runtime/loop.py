"""The whole loop: start reading fedray here.

    driver -- fit() --> Aggregator --+-- Pack [h001..h064]      the aggregator runs `run_round` (round.py),
     (this file)      (an actor on   +-- Region us -- Pack ...  packs run what is mapped (pack.py,
     interpret.py)
                       Ray)

`fit` compiles the algorithm, gives the plan to every host, and then asks the aggregator for one round after
the other. What the driver sees of a round is its `RoundRecord`; parameters come to it once, at the end.
Which round function a round runs, where an algorithm has several, its number decides (`Plan.of_round`).
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedray import tree
from fedray.core.rewrite import Pass, policies
from fedray.core.trace import Algorithm
from fedray.errors import CheckpointError, ConfigError, QuorumError, ScheduleError, SiteError
from fedray.runtime import memory
from fedray.runtime.buffered import Buffered
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.federation import Federation, device_of
from fedray.runtime.interrupt import interruptible
from fedray.runtime.learnt import Learnt
from fedray.runtime.plan import Plan, compile
from fedray.runtime.records import EvaluationRecord
from fedray.runtime.rehearsal import ToRehearse
from fedray.runtime.result import EarlyStop, Result, params_of
from fedray.runtime.round import Training
from fedray.runtime.schedule import Synchronous, synchronous
from fedray.settings import is_whole

logger = logging.getLogger(__name__)
ALL_SITES = synchronous()
BEFORE = "before"  # stands among the evaluation programs for what the schedule asks its candidates


def fit(
    algorithm: Algorithm,
    federation: Federation,
    *,
    init: Any,
    rounds: int,
    passes: Sequence[Pass] = (),
    schedule: Synchronous | Buffered = ALL_SITES,
    tracker: Any = None,
    every: int = 10,
    evaluate: Mapping[str, Algorithm] | None = None,
    server_evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    early_stop: EarlyStop | None = None,
    select: str = "last",
    checkpoint: Checkpoints | None = None,
    resume: bool = False,
    seed: int = 0,
    fold: str = "exact",
) -> Result:
    """Train for `rounds` rounds and return the result.

    `init` is the first parameters. `evaluate` maps "valid" and "test" to evaluation programs: the valid rows
    every `every` rounds, the test rows once, with the last parameters (`select`: or the best validated).
    Ctrl-C ends after the round, with checkpoint and result; twice stops at once.
    `fold="fast"` adds up models in float32: a quarter of the bytes and memory of a partial sum, for models of
    hundreds of megabytes; bits then depend on the layout and on who answers first. Numbers stay exact.
    Raises before any site is touched where algorithm, passes, schedule or federation do not fit.
    """
    _check(rounds, every, select, early_stop, evaluate)
    schedule.check_sites(federation.num_sites)
    plan = compile(algorithm, passes, schedule, fold)
    programs = {split: compile(program, policies(passes)) for split, program in (evaluate or {}).items()}
    for each in (plan, *programs.values()):
        _check_regions(each, federation)
    _check_number(algorithm, schedule, federation)
    run = _Run(federation, plan, tracker, programs, server_evaluate, early_stop, checkpoint, seed)
    with interruptible() as interrupt:
        run.begin(algorithm.init(_flat(init)), schedule, resume)
        run.train(rounds, every, interrupt)
        run.end(select)
    return run.result


def compute(
    program: Algorithm,
    federation: Federation,
    *,
    state: Any = None,
    passes: Sequence[Pass] = (),
    seed: int = 0,
    quorum: float = 1.0,
) -> Any:
    """Run one round of a program on all sites and return its metrics, or its server output where it has none.

    Raises QuorumError where fewer than `quorum` of the sites deliver.
    """
    plan = compile(program, passes)
    _check_regions(plan, federation)
    federation.hello()
    outputs = federation.call("compute", plan, program.init(state), seed, 0, quorum)
    return outputs["metrics"] if outputs.get("metrics") is not None else outputs["state"]


def _flat(init: Any) -> Any:
    """Return named tensors of one dtype as one buffer; anything else as it is."""
    if (
        not isinstance(init, Mapping)
        or not init
        or not all(hasattr(leaf, "detach") for leaf in init.values())
    ):
        return init
    return tree.flatten(init) if len({leaf.dtype for leaf in init.values()}) == 1 else init


def _check_regions(plan: Plan, federation: Federation) -> None:
    """Raise ConfigError where a plan goes by regions and a site has none."""
    if any(kind.is_by_region for kind in plan.kinds):
        lost = [site for site in federation.sites if site not in federation.regions]
        if lost:
            raise ConfigError(
                f"{plan.name} goes by regions, and {len(lost)} sites declare none ({', '.join(lost[:3])}): "
                "give simulate(regions={region: [site, ...]}), or a data set with regions"
            )


def _check(
    rounds: int,
    every: int,
    select: str,
    early_stop: EarlyStop | None,
    evaluate: Mapping[str, Algorithm] | None,
) -> None:
    problems = []
    if not is_whole(rounds, 1):
        problems.append(f"rounds={rounds!r}: train for at least 1 round, a whole number")
    if not is_whole(every, 1):
        problems.append(f"every={every!r}: evaluate every 1 or more rounds")
    if select not in ("last", "best_valid"):
        problems.append(f"select={select!r}: choose 'last' or 'best_valid'")
    if (early_stop is not None or select == "best_valid") and "valid" not in (evaluate or {}):
        problems.append("early_stop and select='best_valid' need evaluate={'valid': ...}")
    if problems:
        raise ConfigError(problems)


def _check_sites(plan: Plan, schedule: Synchronous | Buffered, federation: Federation) -> None:
    """Raise where the schedule leaves out a site that is needed, or the algorithm was made for others."""
    num_sites = federation.num_sites
    if plan.needs_all and schedule.expected_cohort(num_sites) < num_sites:
        raise ScheduleError(
            f"{plan.name} needs all {num_sites} sites in every round, for each holds a part of every record, "
            f"and the schedule asks {schedule.expected_cohort(num_sites)}: use schedule.cohort=1.0"
        )
    there = set(federation.sites)
    if plan.sites and set(plan.sites) not in (there, getattr(schedule, "among", None)):  # or of a coalition
        strange, missing = sorted(set(plan.sites) - there), sorted(there - set(plan.sites))
        told = [f"{', '.join(found[:3])}{', ...' * (len(found) > 3)} {what}" for found, what in
                ((strange, "not in the federation"), (missing, "not named")) if found]  # fmt: skip
        raise ConfigError(f"{plan.name} was made for other sites than there are ({'; '.join(told)}): "
                          "give it sites=tuple(federation.sites)")  # fmt: skip


def _check_number(algorithm: Algorithm, schedule: Synchronous | Buffered, federation: Federation) -> None:
    """Raise ConfigError where the algorithm divides by another number of sites than there are."""
    among = getattr(schedule, "among", None)  # a coalition
    if algorithm.num_sites not in (None, federation.num_sites, len(among or ())):
        raise ConfigError(
            f"{algorithm.title} was made with num_sites={algorithm.num_sites}, and there are "
            f"{federation.num_sites}: give it num_sites={federation.num_sites}, the number of ALL sites"
        )


class _Run:
    """The driver's side of one training run."""

    def __init__(
        self,
        federation: Federation,
        plan: Plan,
        tracker: Any,
        programs: Mapping[str, Plan],
        server_evaluate: Any,
        early_stop: EarlyStop | None,
        checkpoint: Checkpoints | None,
        seed: int,
    ) -> None:
        self.federation, self.plan, self.tracker, self.seed = federation, plan, tracker, seed
        self.programs = dict(programs)
        self.server_evaluate, self.early_stop, self.checkpoint = server_evaluate, early_stop, checkpoint
        self.result = Result(state=None, plan=plan, seed=seed)
        self.next_round = 0
        self.rehearsal = ""  # what went wrong on made-up rows
        self.best: tuple[float, int] | None = None
        self.best_state: Any = None
        self.misses = 0
        self.is_stalled = False
        self.started = time.monotonic()
        self.saved_at, self.saved_round = self.started, -1

    def begin(self, state: Any, schedule: Synchronous | Buffered, resume: bool) -> None:
        _check_sites(self.plan, schedule, self.federation)
        if schedule.wait_for:
            self.federation.call("wait_for", schedule.wait_for, schedule.wait_s)
        rows, blank = self.federation.hello(), self.federation.call("blank")
        self.check_memory(state, schedule, rows, blank)
        restore = None
        if resume:
            rounds = self.checkpoint.rounds() if self.checkpoint else []
            if not rounds or self.checkpoint is None:
                raise CheckpointError("there is no complete checkpoint to resume from: start the run again")
            restore = (str(self.checkpoint.path), rounds[-1])
        elif self.checkpoint is not None:
            self.checkpoint.path.mkdir(parents=True, exist_ok=True)
        self.learn_sizes(state, blank)
        training = Training(self.plan, schedule, self.seed, uuid.uuid4().hex, self.result.row_invariant)
        self.next_round = self.federation.call("start", training, state, restore)
        self.saved_round = self.next_round - 1
        if self.tracker is not None:
            self.tracker.start(
                self.plan,
                {
                    "sites": self.federation.num_sites,
                    "where": self.federation.where,
                    "seed": self.seed,
                    "fold": self.plan.fold,
                    "row_invariant": self.result.row_invariant,
                    "first_round": self.next_round,
                    "evaluations": list(self.programs.values()),
                },
            )

    def train(self, rounds: int, every: int, interrupt: threading.Event) -> None:
        """Ask for one round after the other, evaluating in between, until one of the ends is reached."""
        for round in range(self.next_round, rounds):
            self.round(round)
            if (round + 1) % every == 0 and round + 1 < rounds:
                self.evaluate_valid(round)
            if interrupt.is_set() or self.is_stalled:
                self.result.stopped = "interrupted" if interrupt.is_set() else "early"
                return

    def check_memory(
        self, state: Any, schedule: Synchronous | Buffered, rows: Mapping[str, int], blank: Any
    ) -> None:
        """Refuse with numbers what cannot fit."""
        specs, num_sites = self.federation.specs, self.federation.num_sites
        cohort = schedule.expected_cohort(num_sites)
        if isinstance(schedule, Buffered):
            cohort = schedule.concurrency
        row_bytes = tree.nbytes(dict(blank)) // len(next(iter(blank.values()))) if blank is not None else 0
        memory.check(
            memory.forecast(
                num_packs=sum(spec.num_packs for spec in specs),
                is_ray=self.federation.where == "ray",
                cohort=min(cohort, num_sites),
                group_size=memory.group_size(specs),
                model_bytes=tree.nbytes(state),
                state_slots=len(self.plan.slots),
                num_sites=num_sites,
                data_bytes=row_bytes * sum(rows.values()),
                is_fast=self.plan.fold == "fast",
            )
        )

    def learn_sizes(self, state: Any, blank: Any) -> None:
        """Learn the bytes of each name that leaves, and whether rows are invariant, from made-up rows."""
        if blank is None:
            return
        before = {} if self.plan.before is None else {BEFORE: self.plan.before}
        asked = ToRehearse(self.plan, self.programs | before, state, device_of(self.federation.specs))
        learnt = self.federation.learnt or Learnt()
        found = learnt.of(asked, blank, lambda: self.federation.call("rehearse", asked))
        sizes = dict(found.of_programs)
        self.plan = self.result.plan = self.plan.with_sizes(
            found.sizes, sizes.pop(BEFORE, {}), found.of_kinds, found.once
        )
        for split, each in sizes.items():
            self.programs[split] = self.programs[split].with_sizes(each)
        self.rehearsal, self.result.row_invariant = found.why, found.row_invariant
        if self.result.row_invariant is False:
            logger.warning(
                "row_invariant=false: sites that are computed together have other bits than alone here; "
                "results may differ in their last digits between layouts and group sizes"
            )

    def round(self, round: int) -> None:
        try:
            record = self.federation.call("run_round", round)
        except QuorumError as error:
            if not self.rehearsal:
                raise
            raise QuorumError(
                f"{error}. The rehearsal on made-up rows failed too: {self.rehearsal}"
            ) from error
        _warn("round", round, record.asked, record.counted, record.failures)
        if self.result.metrics and self.result.metrics[-1].placement != record.placement:
            work_ms = 1e3 * self.result.metrics[-1].work_s
            logger.info(
                "rounds of %.1f ms of work: from round %d on the sites run in the aggregator's process",
                work_ms, round,
            )
        self.result.metrics.append(record)
        if self.tracker is not None:
            self.tracker.round(record)
        if self.checkpoint is not None and time.monotonic() - self.saved_at >= self.checkpoint.every_s:
            self.save(round)

    def save(self, round: int) -> None:
        if self.checkpoint is not None and round != self.saved_round:
            self.federation.call("save", str(self.checkpoint.path), round)
            self.checkpoint.thin(self.best[1] if self.best else None)
            self.saved_at, self.saved_round = time.monotonic(), round

    def evaluate_valid(self, round: int) -> None:
        if self.server_evaluate is not None:
            metrics = self.federation.call("call_with_state", _OnParams(self.server_evaluate))
            self._log(EvaluationRecord(round=round, split="server", metrics=dict(metrics)))
        if "valid" not in self.programs:
            return
        record = self._evaluate("valid", round)
        if self.early_stop is None:
            self._keep_best(record, EarlyStop())
        elif self._keep_best(record, self.early_stop):
            self.misses = 0
        else:
            self.misses += 1
            self.is_stalled = self.misses >= self.early_stop.patience

    def _keep_best(self, record: EvaluationRecord, rule: EarlyStop) -> bool:
        value = record.metrics.get(rule.metric)
        if value is None or not rule.is_better(value, self.best[0] if self.best else None):
            return False
        self.best = (value, record.round)
        self.best_state = self.federation.call("call_with_state", _whole)
        self.save(record.round)
        return True

    def _evaluate(self, split: str, round: int, state: Any = None) -> EvaluationRecord:
        started = time.monotonic()
        state = params_of(state) if state is not None else self.federation.call("call_with_state", params_of)
        outputs = self.federation.call("compute", self.programs[split], state, self.seed, round, 0.5)
        failures = outputs["failures"]
        asked = self.federation.num_sites
        _warn(f"evaluation on {split} rows after round", round, asked, asked - len(failures), failures)
        metrics = outputs["metrics"]
        sites = metrics.get("sites", [])
        record = EvaluationRecord(
            round=round,
            split=split,
            metrics=metrics["pooled"],
            sites=sites,
            seconds=time.monotonic() - started,
        )
        self._log(record)
        return record

    def _log(self, record: EvaluationRecord) -> None:
        self.result.evaluations.append(record)
        if self.tracker is not None:
            self.tracker.evaluation(record)

    def end(self, select: str) -> None:
        last = self.result.metrics[-1].round if self.result.metrics else self.next_round - 1
        if last >= 0:
            self.evaluate_valid(last)
            self.save(last)
        chosen = self.best_state if select == "best_valid" and self.best_state is not None else None
        self.result.state = chosen if chosen is not None else self.federation.call("call_with_state", _whole)
        if "test" in self.programs:
            self._evaluate("test", max(last, 0), self.result.state)
        self.result.seconds = time.monotonic() - self.started
        if self.tracker is not None:
            self.tracker.finish(self.result)


def _warn(what: str, round: int, asked: int, counted: int, failures: Sequence[SiteError]) -> None:
    """Say in one line that sites were left out: a figure without them is another figure."""
    if counted < asked and failures:
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        hint = "; missing values make numbers that are not finite: prepare the data first" * any(
            failure.kind == "not finite" for failure in failures
        )
        logger.warning(
            "%s %d: %d of %d sites counted (%s%s%s)", what, round, counted, asked, failures[0], more, hint
        )


@dataclass(frozen=True)
class _OnParams:
    fn: Callable[[Any], Mapping[str, float]]

    def __call__(self, state: Any) -> Mapping[str, float]:
        return self.fn(params_of(state))


def _whole(state: Any) -> Any:
    return state
