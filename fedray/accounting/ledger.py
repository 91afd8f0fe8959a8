"""The privacy ledger: what was spent on every data set, over all studies, and what may still be.

    ledger = PrivacyLedger("ledger.jsonl", dataset="icu 2026-03", epsilon=8.0)
    fr.fit(..., ledger=ledger)

One line of JSON an entry, chained (chain.py), and on disk BEFORE what it pays for is released: a crash in
between keeps the charge. Several processes may charge one file; each charge holds its lock. A ledger that is
not whole opens for nobody (E_LEDGER); a round that would spend more than is allowed is refused and the
refusal noted (E_BUDGET).

Accounts are kept by data set version and unit (a site, a patient, a record). A data set has a name that tells
nothing: a hash of what the caller calls this version, and of the site. A new version is a new account: that a
patient who is in both may lose by both is not counted.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedray.accounting.chain import ChainedFile
from fedray.accounting.mechanism import Mechanism
from fedray.accounting.spent import Account, Key, added, fits, largest
from fedray.errors import BudgetError
from fedray.settings import check_numbers

FORMAT = 1
DELTA = 1e-5  # where neither the caller nor a mechanism says
Costs = dict[Key, dict[Mechanism, int]]


@dataclass(slots=True)
class Opened:
    """A run that may charge: its accounts, and how often it has charged each round."""

    run: str
    accounts: tuple[Account, ...]
    charged: Counter[int] = field(default_factory=Counter)

    def cost(self, round: int, asked: Collection[str] | None = None) -> Costs:
        """Return what a round costs each data set that is asked in it; None asks all."""
        return self._cost(asked, number=len(self.charged), is_again=self.charged[round] > 0)

    def cost_of_others(self, asked: Collection[str] | None = None) -> Costs:
        """Return what a round costs that is neither the first nor tried again."""
        return self._cost(asked, number=None, is_again=False)

    def _cost(self, asked: Collection[str] | None, number: int | None, is_again: bool) -> Costs:
        costs: Costs = {}
        for account in self.accounts:
            is_first = number is not None and not is_again and number % account.mechanism.rounds == 0
            steps = account.cost(is_first, is_again)
            for dataset in account.datasets:
                if asked is None or dataset in asked:
                    key = (dataset, account.mechanism.unit)
                    costs[key] = added(costs.get(key, {}), steps)
        return costs


class PrivacyLedger:
    """Keep what was spent; without a `path` in memory alone, for as long as the object lives.

    `dataset` names the version of the data, `epsilon` what may be spent at `delta` on each of its sites and
    units; None only counts. Raises LedgerError where the file is not whole, ValueError on an epsilon or a
    delta that is none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        dataset: str = "",
        epsilon: float | None = None,
        delta: float | None = None,
        is_read_only: bool = False,
    ) -> None:
        check_numbers("ledger", above=0, or_none=True, epsilon=epsilon)
        check_numbers("ledger", above=0, below=1, or_none=True, delta=delta)
        self.dataset, self.budget, self._delta = dataset, epsilon, delta
        self._opened: dict[int, Opened] = {}
        self._spent: Costs = {}
        self._spent_by: dict[str, Costs] = {}
        self._cleared: Costs = {}  # as far as each account may go, as was looked up
        self._told_delta: float | None = None
        self._chain = ChainedFile(None if path is None else Path(path), self._take, is_read_only=is_read_only)
        with self._chain.locked():
            if not self._chain.links and not is_read_only:
                self._append({"ev": "ledger", "format": FORMAT})

    @property
    def delta(self) -> float:
        """At which delta epsilons are told and compared: as given, else the smallest of any mechanism."""
        return self._delta or self._told_delta or DELTA

    @property
    def path(self) -> Path | None:
        """Its file; None where it is kept in memory alone."""
        return self._chain.path

    @property
    def is_kept(self) -> bool:
        """Tell whether it lies in a file."""
        return self._chain.path is not None

    @property
    def head(self) -> tuple[int, str]:
        """How many entries there are, and the last link of their chain."""
        return len(self._chain.links), self._chain.head

    def holds(self, entries: int, head: str) -> bool:
        """Tell whether the first so many entries are those whose chain ended in this link."""
        return 0 < entries <= len(self._chain.links) and self._chain.links[entries - 1].hex() == head

    def name_of(self, site: str) -> str:
        """Return a site's data set as the ledger calls it."""
        return hashlib.sha256(f"fedray|ledger|{self.dataset}|{site}".encode()).hexdigest()[:16]

    def opened(self, number: int) -> Opened | None:
        """Return the run that an entry has opened."""
        return self._opened.get(number)

    def open_run(self, run: str, accounts: Sequence[Account], rounds: int | None = None, **facts: Any) -> int:
        """Note a run and its accounts before its first charge; return the number by which it charges.

        With `rounds`, those to come, all of them must fit. Raises BudgetError where they do not.
        """
        told = [account.told() for account in accounts]
        with self._chain.locked():
            planned = Opened(run, tuple(accounts))
            self._tell_delta(accounts)
            now, later = planned.cost(0), planned.cost_of_others()
            if rounds and (over := self._over(now, later, rounds)):
                raise self._refused(run, 0, self._told_short(over, now, later, rounds))
            return self._append({"ev": "open", "run": run, **facts, "accounts": told})

    def charge(
        self, opened: int, round: int, asked: Collection[str] | None = None, *, ahead: int = 1
    ) -> None:
        """Charge a round before anything of it is released; when this returns, the charge is on disk.

        `asked` are the data sets that take part, by their names here; None charges all. `ahead` rounds are
        looked up at once, which is cheaper. Raises BudgetError where the round does not fit.
        """
        with self._chain.locked():
            run = self._opened[opened]
            now, later = run.cost(round, asked), run.cost_of_others(asked)
            is_clear = ahead > 1 and self._over(now, later, ahead) is None
            if not is_clear and (over := self._over(now, later, 1)):
                raise self._refused(run.run, round, self._told_over(over, now, round))
            entry = {"ev": "charge", "run": run.run, "of": opened, "round": round,
                     "attempt": run.charged[round]}  # fmt: skip
            self._append(entry if asked is None else {**entry, "asked": sorted(asked)})

    def note(self, run: str, **facts: Any) -> None:
        """Write down what is not paid for by noise, such as figures that are released exactly."""
        with self._chain.locked():
            self._append({"ev": "note", "run": run, **facts})

    def epsilon(self, delta: float | None = None, *, run: str | None = None, coarse: bool = False) -> float:
        """Return the largest epsilon of any account, over all studies or of one run alone."""
        spent = self._spent if run is None else self._spent_by.get(run, {})
        return largest(spent.values(), delta or self.delta, coarse=coarse)

    def accounts(self, delta: float | None = None, *, run: str | None = None) -> dict[Key, float]:
        """Return the epsilon of each data set and unit."""
        spent = self._spent if run is None else self._spent_by.get(run, {})
        return {key: largest([steps], delta or self.delta) for key, steps in sorted(spent.items())}

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs that have charged."""
        return tuple(self._spent_by)

    def close(self) -> None:
        """Close the file; what was spent can still be asked."""
        self._chain.close()

    def _append(self, entry: Mapping[str, Any]) -> int:
        return self._chain.append({**entry, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})

    def _take(self, entry: Mapping[str, Any]) -> None:
        """Count an entry, one's own or another's."""
        if entry["ev"] == "open":
            accounts = tuple(Account.of(told) for told in entry["accounts"])
            self._opened[entry["seq"]] = Opened(entry["run"], accounts)
            self._tell_delta(accounts)
        elif entry["ev"] == "charge":
            run = self._opened[entry["of"]]
            asked = set(entry["asked"]) if "asked" in entry else None
            of_run = self._spent_by.setdefault(run.run, {})
            for key, steps in run.cost(entry["round"], asked).items():
                for spent in (self._spent, of_run):
                    spent[key] = added(spent.get(key, {}), steps)
            run.charged[entry["round"]] += 1

    def _tell_delta(self, accounts: Sequence[Account]) -> None:
        """Count at the smallest delta of any mechanism; what was looked up at a larger one clears nothing."""
        least = min([*(account.mechanism.delta for account in accounts), self._told_delta or 1.0])
        if least != self._told_delta:
            self._told_delta, self._cleared = least, {}

    def _over(self, now: Costs, later: Costs, rounds: int) -> Key | None:
        """Return an account that cannot bear this round and `rounds - 1` others; None where all can."""
        if self.budget is None:
            return None
        for key, steps in now.items():
            total = added(added(self._spent.get(key, {}), steps), later[key], rounds - 1)
            cleared = self._cleared.get(key)
            if cleared is not None and all(count <= cleared.get(each, 0) for each, count in total.items()):
                continue
            if not fits(total, self.budget, self.delta):
                return key
            self._cleared[key] = total
        return None

    def _refused(self, run: str, round: int, why: str) -> BudgetError:
        self._append({"ev": "refused", "run": run, "round": round, "code": "E_BUDGET"})
        return BudgetError(f"E_BUDGET: {why}")

    def _told_over(self, key: Key, costs: Costs, round: int) -> str:
        before = self._spent.get(key, {})
        spent = largest([before], self.delta)
        reached = largest([added(before, costs[key])], self.delta)
        return (
            f"round {round} would bring epsilon to {reached:.4g} at delta {self.delta:g} (data set {key[0]}, "
            f"unit: {key[1]}); {self.budget:g} is allowed and {spent:.4g} is spent, over all studies. "
            "Nothing was released. Fix: more noise or fewer rounds, on data that can still bear them"
        )

    def _told_short(self, key: Key, now: Costs, later: Costs, rounds: int) -> str:
        low, high = 0, rounds  # of rounds that fit, and that do not
        while high - low > 1:
            middle = (low + high) // 2
            is_over = self._over({key: now[key]}, later, middle) is not None
            low, high = (low, middle) if is_over else (middle, high)
        spent = largest([self._spent.get(key, {})], self.delta)
        fix = f"rounds={low}, or " * (low > 0)
        return (
            f"{rounds} rounds would spend more than epsilon {self.budget:g} at delta {self.delta:g} (unit: "
            f"{key[1]}): {spent:.4g} is spent, over all studies, and {low} rounds fit. Fix: {fix}more noise"
        )
