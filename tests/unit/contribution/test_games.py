"""Known games: closed forms, the axioms, and how near drawn orders come."""

import math

import pytest

from fedray.contribution import Game, leave_one_out, shapley, tmc_shapley
from fedray.contribution.sampling import walk
from fedray.errors import FedrayError
from tests.unit.contribution import brute

COSTS = {name: float(cost) for name, cost in zip("abcdefgh", (1, 2, 2, 4, 5, 7, 7, 10), strict=True)}
TMC_ERROR = 0.03  # of the whole, after 300 orders of 8 sites: what the standard errors say, times 2


def game_of(players, worth):
    return Game(players, lambda asked: [worth(each) for each in asked])


def airport(coalition):
    return max((COSTS[name] for name in coalition), default=0.0)


def airport_value(name):
    """Return the closed form: a step in cost is shared by those who need it (Littlechild and Owen, 1973)."""
    levels, total = sorted(COSTS.values()), 0.0
    for place, cost in enumerate(levels[: levels.index(COSTS[name]) + 1]):
        total += (cost - (levels[place - 1] if place else 0.0)) / (len(levels) - place)
    return total


def votes(coalition):
    return float(sum({"a": 4, "b": 3, "c": 2, "d": 1}[name] for name in coalition) > 5)


def bent(coalition):
    clash = "c" in coalition and "d" in coalition
    return math.sqrt(len(coalition)) + ("b" in coalition) * 0.3 - clash * 0.7


def test_exact_values_are_the_closed_form_of_the_airport_game():
    found = shapley(game_of(COSTS, airport))
    assert found.values == pytest.approx({name: airport_value(name) for name in COSTS}, abs=1e-12)
    assert found.trainings == 2**8 - 1


@pytest.mark.parametrize("worth", [votes, bent])
def test_exact_values_are_the_mean_over_all_orders(worth):
    assert shapley(game_of("abcd", worth)).values == pytest.approx(brute.shapley("abcd", worth), abs=1e-14)


def test_values_share_what_everybody_is_worth_beyond_nobody():
    found = shapley(game_of("abcd", lambda coalition: bent(coalition) + 5))
    assert sum(found.values.values()) == pytest.approx(found.whole - found.empty, abs=1e-14)
    assert found.rest == pytest.approx(0, abs=1e-14) and found.empty == 5


def test_equal_sites_have_equal_bits_and_one_that_adds_nothing_has_none():
    found = shapley(game_of("abcdn", lambda coalition: bent(coalition - {"n"}))).values
    assert found["c"] == found["d"] and found["n"] == 0.0


def test_values_of_a_sum_of_games_are_sums_of_values():
    both = shapley(game_of("abcd", lambda coalition: bent(coalition) + votes(coalition))).values
    one, other = (shapley(game_of("abcd", worth)).values for worth in (bent, votes))
    assert both == pytest.approx({name: one[name] + other[name] for name in "abcd"}, abs=1e-14)


def test_leaving_one_out_is_what_is_lost_without_it():
    found = leave_one_out(game_of(COSTS, airport))
    assert found.values == {**dict.fromkeys("abcdefg", 0.0), "h": 3.0} and found.trainings == 9


def test_no_coalition_is_asked_for_twice():
    asked = []
    game = Game("abc", lambda many: asked.extend(many) or [float(len(each)) for each in many])
    leave_one_out(game)
    again = shapley(game)
    assert len(asked) == len(set(asked)) == 8 and again.trainings == 3


def test_more_sites_than_can_be_trained_are_refused_with_what_to_use_instead():
    with pytest.raises(ValueError, match="2\\^11 trainings.*tmc_shapley"):
        shapley(game_of("abcdefghijk", len))


def test_worth_that_is_no_number_is_refused_with_its_coalition():
    with pytest.raises(FedrayError, match="utility of a, c is nan"):
        game_of("abc", lambda coalition: math.nan if coalition == {"a", "c"} else 0.0)("ca")


def test_drawn_orders_come_near_the_exact_values_of_eight_sites():
    found = tmc_shapley(game_of(COSTS, airport), permutations=300, tolerance=0.0, change=0.0)
    errors = {name: abs(found.values[name] - airport_value(name)) for name in COSTS}
    assert max(errors.values()) < TMC_ERROR * found.whole
    assert all(errors[name] < 3.5 * found.errors[name] for name in COSTS)
    assert found.rest == pytest.approx(0, abs=1e-9) and not found.converged and found.permutations == 300


def test_orders_follow_from_the_seed_however_many_are_walked_side_by_side():
    def drawn(seed, together):
        return tmc_shapley(game_of(COSTS, airport), permutations=24, change=0.0, seed=seed, together=together)

    assert drawn(1, 1) == drawn(1, 24) and drawn(1, 10).values != drawn(2, 10).values


def test_an_order_is_cut_where_what_is_left_is_below_the_tolerance():
    asked = []
    values = lambda many: asked.extend(many) or [airport(each) for each in many]  # noqa: E731
    (cut,) = walk(values, [("a", "g", "h", "b")], (0.0, 10.0), tolerance=3.5)
    assert cut == {"a": 1.0, "g": 6.0, "h": 0.0, "b": 0.0} and len(asked) == 2
    (whole,) = walk(values, [("a", "g", "h", "b")], (0.0, 10.0), tolerance=0.0)
    assert whole == {"a": 1.0, "g": 6.0, "h": 3.0, "b": 0.0}


def test_drawing_ends_where_values_have_settled_and_cut_orders_save_trainings():
    whole = tmc_shapley(game_of(COSTS, airport), tolerance=0.0)
    cut = tmc_shapley(game_of(COSTS, airport), tolerance=3.5)
    assert whole.converged and 100 < whole.permutations < 1000
    assert cut.trainings < whole.trainings
