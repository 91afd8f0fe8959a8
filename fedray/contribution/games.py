"""Games and the methods that need no chance: leave-one-out and exact Shapley values.

A game asks for the worth of several coalitions at a time, so that whoever answers may train them together,
and for each coalition once.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, combinations

from fedray.contribution.record import Contribution
from fedray.errors import FedrayError

Coalition = frozenset[str]
Worth = Callable[[Sequence[Coalition]], Sequence[float]]
MOST_EXACT = 10  # sites: 2^10 trainings


class Game:
    """Players, and what every coalition of them is worth. A coalition is asked for once."""

    def __init__(self, players: Iterable[str], worth: Worth, metric: str = "utility") -> None:
        self.players = tuple(sorted(players))
        self.worth, self.metric = worth, metric
        self._known: dict[Coalition, float] = {}
        if not self.players or len(set(self.players)) != len(self.players):
            raise ValueError("a game needs at least one player, and each of them once")

    @property
    def everybody(self) -> Coalition:
        """The coalition of all players."""
        return frozenset(self.players)

    @property
    def num_known(self) -> int:
        """How many coalitions were valued; that of nobody is no training and does not count."""
        return sum(bool(coalition) for coalition in self._known)

    def know(self, worths: Mapping[Coalition, float]) -> None:
        """Take worths that were found before, as by a run that was cut short."""
        self._known |= worths

    def values(self, coalitions: Sequence[Coalition]) -> list[float]:
        """Return what coalitions are worth. Raises FedrayError where one is not a number."""
        missing = list(dict.fromkeys(each for each in coalitions if each not in self._known))
        if missing:
            for each, found in zip(missing, self.worth(missing), strict=True):
                if not math.isfinite(found):
                    names = ", ".join(sorted(each)) or "no site"
                    raise FedrayError(
                        f"{self.metric} of {names} is {found}: choose a metric that is defined for every "
                        "coalition, or train with smaller steps"
                    )
                self._known[each] = float(found)
        return [self._known[each] for each in coalitions]

    def __call__(self, coalition: Iterable[str]) -> float:
        """Return what one coalition is worth."""
        return self.values([frozenset(coalition)])[0]


def leave_one_out(game: Game) -> Contribution:
    """Return what is lost without each site: v(all) - v(all but the site). n + 1 trainings.

    It is not efficient, and gives two sites with equal rows little each: either does for both.
    """
    before, everybody = game.num_known, game.everybody
    without = [everybody - {site} for site in game.players]
    whole, empty, *found = game.values([everybody, frozenset(), *without])
    values = {site: whole - each for site, each in zip(game.players, found, strict=True)}
    return Contribution(
        method="leave_one_out", values=values, whole=whole, empty=empty, metric=game.metric,
        trainings=game.num_known - before,
    )  # fmt: skip


def coalitions_of(players: Sequence[str]) -> list[Coalition]:
    """Return every coalition, that of nobody included, small ones first."""
    sizes = range(len(players) + 1)
    return [frozenset(each) for each in chain.from_iterable(combinations(players, size) for size in sizes)]


def shapley(game: Game, at_most: int = MOST_EXACT) -> Contribution:
    """Return exact Shapley values: the mean of what a site adds over all orders in which sites could come.

    phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)); 2^n - 1 trainings. Sums are
    rounded once, so that sites whose coalitions are worth the same have equal bits.
    Raises ValueError for more than `at_most` sites: `tmc_shapley` and `gtg_shapley` draw orders instead.
    Source: Shapley, A value for n-person games, 1953.
    """
    players, before = game.players, game.num_known
    if len(players) > at_most:
        raise ValueError(
            f"shapley: {len(players)} sites are 2^{len(players)} trainings, and at most {at_most} sites are "
            "allowed: use tmc_shapley or gtg_shapley, or give at_most="
        )
    every = coalitions_of(players)
    worth = dict(zip(every, game.values(every), strict=True))
    values = {site: _exact(site, worth, len(players)) for site in players}
    return Contribution(
        method="shapley", values=values, whole=worth[game.everybody], empty=worth[frozenset()],
        metric=game.metric, trainings=game.num_known - before,
    )  # fmt: skip


def _exact(site: str, worth: Mapping[Coalition, float], n: int) -> float:
    """Return a site's Shapley value: the mean over sizes of the mean over coalitions of that size."""
    by_size: dict[int, list[float]] = {}
    for coalition, value in worth.items():
        if site not in coalition:
            by_size.setdefault(len(coalition), []).extend((worth[coalition | {site}], -value))
    means = [math.fsum(found) / math.comb(n - 1, size) for size, found in by_size.items()]
    return math.fsum(means) / n
