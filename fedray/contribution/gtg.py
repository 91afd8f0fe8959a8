"""GTG-Shapley: values from one training, round by round, by putting models together again.

Source: Liu, Chen, Zhao, Yu, Liu, Bao, Jiang, Nie, Xu, Yang, GTG-Shapley: efficient and accurate participant
contribution evaluation in federated learning, ACM TIST 2022, Algorithm 1. In round t the server holds each
site's update D_i; the model of a subset C is put together from them, M_t + sum over C of |D_i|/|D_C| D_i,
instead of being trained. A site's value is the sum over rounds of its Shapley value in the round's game.
  between rounds: a round with |v(M_t+1) - v(M_t)| below a threshold adds nothing
  within a round: an order is cut where |v(M_t+1) - v| is below a threshold
  guided: orders come in turns, each with another site in the first place
  converged: the running means of the last 10 orders lie within 5 % of the last, after 30 orders
Deviations: a server optimizer other than averaging puts models together by its own step from its state in
that round; convergence is asked after whole turns, two or more, so that every site was first equally often
and there is an error to state; a cut order's value is not kept as the worth of its coalition.

The server sees every site's update in the clear: a policy that allows no single site's value refuses it, and
so does this file where any pass would change or hide updates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fedray as fr
from fedray import tree
from fedray.contribution.games import Coalition, Game
from fedray.contribution.record import Contribution
from fedray.contribution.replays import Replays, replays_of
from fedray.contribution.sampling import TINY, Means, walk
from fedray.core.rewrite import policies
from fedray.errors import PassError
from fedray.learn.optimizer import ServerOptimizer, sgd
from fedray.rng import SERVER, Key
from fedray.settings import check_numbers, check_whole


@dataclass(frozen=True)
class RevealedState:
    """The server's state, that before the last round, and what each site sent in it."""

    params: Any
    optimizer: Any
    round: int = 0
    before: Any = None  # (params, optimizer)
    updates: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)


def revealing_fedavg(local: Any, optimizer: ServerOptimizer, weighted: bool = True) -> fr.Algorithm:
    """Average as FedAvg does, and let the server keep every site's update of the last round."""

    def init(params: Any) -> RevealedState:
        return RevealedState(params, optimizer.init(params))

    def round(server: Any, site: Any) -> fr.Outputs:
        update = fr.map(local, fr.broadcast(server.params), site.data, site.rng)
        weight = update.num_examples if weighted else None
        delta = fr.mean(update.delta, weight=weight)
        step = fr.apply(optimizer.step, server.params, server.optimizer, delta, server.round)
        updates = fr.gather(update.delta, name="updates")
        weights = fr.gather(update.num_examples, name="num_examples")
        before = fr.apply(_pair, server.params, server.optimizer)
        return fr.Outputs(
            server=RevealedState(step.params, step.state, server.round + 1, before, updates, weights)
        )

    return fr.Algorithm(init, round, name="fedavg, updates shown to the server")


def _pair(params: Any, optimizer: Any) -> tuple[Any, Any]:
    return params, optimizer


def whole_state(state: Any) -> Any:
    """Return the server's state as it is."""
    return state


@dataclass(frozen=True)
class Rule:
    """When GTG-Shapley leaves out, and when it ends."""

    within: float
    between: float
    change: float
    permutations: int
    first: int = 30  # orders before convergence is asked, of the authors' code
    back: int = 10

    def is_settled(self, means: Means) -> bool:
        """Tell whether the last running means lie together."""
        if len(means) < max(self.first, 2 * len(means.players), self.back + 1):
            return False
        return max(means.change(step) for step in range(1, self.back)) <= self.change


class Valuing:
    """A tracker of `fr.fit` that values each round when it is done."""

    def __init__(self, replays: Replays, optimizer: ServerOptimizer, weighted: bool, rule: Rule,
                 seed: int) -> None:  # fmt: skip
        self.replays, self.optimizer, self.weighted = replays, optimizer, weighted
        self.rule, self.seed = rule, seed
        self.rounds: list[dict[str, float]] = []
        self.squares: list[dict[str, float]] = []  # of the errors of each round
        self.permutations, self.is_settled = 0, True
        self.last = math.nan

    def start(self, plan: Any, facts: Mapping[str, Any]) -> None:
        """Take the plan; there is nothing to do."""

    def evaluation(self, record: Any) -> None:
        """Take an evaluation; there is nothing to do."""

    def finish(self, result: Any) -> None:
        """Take the result; there is nothing to do."""

    def round(self, record: Any) -> None:
        """Value the sites of a round."""
        if record.status != "counted":
            return
        state = self.replays.federation.call("call_with_state", whole_state)
        before, self.last = self.last, self.worth(state.params)
        if abs(self.last - before) <= self.rule.between:
            return
        self._value(_Round(self, state, (before, self.last)), tuple(state.updates), record.round)

    def worth(self, params: Any) -> float:
        """Return the utility of a model."""
        metrics, _ = self.replays.measure(params)
        return self.replays.worth(self.replays.value_of(metrics))

    def _value(self, game: "_Round", players: tuple[str, ...], number: int) -> None:
        means, is_settled = Means(players), len(players) == 1
        while len(means) < max(self.rule.permutations, 2 * len(players)):
            orders = guided(players, Key(self.seed, number, SERVER, f"orders {len(means)}"))
            means.take(walk(game.values, orders, game.ends, self.rule.within))
            is_settled = is_settled or self.rule.is_settled(means)
            if is_settled and len(means) >= 2 * len(players):
                break
        self.rounds.append(means.values())
        self.squares.append({site: error**2 for site, error in means.errors(len(players)).items()})
        self.permutations += len(means)
        self.is_settled &= is_settled


def guided(players: Sequence[str], key: Key) -> list[tuple[str, ...]]:
    """Return one order for each player, who comes first in it; the others follow as they are drawn."""
    import torch

    generator, orders = key.generator(), []
    for first in players:
        others = [player for player in players if player != first]
        places = torch.randperm(len(others), generator=generator).tolist()
        orders.append((first, *(others[place] for place in places)))
    return orders


class _Round:
    """The game of one round: a subset is worth the model that its updates make."""

    def __init__(self, valuing: Valuing, state: RevealedState, ends: tuple[float, float]) -> None:
        self.valuing, self.state, self.ends = valuing, state, ends
        self._known: dict[Coalition, float] = {frozenset(state.updates): ends[1]}

    def values(self, coalitions: Sequence[Coalition]) -> list[float]:
        for each in coalitions:
            if each not in self._known:
                self._known[each] = self.valuing.worth(self.model(each))
        return [self._known[each] for each in coalitions]

    def model(self, coalition: Coalition) -> Any:
        """Return the model that a server would have made of these updates."""
        sites, (params, kept) = sorted(coalition), self.state.before
        weights = [float(self.state.weights[site]) if self.valuing.weighted else 1.0 for site in sites]
        share = 1.0 / max(math.fsum(weights), TINY)
        parts = [
            tree.scale(self.state.updates[site], weight * share)
            for site, weight in zip(sites, weights, strict=True)
        ]
        delta = parts[0]
        for part in parts[1:]:
            delta = tree.add(delta, part)
        return self.valuing.optimizer.step(params, kept, delta, self.state.round - 1).params


def gtg_shapley(
    game: Game,
    local: Any,
    *,
    optimizer: ServerOptimizer | None = None,
    weighted: bool = True,
    permutations: int = 1000,
    within: float = 1e-3,
    between: float = 1e-3,
    change: float = 0.05,
    seed: int = 0,
) -> Contribution:
    """Estimate what sites add from one training with FedAvg, by the models that subsets of updates make.

    `local`, `optimizer` and `weighted` are those of `fr.algorithms.fedavg`; rounds, schedule, seed, utility
    and federation are the game's. `within` and `between` are in units of the utility; at most
    `permutations` orders are drawn in a round. The values add up to v(last) - v(first) without the rounds
    that are left out. They are values of the path that training took, and differ from those of retraining.
    Raises PassError where a pass other than a policy is in the game: it would protect or change updates that
    this method shows; PolicyError where a policy does not allow "updates" to be visible.
    """
    check_whole("gtg_shapley", permutations=permutations)
    check_numbers("gtg_shapley", least=0, within=within, change=change)
    check_numbers("gtg_shapley", between=between)  # below 0 leaves no round out
    replays = replays_of(game, "gtg_shapley")
    _refuse_what_hides(replays.passes)
    rule, optimizer = Rule(within, between, change, permutations), optimizer or sgd(1.0)
    valuing, measured = Valuing(replays, optimizer, weighted, rule, seed), replays.measured
    empty = valuing.last = game(frozenset())
    replays.fit(revealing_fedavg(local, optimizer, weighted), game.everybody, tracker=valuing)
    values = {site: math.fsum(row.get(site, 0.0) for row in valuing.rounds) for site in game.players}
    errors = {
        site: math.sqrt(math.fsum(row.get(site, 0.0) for row in valuing.squares)) for site in game.players
    }
    return Contribution(
        method="gtg_shapley", values=values, errors=errors, whole=valuing.last, empty=empty,
        metric=game.metric, trainings=1, evaluations=replays.measured - measured,
        permutations=valuing.permutations, seed=seed, converged=valuing.is_settled,
    )  # fmt: skip


def _refuse_what_hides(passes: Sequence[Any]) -> None:
    """Raise PassError for passes that protect or change what this method has to see."""
    hidden = [step for step in passes if step not in policies(passes)]
    if hidden:
        names = ", ".join(getattr(step, "__name__", type(step).__name__) for step in hidden)
        raise PassError(
            f"gtg_shapley puts models together from each site's update in the clear, and {names} would "
            "change or hide it: use tmc_shapley, shapley or leave_one_out, which only train"
        )
