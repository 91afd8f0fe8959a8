"""What a run does with the privacy ledger: it charges every attempt at a round before the round is asked for.

`fit` makes one `Spending`. It reads mechanisms off the plans (a function that draws noise carries one), names
the accounts, refuses noise that drowns the signal, and drives a round's attempts itself: an attempt that
fails has been paid for, and the next one draws new noise, so it is charged again. A run that was interrupted
between charge and release goes on the same way; `spending.json` beside its checkpoints says what the ledger
must hold by then.
"""

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fedray import tree
from fedray.accounting import PrivacyLedger
from fedray.accounting.calibrate import noise_of, refuse_hopeless
from fedray.accounting.ledger import Opened
from fedray.accounting.spent import Account, added, largest
from fedray.errors import AttemptLost, BudgetError, ConfigError, QuorumError, ScheduleError
from fedray.runtime.buffered import Buffered
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.plan import Plan, compile
from fedray.runtime.records import RoundRecord
from fedray.runtime.releases import Release, exact_names, releases_of, units_program
from fedray.runtime.result import params_of
from fedray.runtime.schedule import Synchronous
from fedray.runtime.spending_files import SpendingFiles

logger = logging.getLogger(__name__)
MOST_LOST = 5  # attempts at a round in which the aggregator died


class Spending:
    """The driver's side of a run's privacy: its accounts, its charges, and what they come to."""

    def __init__(
        self,
        ledger: PrivacyLedger | None,
        checkpoint: Checkpoints | None,
        plan: Plan,
        programs: Mapping[str, Plan],
    ) -> None:
        self.plan, self.programs = plan, dict(programs)
        self.releases = {kind.digest: releases_of(kind) for kind in (*plan.kinds, *programs.values())}
        self.files = SpendingFiles(checkpoint)
        self.is_private = any(self.releases[kind.digest] for kind in plan.kinds)
        self.is_spending = any(self.releases.values())
        self.is_own = ledger is None
        self.ledger = ledger
        self.run = uuid.uuid4().hex
        self.accounts: dict[str, tuple[Account, ...]] = {}  # by a plan's digest
        self.exact: dict[str, list[str] | None] = {}  # by a plan's name: what leaves without noise
        self.lines: list[str] = []  # what is said of the noise before the first round
        self._opened: dict[str, int] = {}

    def begin(
        self, federation: Any, schedule: Synchronous | Buffered, state: Any, rounds: range, seed: int
    ) -> PrivacyLedger | None:
        """Name the accounts, open the run in its ledger and return it; `rounds` are those to come.

        Raises ConfigError on noise that drowns the signal, BudgetError where the rounds do not fit,
        LedgerError where a resumed run's charges are missing.
        """
        check_ledger(self.ledger, self.plan)
        if not self.is_spending:
            return None
        self.schedule, self.seed, self.rounds = schedule, seed, rounds
        self.names, self.sizes = tuple(sorted(federation.sites)), federation.hello()
        self._check_schedule()
        if self.ledger is None:
            self.ledger = PrivacyLedger(self.files.own_ledger())
        named = {site: self.ledger.name_of(site) for site in self.names}
        for kind in (*self.plan.kinds, *self.programs.values()):
            self.accounts[kind.digest] = self._accounts_of(kind, federation, named)
        self._refuse_hopeless(_num_params(params_of(state)))
        if rounds.start:
            self._resume(self.ledger)
        self._open(self.ledger)
        self._forecast(self.ledger.delta)
        for line in self.lines:
            logger.info("privacy: %s", line)
        return self.ledger

    def _check_schedule(self) -> None:
        for kind in self.plan.kinds:
            for release in self.releases[kind.digest]:
                if release.mechanism.unit != "site" and isinstance(self.schedule, Buffered):
                    raise ScheduleError(
                        f"{self.plan.name}: under a buffered schedule a site trains at its own pace, and "
                        "what its patients spend by a round cannot be told before it. Use synchronous()"
                    )

    def _accounts_of(self, plan: Plan, federation: Any, named: Mapping[str, str]) -> tuple[Account, ...]:
        accounts: list[Account] = []
        for release in self.releases[plan.digest]:
            mechanism = release.mechanism
            if not mechanism.is_per_site:
                accounts.append(Account(mechanism, tuple(named.values())))
                continue
            units = self._units(release, federation)
            for count in sorted(set(units.values()) - {0}):
                here = tuple(named[site] for site in self.names if units[site] == count)
                accounts.append(Account(mechanism.at_site(count), here))
        return tuple(accounts)

    def _refuse_hopeless(self, num_params: int) -> None:
        """Raise ConfigError where noise drowns the signal: of noise at the sites, even at the largest."""
        for kind in self.plan.kinds:
            for release in self.releases[kind.digest]:
                mechanism = release.mechanism
                if mechanism.is_per_site or (mechanism.unit != "site" and mechanism.divisor is None):
                    mechanism = mechanism.at_site(max(self.sizes.values()))
                refuse_hopeless(mechanism, num_params)
                if (noise := noise_of(mechanism, num_params)) is not None:
                    size = f"{noise.per_coordinate:.3g} on each number, {noise.norm:.3g} clip bounds long"
                    told = f"noise multiplier {mechanism.known[0]:.4g}: {size}"
                    self.lines.append(f"{told} beside at most 1 to be learnt")

    def _forecast(self, delta: float) -> None:
        """Say what the whole run will have spent on a site that is asked in every round."""
        planned, rounds = Opened(self.run, self.accounts[self.plan.digest]), self.rounds.stop
        later = planned.cost_of_others()
        spent = [added(now, later[key], rounds - 1) for key, now in planned.cost(0).items()]
        told = f"epsilon {largest(spent, delta, coarse=True):.3g} at delta {delta:g} after {rounds} rounds"
        mechanisms = [account.mechanism for account in planned.accounts]
        for unit, noise_by, trusted in sorted(
            {(each.unit, each.noise_by, each.trusted) for each in mechanisms}
        ):
            self.lines.append(
                f"{told}, to add or remove one {unit}; noise by the {noise_by}, trusted: {trusted}"
            )

    def _units(self, release: Release, federation: Any) -> dict[str, int]:
        """Return how many units each site has: its rows, or what the training counts in its data."""
        count = getattr(release.node.fn, "count_units", None)
        if count is None and release.mechanism.unit == "patient":
            raise ConfigError(
                f"{self.plan.name}, {release.node.where}: sites have rates of their own, by their number of "
                "patients, and nothing counts them. Fix: one sampling_rate for all, or a method count_units"
            )
        if count is None:
            return {site: int(self.sizes.get(site, 0)) for site in self.names}
        outputs = federation.call("compute", compile(units_program(count)), {}, self.seed, 0, 1.0)
        return {site: int(number) for site, number in outputs["metrics"].items()}

    def _open(self, ledger: PrivacyLedger) -> None:
        for kind in (*self.plan.kinds, *self.programs.values()):
            accounts, releases = self.accounts[kind.digest], self.releases[kind.digest]
            self.exact[kind.name] = exact_names(kind, releases)
            facts = {"plan": kind.digest[:16], "name": kind.name, "exact": self.exact[kind.name]}
            if not accounts:
                ledger.note(self.run, **facts)
            elif kind.digest not in self._opened:
                self._opened[kind.digest] = ledger.open_run(self.run, accounts, self._whole(kind), **facts)
        self._write(ledger)

    def _whole(self, kind: Plan) -> int | None:
        """Return how many rounds of one cost are to come; None where that is not known."""
        is_even = kind is self.plan and not self.plan.every
        return len(self.rounds) if is_even and self._asked(self.rounds.start) is None else None

    def _asked(self, round: int) -> set[str] | None:
        """Return the data sets that a round charges; None for all.

        Where a whole site is protected, those that are not asked are charged too: who is asked says something
        of who is there. All are charged too where a pass may leave sites out, and others are then drawn.
        """
        schedule = self.schedule
        kind = self.plan.of_round(round)
        is_known = isinstance(schedule, Synchronous) and schedule.learner is None and schedule.choice is None
        is_known &= not any(getattr(node.fn, "remembers_sites", False) for node in kind.nodes)
        if not is_known or any(each.mechanism.unit == "site" for each in self.accounts[kind.digest]):
            return None
        assert isinstance(schedule, Synchronous) and self.ledger is not None
        asked = schedule.cohort_of(round, self.seed, self.names, self.sizes)
        return None if len(asked) == len(self.names) else set(map(self.ledger.name_of, asked))

    def schedule_of(self, schedule: Any) -> Any:
        """Return the schedule as the aggregator follows it: attempts are charged here, one by one."""
        is_retried = self.is_private and getattr(schedule, "on_failure", "") == "retry"
        return replace(schedule, on_failure="raise") if is_retried else schedule

    def round(self, round: int, ask: Callable[[int], RoundRecord]) -> RoundRecord | None:
        """Run a round: charge an attempt, ask for it, and again where it fails and the schedule says so.

        Returns None where the budget does not bear the round. Raises QuorumError after the last attempt.
        """
        if not self.is_private:
            return _until_there(ask, 0)
        attempts = getattr(self.schedule, "attempts", 1)
        failed = number = lost = 0
        while True:
            if not self._charge(self.plan.of_round(round), round, self._asked(round)):
                return None
            try:
                return replace(ask(number), epsilon=self.epsilon(coarse=True))
            except QuorumError as error:
                is_lost = isinstance(error, AttemptLost)
                failed, lost = failed + (not is_lost), lost + is_lost
                if failed == attempts or lost > MOST_LOST:
                    raise
                number = error.next_number if isinstance(error, AttemptLost) else number + 1
                logger.warning("round %d: %s; the attempt is paid for, another is charged", round, error)

    def pay(self, federation: Any, schedule: Synchronous, seed: int) -> None:
        """Charge a program of one round to the ledger given. Raises BudgetError where it is too much."""
        if self.ledger is not None:
            self.begin(federation, schedule, {}, range(1), seed)
            self.ledger.charge(self._opened[self.plan.digest], 0)

    def evaluation(self, split: str, round: int) -> bool:
        """Charge an evaluation that draws noise; tell whether the budget bears it."""
        plan = self.programs.get(split)
        return plan is None or not self.releases[plan.digest] or self._charge(plan, round)

    def _charge(self, kind: Plan, round: int, asked: set[str] | None = None) -> bool:
        if not self.accounts[kind.digest]:
            return True
        assert self.ledger is not None
        try:
            self.ledger.charge(self._opened[kind.digest], round, asked, ahead=self.rounds.stop - round)
        except BudgetError as error:
            logger.warning("%s", error)
            return False
        self._write(self.ledger)
        return True

    def epsilon(self, coarse: bool = False) -> float | None:
        """Return what this run has spent so far, of the account that has spent most; None without noise."""
        if not self.is_spending or self.ledger is None:
            return None
        return self.ledger.epsilon(run=self.run, coarse=coarse)

    def facts(self) -> list[dict[str, Any]]:
        """Return every account, with the number of its data sets instead of their names."""
        accounts = [account for each in self.accounts.values() for account in each]
        return [{**account.told(), "datasets": len(account.datasets)} for account in accounts]

    def end(self) -> dict[str, Any] | None:
        """Return what was spent, for the result, and close a ledger of the run's own."""
        if not self.is_spending or self.ledger is None:
            return None
        entries, head = self.ledger.head
        told = {
            "epsilon": self.epsilon(),
            "epsilon_over_all_studies": self.ledger.epsilon(),
            "delta": self.ledger.delta,
            "budget": self.ledger.budget,
            "units": sorted({account.mechanism.unit for each in self.accounts.values() for account in each}),
            "adjacency": "add-remove",
            "ledger": {"run": self.run, "entries": entries, "head": head},
            "noise": self.facts(),
            "exact": self.exact,
        }
        if self.is_own:
            self.ledger.close()
        self.files.close()
        return told

    def _write(self, ledger: PrivacyLedger) -> None:
        """Note beside the checkpoints what the ledger must hold when the run goes on."""
        self.files.write(self.run, self._opened, ledger, self.is_own)

    def _resume(self, ledger: PrivacyLedger) -> None:
        kept = self.files.read(ledger)
        self.run = kept["run"]
        for digest, number in kept["opened"].items():
            opened = ledger.opened(number)
            if opened is not None and opened.accounts == self.accounts.get(digest):
                self._opened[digest] = number


def _until_there(ask: Callable[[int], RoundRecord], number: int) -> RoundRecord:
    """Ask for a round, and again where the aggregator died in one that is not run twice."""
    for _ in range(MOST_LOST):
        try:
            return ask(number)
        except AttemptLost as error:
            number = error.next_number
            logger.warning("%s; it is tried again", error)
    return ask(number)


def _num_params(params: Any) -> int:
    """Return how many numbers there are in parameters."""
    leaves = [leaf for _, leaf in tree.leaves(params)]
    tensors = [each for leaf in leaves for each in (leaf.values() if isinstance(leaf, tree.Flat) else [leaf])]
    return sum(int(each.numel()) for each in tensors if hasattr(each, "numel"))


def check_ledger(ledger: PrivacyLedger | None, plan: Plan) -> None:
    """Raise ConfigError where a ledger is given to a plan without noise, or without the data's name."""
    if ledger is None:
        return
    if not any(releases_of(kind) for kind in plan.kinds):
        raise ConfigError(
            f"{plan.name} draws no noise, and a ledger counts what noise protects. Fix: choose a privacy "
            "pass or a private local training, or leave the ledger out"
        )
    if ledger.is_kept and not ledger.dataset:
        raise ConfigError(
            "a ledger counts by version of the data and this one was not told which. "
            "Fix: PrivacyLedger(..., dataset='NAME VERSION')"
        )
