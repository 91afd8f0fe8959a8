"""Late work: what sites deliver after their round's deadline, counted in a round that comes later.

`synchronous(deadline_s=..., late=...)` ends a round at its deadline and lets those who are not done go on.
What they deliver is added to the next round that begins, times a factor of its age in rounds. Until then a
site is busy and is not asked again, so that it is in a round once. On the simulated clock it is known who is
late, and late sites are trained when they land, those of one round together; of real hosts whole hosts are
late, and their answers are taken as they come.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from fedray.errors import SiteError
from fedray.runtime.ages import told
from fedray.runtime.discounts import Discount
from fedray.runtime.host import Commit, Contribution, Exponents, StageCall
from fedray.runtime.region import Region

LATE_ATTEMPT = 1_000_000  # added to an attempt's number on the simulated clock: its late sites train apart
STAGE = 1  # the only one of the sites, where late work is counted


class Aged(NamedTuple):
    """What counts in a round by a factor: a contribution, the grids that it lies on, its age in rounds."""

    factor: float
    answer: Contribution
    grids: Exponents
    age: int = 0


@dataclass(slots=True)
class LateWork:
    """Who is late in a run, and what late sites have delivered that was not counted yet."""

    discount: Discount
    root: Region
    is_simulated: bool
    asked: dict[str, StageCall] = field(default_factory=dict)  # late site -> what it was asked
    lands_s: dict[str, float] = field(default_factory=dict)  # late site -> when, on the simulated clock
    downlinks: dict[int, Any] = field(default_factory=dict)  # of rounds that sites are late with, as put
    landed: list[tuple[StageCall, Contribution]] = field(default_factory=list)

    def free(self, names: Sequence[str]) -> Sequence[str]:
        """Return the sites that can be asked."""
        return [site for site in names if site not in self.asked] if self.asked else names

    def keep(self, call: StageCall, box: Any, left_s: Mapping[str, float]) -> None:
        """Remember who is late with a call, and how long each needs yet where the clock is simulated."""
        if not left_s:
            return
        number = call.attempt + LATE_ATTEMPT if self.is_simulated else call.attempt
        call = replace(call, cohort=tuple(left_s), commits=(), deadline=None, attempt=number)
        self.asked |= dict.fromkeys(left_s, call)
        self.downlinks[call.round] = box
        now = self.root.transport.now()
        self.lands_s |= {site: now + seconds for site, seconds in left_s.items()}

    def give_up(self, round: int, attempt: int) -> None:
        """Wait no longer for who was late in an attempt that failed: they are asked again."""
        for site, call in list(self.asked.items()):
            if call.round == round and call.attempt % LATE_ATTEMPT == attempt:
                self._drop([site])
                self.root.forget(site)

    def take(self, round: int) -> tuple[list[Aged], tuple[SiteError, ...]]:
        """Return what has landed and was not counted yet, the youngest first, and who failed meanwhile."""
        failures: list[SiteError] = []
        for landing in self._due() if self.is_simulated else self._arrivals():
            call, answer = self._on_its_grids(*landing)
            failures += answer.failures
            self._drop([failure.site for failure in answer.failures])
            if answer.delivered:
                self.landed.append((call, answer))
        self.landed.sort(key=lambda each: (-each[0].round, each[1].delivered))
        return [self._aged(round, *each) for each in self.landed], told(failures, round)

    def _aged(self, round: int, call: StageCall, answer: Contribution) -> Aged:
        age = round - call.round
        grids = {name: call.exponents.get(name, needs) for name, needs in answer.needs.items()}
        return Aged(float(self.discount(age)), answer, grids, age)

    def _due(self) -> Iterator[tuple[StageCall, Contribution]]:
        """Train the sites whose time has come, those of one round together."""
        now, here = self.root.transport.now(), {site for _, each in self.landed for site in each.delivered}
        due = sorted(site for site, lands_s in self.lands_s.items() if lands_s <= now and site not in here)
        for round in sorted({self.asked[site].round for site in due}):
            cohort = tuple(site for site in due if self.asked[site].round == round)
            call = replace(self.asked[cohort[0]], cohort=cohort)
            yield call, self.root.ask(call, self.downlinks[round])

    def _arrivals(self) -> Iterator[tuple[StageCall, Contribution]]:
        while self.asked:
            call, answer = self.root.arrival(0.0)
            if call is None:
                return
            if all(self.asked.get(site) is not None for site in call.cohort):
                yield call, answer

    def _on_its_grids(self, call: StageCall, answer: Contribution) -> tuple[StageCall, Contribution]:
        """Ask again on coarser grids where the values need them, which costs no training."""
        while not answer.is_folded:
            wider = {name: tuple(map(max, needs, call.exponents.get(name, needs)))
                     for name, needs in answer.needs.items()}  # fmt: skip
            call = replace(call, exponents={**call.exponents, **wider}, commits=())
            answer = self.root.ask(call, self.downlinks[call.round])
        return call, answer

    def counted(self) -> list[Commit]:
        """Forget what has landed, for it was counted; return what makes the state of its sites current."""
        found = [Commit(call.plan, call.round, call.attempt, frozenset(answer.delivered))
                 for call, answer in self.landed]  # fmt: skip
        self._drop([site for _, answer in self.landed for site in answer.delivered])
        self.landed = []
        return found

    def _drop(self, sites: Sequence[str]) -> None:
        for site in sites:
            del self.asked[site], self.lands_s[site]
        held = {call.round for call in self.asked.values()}
        self.downlinks = {round: box for round, box in self.downlinks.items() if round in held}

    @property
    def under_way(self) -> frozenset[tuple[int, int]]:
        """The attempts whose sites may be counted later."""
        return frozenset((call.round, call.attempt) for call in self.asked.values())

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint holds; of real hosts nothing: who was late is asked anew after that."""
        if not self.asked or not self.is_simulated:
            return {}
        now = self.root.transport.now()
        calls = {call.round: call for call in self.asked.values()}
        return {
            "late": [[site, call.round, self.lands_s[site] - now] for site, call in self.asked.items()],
            "calls": {round: [call.plan, call.seed, call.attempt,
                              {name: list(grid) for name, grid in call.exponents.items()}]
                      for round, call in calls.items()},
            "downlinks": dict(self.downlinks),
        }  # fmt: skip

    def restore(self, saved: Mapping[str, Any], run: str) -> None:
        """Go on from a checkpoint."""
        for round, (plan, seed, attempt, grids) in saved["calls"].items():
            exponents = {name: tuple(grid) for name, grid in grids.items()}
            call = StageCall(run=run, plan=plan, seed=seed, round=round, attempt=attempt % LATE_ATTEMPT,
                             stage=STAGE, cohort=(), exponents=exponents)  # fmt: skip
            left_s = {site: seconds for site, of, seconds in saved["late"] if of == round}
            self.keep(call, dict(saved["downlinks"][round]), left_s)


def facts_of(aged: Sequence[Aged]) -> dict[str, Any]:
    """Return what the record of a round says of the late work that it counts."""
    ages = [each.age for each in aged for _ in each.answer.delivered]
    if not ages:
        return {}
    return {"late": len(ages), "staleness_mean": sum(ages) / len(ages), "staleness_max": max(ages)}
