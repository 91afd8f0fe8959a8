"""Shapley values by drawn orders: truncated Monte Carlo, and the walk along orders that GTG shares.

Orders are a function of the seed and their own number, whatever is drawn at a time. Several are walked side
by side, place by place, so that the coalitions of one place can be trained together.
"""

import math
from collections.abc import Callable, Sequence

import torch

from fedray.contribution.games import Coalition, Game
from fedray.contribution.record import Contribution
from fedray.rng import SERVER, Key
from fedray.settings import check_numbers, check_whole

Order = tuple[str, ...]
Values = Callable[[Sequence[Coalition]], Sequence[float]]
TINY = 1e-12  # keeps the relative change of a value of 0 defined


def order_of(players: Sequence[str], key: Key) -> Order:
    """Return the players in an order drawn from a key."""
    places = torch.randperm(len(players), generator=key.generator()).tolist()
    return tuple(players[place] for place in places)


def walk(
    values: Values, orders: Sequence[Order], ends: tuple[float, float], tolerance: float
) -> list[dict[str, float]]:
    """Return what each player adds where it comes, in each order. `ends` are v(nobody) and v(everybody).

    An order is cut where what was reached is less than `tolerance` from the whole: the rest adds nothing.
    """
    empty, whole = ends
    reached = [empty] * len(orders)
    added: list[dict[str, float]] = [{} for _ in orders]
    for place in range(len(orders[0])):
        going = [k for k, value in enumerate(reached) if abs(whole - value) >= tolerance]
        found = values([frozenset(orders[k][: place + 1]) for k in going])
        after = dict(zip(going, found, strict=True))
        for k, order in enumerate(orders):
            value = after.get(k, reached[k])
            added[k][order[place]], reached[k] = value - reached[k], value
    return added


class Means:
    """Running means of what players add, over orders, and how much they still move."""

    def __init__(self, players: Sequence[str]) -> None:
        self.players = tuple(players)
        self.added: list[list[float]] = []  # one row per order
        self._totals = torch.zeros(len(self.players), dtype=torch.float64)
        self._history: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self.added)

    def take(self, added: Sequence[dict[str, float]]) -> None:
        """Take what players add in some orders."""
        for each in added:
            row = [each[player] for player in self.players]
            self.added.append(row)
            self._totals = self._totals + torch.tensor(row, dtype=torch.float64)
            self._history.append(self._totals / len(self.added))

    def values(self) -> dict[str, float]:
        """Return the mean of each player, rounded once."""
        columns = zip(*self.added, strict=True)
        means = [math.fsum(column) / len(self.added) for column in columns]
        return dict(zip(self.players, means, strict=True))

    def change(self, back: int) -> float:
        """Return the mean relative change of the means since `back` orders ago."""
        now, before = self._history[-1], self._history[-1 - back]
        return float(((now - before).abs() / (now.abs() + TINY)).mean())

    def errors(self, together: int = 1) -> dict[str, float]:
        """Return standard errors; `together` orders that were drawn together are one observation."""
        rows = torch.tensor(self.added, dtype=torch.float64)
        groups = rows.view(-1, together, len(self.players)).mean(1)
        spread = groups.std(0) / math.sqrt(len(groups))
        return dict(zip(self.players, spread.tolist(), strict=True))


def tmc_shapley(
    game: Game,
    *,
    permutations: int = 1000,
    tolerance: float = 1e-3,
    change: float = 0.05,
    over: int = 100,
    seed: int = 0,
    together: int = 10,
) -> Contribution:
    """Estimate Shapley values from drawn orders, each cut where what is left can add little.

    An order's coalitions are the sites so far; it is cut where v is less than `tolerance` (in units of the
    utility) from v(all). Drawing ends where the values have moved by less than `change` of themselves, in
    the mean over sites, during the last `over` orders, or after `permutations`. `together` orders are walked
    side by side. A coalition is trained once, so that trainings are at most 2^n - 1.
    Source: Ghorbani, Zou, Data Shapley: equitable valuation of data for machine learning, ICML 2019,
    Algorithm 1, sites in the place of data points. Deviations: whether to go on is asked every `together`
    orders; 1e-12 is added to the values that changes are divided by. Raises ValueError on numbers that
    cannot be meant.
    """
    check_whole("tmc_shapley", least=2, permutations=permutations)
    check_whole("tmc_shapley", over=over, together=together)
    check_numbers("tmc_shapley", least=0, tolerance=tolerance, change=change)
    before, means = game.num_known, Means(game.players)
    empty, whole = game.values([frozenset(), game.everybody])
    is_settled = False
    while len(means) < permutations and not is_settled:
        numbers = range(len(means), min(len(means) + together, permutations))
        orders = [order_of(game.players, Key(seed, number, SERVER, "order")) for number in numbers]
        means.take(walk(game.values, orders, (empty, whole), tolerance))
        is_settled = len(means) > over and means.change(over) < change
    return Contribution(
        method="tmc_shapley", values=means.values(), errors=means.errors(), whole=whole, empty=empty,
        metric=game.metric, trainings=game.num_known - before, permutations=len(means), seed=seed,
        converged=is_settled,
    )  # fmt: skip
