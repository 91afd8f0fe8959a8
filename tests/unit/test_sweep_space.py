"""Random draws: Hydra's grammar of intervals and choices, reproducible, seeds as an axis of their own."""

import pytest

from fedray.errors import ConfigError
from fedray.sweep.space import Axis, drawn, read
from fedray.sweep.trials import Trial

WORDS = ("rounds=3", "local.lr=tag(log, interval(1e-4,1))", "model=logistic,mlp",
         "local.batch_size=int(interval(4,9))")


def value_of(trial, key):
    return next(word.partition("=")[2] for word in trial.overrides if word.startswith(f"{key}="))


def test_words_are_read_in_their_order():
    assert read(WORDS) == ["rounds=3", Axis("local.lr", low=1e-4, high=1.0, is_log=True),
                           Axis("model", values=("logistic", "mlp")),
                           Axis("local.batch_size", low=4, high=9, is_whole=True)]


def test_draw_stays_within_its_bounds_and_keeps_what_is_fixed():
    trials = drawn(WORDS, count=200, seed=0)
    rates = [float(value_of(trial, "local.lr")) for trial in trials]
    assert {int(value_of(trial, "local.batch_size")) for trial in trials} == {4, 5, 6, 7, 8, 9}
    assert {value_of(trial, "model") for trial in trials} == {"logistic", "mlp"}
    assert all(1e-4 <= rate <= 1 for rate in rates)
    assert {trial.overrides[0] for trial in trials} == {"rounds=3"}
    assert {trial.varying for trial in trials} == {trial.overrides[1:] for trial in trials}


def test_log_draw_is_even_over_the_orders_of_magnitude():
    rates = [float(value_of(trial, "lr")) for trial in drawn(["lr=tag(log, interval(1e-4,1))"], 400, seed=1)]
    shares = [sum(low <= rate < 10 * low for rate in rates) / 400 for low in (1e-4, 1e-3, 1e-2, 1e-1)]
    assert all(0.18 < share < 0.32 for share in shares)


def test_plain_draw_is_even_over_its_interval():
    rates = [float(value_of(trial, "lr")) for trial in drawn(["lr=interval(0,1)"], 400, seed=1)]
    assert 0.45 < sum(rates) / 400 < 0.55


def test_equal_seeds_draw_equal_trials_others_other_ones_and_a_longer_draw_goes_on():
    assert drawn(WORDS, 5, seed=3) == drawn(WORDS, 5, seed=3) == drawn(WORDS, 9, seed=3)[:5]
    assert drawn(WORDS, 5, seed=3) != drawn(WORDS, 5, seed=4)
    assert drawn(["a=interval(0,1)"], 2, seed=0) == [Trial(("a=0.342684",), ("a=0.342684",)),
                                                     Trial(("a=0.75579",), ("a=0.75579",))]


def test_every_seed_runs_every_drawn_configuration():
    trials = drawn(["local.lr=interval(0,1)", "seed=range(3)"], 4, seed=0)
    assert len(trials) == 12 and len({value_of(trial, "local.lr") for trial in trials}) == 4
    assert [value_of(trial, "seed") for trial in trials] == ["0", "1", "2"] * 4


def test_small_space_is_drawn_once_each():
    assert len(drawn(["model=logistic,mlp", "local.batch_size=8,16"], 50, seed=0)) == 4


@pytest.mark.parametrize("words", [["a=interval(1,0)"], ["a=tag(log, interval(0,1))"],
                                   ["seed=interval(0,1)", "a=1,2"], ["rounds=3"],
                                   ["seed=0,1"], ["nonsense"], ["a=1,2", "a=3,4"]])
def test_draw_that_cannot_be_is_refused_with_its_fix(words):
    with pytest.raises(ConfigError, match="Fix: "):
        drawn(words, 3, seed=0)
