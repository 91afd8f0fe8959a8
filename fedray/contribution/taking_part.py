"""The value of taking part: what a site's own patients have of the federated model."""

from fedray.contribution.games import Game
from fedray.contribution.record import TakingPart
from fedray.contribution.replays import Replay, replays_of, undefined
from fedray.errors import ConfigError


def value_of_taking_part(game: Game, metric: str | None = None) -> TakingPart:
    """Compare, on each site's own rows, the model of all sites with the one that the site trains alone.

    The site's own model is the replay of its coalition of one: the same algorithm, rounds and steps. n + 1
    trainings, none where a game was valued by Shapley before. `metric` is one of the utility's records of
    single sites, by default the game's.
    Raises ConfigError where the utility gathers no such records.
    """
    replays, before = replays_of(game, "value_of_taking_part"), game.num_known
    alone = [frozenset({site}) for site in game.players]
    game.values([game.everybody, *alone])
    name, together = metric or replays.metric, replays.done[game.everybody]
    measured = [_own(replays.done[each], site, name) for each, site in zip(alone, game.players, strict=True)]
    federated = [_own(together, site, name) for site in game.players]
    gains = [
        None if own is None or other is None else replays.worth(other) - replays.worth(own)
        for own, other in zip(measured, federated, strict=True)
    ]
    counts = [_own(together, site, "n", is_needed=False) for site in game.players]
    found = [dict(zip(game.players, each, strict=True)) for each in (measured, federated, gains, counts)]
    return TakingPart(
        metric=name, alone=found[0], federated=found[1], gains=found[2], num_examples=found[3],
        trainings=game.num_known - before,
    )  # fmt: skip


def _own(replay: Replay, site: str, metric: str, is_needed: bool = True) -> float | None:
    """Return a metric on a site's own rows, None where it is not defined there."""
    row = next((row for row in replay.per_site if row["site"] == site), {})
    if is_needed and metric not in row:
        raise ConfigError(
            f"value_of_taking_part: the utility has no {metric} of {site} alone. Fix: a utility that gathers "
            "the metrics of single sites, as fr.algorithms.evaluation(model, per_site=True) does"
        )
    value = row.get(metric)
    return None if undefined(value) else float(value)  # type: ignore[arg-type]
