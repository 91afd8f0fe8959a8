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
from dataclasses import replace
from functools import partial
from typing import Any

from fedray import tree
from fedray.core.rewrite import Pass, policies
from fedray.core.trace import Algorithm
from fedray.errors import QuorumError, SiteError
from fedray.runtime import memory
from fedray.runtime.absent import tell_away
from fedray.runtime.buffered import Buffered
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.checks import (
    check_first,
    check_fit,
    check_regions,
    check_rows,
    check_settings,
    check_sites,
)
from fedray.runtime.federation import Federation, device_of
from fedray.runtime.interrupt import interruptible
from fedray.runtime.learnt import Learnt
from fedray.runtime.plan import Plan, compile
from fedray.runtime.records import EvaluationRecord
from fedray.runtime.rehearsal import ToRehearse
from fedray.runtime.result import EarlyStop, Result, params_of
from fedray.runtime.saving import Saving
from fedray.runtime.schedule import Synchronous, synchronous
from fedray.runtime.spending import Spending
from fedray.runtime.standing import Unseen
from fedray.runtime.training import Training

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
    ledger: Any = None,
    seed: int = 0,
    fold: str = "exact",
) -> Result:
    """Train for `rounds` rounds and return the result.

    `init` is the first parameters. `evaluate` maps "valid" and "test" to evaluation programs: the valid rows
    every `every` rounds, the test rows once, with the last parameters (`select`: or the best validated).
    Ctrl-C ends after the round, with checkpoint and result; twice stops at once. `ledger`, a PrivacyLedger,
    is charged before each round that draws noise; where its budget ends, the run ends. None counts this run.
    `fold="fast"` adds up models in float32, a quarter of the bytes, without equal bits; `fold="regional"`
    lets a region send its mean as one row. Raises before any site is touched where parts do not fit.
    """
    check_settings(rounds, every, select, early_stop, evaluate)
    schedule.check_sites(federation.num_sites)
    plan = compile(algorithm, passes, schedule, fold)
    programs = {split: compile(program, policies(passes)) for split, program in (evaluate or {}).items()}
    check_fit(algorithm, schedule, federation, (plan, *programs.values()))
    run = _Run(federation, plan, tracker, programs, server_evaluate, early_stop, checkpoint, ledger, seed)
    with interruptible() as interrupt:
        run.begin(algorithm.init(_first(init)), schedule, resume, rounds)
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
    ledger: Any = None,
) -> Any:
    """Run one round of a program on all sites and return its metrics, or its server output where it has none.

    `ledger`, a PrivacyLedger, is charged first where the program draws noise. Raises QuorumError where fewer
    than `quorum` of the sites deliver.
    """
    plan = compile(program, passes)
    ALL_SITES.check(plan, federation.num_sites)
    check_regions((plan,), federation)
    federation.hello()
    Spending(ledger, None, plan, {}).pay(federation, ALL_SITES, seed)
    outputs = federation.call("compute", plan, program.init(state), seed, 0, quorum, federation.lets_away)
    return outputs["metrics"] if outputs.get("metrics") is not None else outputs["state"]


def _first(init: Any) -> Any:
    """Return named tensors of one dtype as one buffer, others as they are. Raises where one is not finite."""
    check_first(init)
    if (
        not isinstance(init, Mapping)
        or not init
        or not all(hasattr(leaf, "detach") for leaf in init.values())
    ):
        return init
    return tree.flatten(init) if len({leaf.dtype for leaf in init.values()}) == 1 else init


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
        ledger: Any,
        seed: int,
    ) -> None:
        self.federation, self.plan, self.tracker, self.seed = federation, plan, tracker, seed
        self.programs, self.spending = dict(programs), Spending(ledger, checkpoint, plan, programs)
        self.server_evaluate, self.early_stop = server_evaluate, early_stop
        self.saving = Saving(checkpoint, partial(federation.call, "save"))
        self.result = Result(state=None, plan=plan, seed=seed)
        self.next_round = 0
        self.rehearsal = ""  # what went wrong on made-up rows
        self.best: tuple[float, int] | None = None
        self.best_state: Any = None
        self.misses = 0
        self.is_stalled = self.has_taken = False
        self.away: set[str] = set()  # sites whose node is not there
        self.started = time.monotonic()

    def begin(self, state: Any, schedule: Synchronous | Buffered, resume: bool, rounds: int) -> None:
        check_sites(self.plan, schedule, self.federation)
        self.saving.check(resume)
        if schedule.wait_for:
            self.federation.call("wait_for", schedule.wait_for, schedule.wait_s)
        rows, blank = self.federation.hello(), self.federation.call("blank")
        check_rows(self.plan, rows)
        self.check_memory(state, schedule, rows, blank)
        self.learn_sizes(state, blank)
        follows, row_invariant = self.spending.schedule_of(schedule), self.result.row_invariant
        run, folder = uuid.uuid4().hex, self.saving.address if self.federation.is_standing else ""
        named = row_invariant, self.saving.shared, folder, self.federation.run_name
        training = Training(self.plan, follows, self.seed, run, *named)
        self.next_round = self.result.first_round = self.saving.begin(
            resume, partial(self.federation.call, "start", training, state)
        )
        to_come = range(self.next_round, rounds)
        self.result.ledger = self.spending.begin(self.federation, schedule, state, to_come, self.seed)
        unseen = self.federation.call("unseen") if resume and self.federation.is_standing else Unseen()
        first = min((record.round for record in unseen.rounds), default=self.next_round)
        if self.tracker is not None:
            facts = {"sites": self.federation.num_sites, "where": self.federation.where, "seed": self.seed,
                     "fold": self.plan.fold, "row_invariant": row_invariant, "first_round": first,
                     "evaluations": list(self.programs.values()),
                     "privacy": self.spending.lines}  # fmt: skip
            self.tracker.start(self.plan, facts)
        self.take(unseen)

    def take(self, unseen: Unseen) -> None:
        """Take records of an aggregator that has gone on while no driver was there."""
        self.has_taken = bool(unseen.rounds)
        for record in unseen.rounds:
            self.result.metrics.append(replace(record, epsilon=self.spending.epsilon(coarse=True)))
            if self.tracker is not None:
                self.tracker.round(self.result.metrics[-1])
        for evaluation in unseen.evaluations:
            self._log(evaluation, is_new=False)

    def train(self, rounds: int, every: int, interrupt: threading.Event) -> None:
        """Ask for one round after the other, evaluating in between, until one of the ends is reached."""
        before = self.next_round - 1  # what a driver before this one may not have come to
        if self.has_taken and self.next_round % every == 0 and self.next_round < rounds:
            self.evaluate_once(before)
        for round in range(self.next_round, rounds):
            is_paid = self.round(round)
            if is_paid and (round + 1) % every == 0 and round + 1 < rounds:
                self.evaluate_valid(round)
            if not is_paid or interrupt.is_set() or self.is_stalled:
                why = "interrupted" if interrupt.is_set() else "early"
                self.result.stopped = why if is_paid else "budget"
                return

    def check_memory(
        self, state: Any, schedule: Synchronous | Buffered, rows: Mapping[str, int], blank: Any
    ) -> None:
        """Refuse with numbers what cannot fit on this machine; of nodes the site map says what is taken."""
        if self.federation.layout:
            return
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
                num_gathered=self.plan.num_gathered,
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

    def round(self, round: int) -> bool:
        """Run a round; tell whether the privacy budget bore it."""
        try:
            record = self.spending.round(round, partial(self.federation.call, "run_round", round))
        except QuorumError as error:
            self.tell("observed", lambda: self.federation.call("observed"))
            if not self.rehearsal:
                raise
            raise QuorumError(
                f"{error}. The rehearsal on made-up rows failed too: {self.rehearsal}"
            ) from error
        if record is None:
            return False
        _warn("round", round, record.asked, record.counted, record.failures)
        self.away = tell_away(round, self.away, set(record.away))
        if self.result.metrics and self.result.metrics[-1].placement != record.placement:
            work_ms = 1e3 * self.result.metrics[-1].work_s
            logger.info(
                "rounds of %.1f ms of work: from round %d on the sites run in the aggregator's process",
                work_ms,
                round,
            )
        self.result.metrics.append(replace(record, observed=None))  # it would grow with sites and rounds
        if self.tracker is not None:
            self.tracker.round(record)
        is_one_shot = self.plan.of_round(round).is_one_shot  # that is never run again to get back to a state
        if self.saving.is_due or is_one_shot:
            self.save(self.saving.save, round, is_needed=is_one_shot)
        return True

    @property
    def best_round(self) -> int | None:
        return self.best[1] if self.best else None

    def evaluate_once(self, round: int) -> None:
        """Evaluate on validation rows, unless a driver before this one has."""
        is_done = any(record.round == round and record.split != "test" for record in self.result.evaluations)
        if not (self.has_taken and is_done):
            self.evaluate_valid(round)

    def save(self, write: Callable[..., None], round: int, **more: bool) -> None:
        """Write a checkpoint, in one of the ways of `saving`, and tell of it where it was written."""
        before = self.saving.saved_round
        write(round, self.best_round, **more)
        if self.saving.saved_round != before:
            self.tell("saved", lambda: round)

    def tell(self, event: str, content: Callable[[], Any]) -> None:
        """Tell a tracker what not every tracker listens to."""
        if hasattr(self.tracker, event):
            getattr(self.tracker, event)(content())

    def evaluate_valid(self, round: int) -> None:
        if self.server_evaluate is not None:
            metrics = self.federation.call("call_with_state", partial(_on_params, self.server_evaluate))
            self._log(EvaluationRecord(round=round, split="server", metrics=dict(metrics)))
        if "valid" not in self.programs or not self.spending.evaluation("valid", round):
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
        self.save(self.saving.save, record.round)
        return True

    def _evaluate(self, split: str, round: int, state: Any = None) -> EvaluationRecord:
        started = time.monotonic()
        state = params_of(state) if state is not None else self.federation.call("call_with_state", params_of)
        lets_away = self.federation.lets_away
        outputs = self.federation.call(
            "compute", self.programs[split], state, self.seed, round, 0.5, lets_away
        )
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

    def _log(self, record: EvaluationRecord, is_new: bool = True) -> None:
        self.result.evaluations.append(record)
        if is_new and self.federation.is_standing:
            self.federation.call("note", record)
        if self.tracker is not None:
            self.tracker.evaluation(record)

    def end(self, select: str) -> None:
        last = self.result.metrics[-1].round if self.result.metrics else self.next_round - 1
        if last >= 0:
            self.evaluate_once(last)
            self.save(self.saving.end, last)
        chosen = self.best_state if select == "best_valid" and self.best_state is not None else None
        self.result.state = chosen if chosen is not None else self.federation.call("call_with_state", _whole)
        if "test" in self.programs and self.spending.evaluation("test", max(last, 0)):
            self._evaluate("test", max(last, 0), self.result.state)
        self.result.seconds, self.result.privacy = time.monotonic() - self.started, self.spending.end()
        self.tell("observed", lambda: self.federation.call("observed"))
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
            "%s %d: %d of %d sites counted (%s%s%s)", what, round, counted, asked, failures[0], more, hint,
            extra={"round": round},
        )  # fmt: skip


def _on_params(fn: Callable[[Any], Mapping[str, float]], state: Any) -> Mapping[str, float]:
    return fn(params_of(state))


def _whole(state: Any) -> Any:
    return state
