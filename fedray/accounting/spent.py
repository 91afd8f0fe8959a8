"""Who has spent what: the releases of every data set and unit added up, and the largest epsilon."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from fedray.accounting import accountant, renyi
from fedray.accounting.mechanism import Mechanism

Key = tuple[str, str]  # a data set's name in the ledger, and the unit that is protected in it
Steps = Mapping[Mechanism, int]
Look = tuple[float, tuple[tuple[Mechanism, int], ...]]  # a bound of epsilon, and the history
MOST_FINE = 8  # histories that are accounted on the fine grid where many are close: a third of a second each
COARSE_ABOVE = 0.004  # by which a coarse figure may lie above the fine one
_LOSS = ("kind", "noise_multiplier", "sampling_rate", "steps", "delta", "unit", "noise_by", "trusted",
         "adjacency")  # fmt: skip
_OF_KIND = {"skellam": ("variance", "l2", "l1"), "matrix": ("rounds", "sensitivity")}


@dataclass(frozen=True, slots=True)
class Account:
    """A mechanism, and the data sets that each of its releases charges."""

    mechanism: Mechanism
    datasets: tuple[str, ...]

    def told(self) -> dict[str, Any]:
        """Return the account as an entry of a ledger holds it."""
        names = (*_LOSS, *_OF_KIND.get(self.mechanism.kind, ()))
        found = {name: getattr(self.mechanism, name) for name in names}
        return {**found, "datasets": list(self.datasets)}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Account":
        """Return the account that an entry tells of."""
        given = {name: value for name, value in told.items() if name != "datasets"}
        return cls(Mechanism(**given), tuple(told["datasets"]))

    def cost(self, is_first: bool, is_again: bool) -> dict[Mechanism, int]:
        """Return what one round costs: the first of those that a matrix pays for, or one tried again.

        A matrix is paid for by the first charge. A round that is tried again releases one row of it again:
        a unit takes part in it once at most within its bands, so that it is 1 clip bound of sensitivity more.
        """
        if self.mechanism.kind != "matrix" or is_first:
            return accountant.steps_of([self.mechanism])
        if not is_again:
            return {}
        noise = self.mechanism.known[0] * self.mechanism.sensitivity
        return accountant.steps_of([replace(self.mechanism, kind="gaussian", noise_multiplier=noise)])


def largest(spent: Iterable[Steps], delta: float, *, coarse: bool = False) -> float:
    """Return the largest epsilon among several histories; equal ones are accounted once.

    Where many differ, only those are accounted in full whose first look is over the best so far, and of
    those that are still close after a coarse look (sites whose noise follows from one epsilon all are) not
    more than MOST_FINE: for the others the coarse figure, a bound as well, stands.
    """
    distinct = {frozenset(steps.items()) for steps in spent}
    looks = sorted(((_look(steps, delta), tuple(steps)) for steps in distinct), key=lambda look: -look[0])
    if coarse or len(looks) <= MOST_FINE:
        return _largest(looks, delta, coarse)
    close = [(_epsilon(frozenset(steps), delta, True), steps) for _, steps in _over_best(looks, delta)]
    close.sort(key=lambda look: -look[0])
    best = _largest(close[:MOST_FINE], delta, False)
    return max([best, *(figure for figure, _ in close[MOST_FINE:])])


def _largest(looks: Sequence[Look], delta: float, coarse: bool) -> float:
    """Return the largest epsilon of histories, in the order of their looks, which are bounds."""
    best = 0.0
    for look, steps in looks:
        if look <= best:
            break
        best = max(best, _epsilon(frozenset(steps), delta, coarse))
    return best


def _over_best(looks: Sequence[Look], delta: float) -> list[Look]:
    """Return the histories that may be the largest, by coarse figures."""
    best, found = 0.0, []
    for look, steps in looks:
        if look <= best:
            break
        best = max(best, _epsilon(frozenset(steps), delta, True) - COARSE_ABOVE)
        found.append((look, steps))
    return found


@lru_cache(maxsize=65536)
def _look(steps: frozenset[tuple[Mechanism, int]], delta: float) -> float:
    """Return a fast upper bound, exact without sampling."""
    known = dict(steps)
    if not known or accountant.is_closed(known):
        return accountant.epsilon(known, delta)
    return renyi.rdp_epsilon(accountant.divergences(known), delta)


@lru_cache(maxsize=4096)
def _epsilon(steps: frozenset[tuple[Mechanism, int]], delta: float, coarse: bool) -> float:
    return accountant.epsilon(dict(steps), delta, coarse=coarse)


def fits(steps: Steps, epsilon: float, delta: float) -> bool:
    """Tell whether releases have no more than `epsilon` at `delta`; slow only where they come near it.

    Noise that was solved for spends all of an epsilon, up to rounding, which is forgiven.
    """
    key, limit = frozenset(steps.items()), epsilon * (1 + 1e-9)
    return _look(key, delta) <= limit or _epsilon(key, delta, False) <= limit


def added(steps: Steps, more: Steps, times: int = 1) -> dict[Mechanism, int]:
    """Return both together, the second so many times."""
    total = dict(steps)
    for mechanism, count in more.items():
        total[mechanism] = total.get(mechanism, 0) + times * count
    return total
