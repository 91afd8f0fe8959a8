"""Which trials of a sweep could run as one program: a pure function of their settings."""

import copy
from functools import cache, reduce

import pytest
import yaml

from fedray import config
from fedray.sweep.space import grid
from fedray.sweep.stacking import Batch, batches

BASE = ("runtime=in_process", "report=none", "rounds=2")


@cache
def base(choices=()):
    return config.to_plain(config.compose(*BASE, *choices))


def composed(*words):
    """Return the settings of the trials of a grid, each composed by Hydra: a fifth of a second."""
    return [config.to_plain(config.compose(*trial.overrides)) for trial in grid([*BASE, *words])]


def settings(*words, choices=()):
    """Return the settings of the trials of a grid of plain values, put into one composition."""
    return [with_values(base(choices), trial.overrides) for trial in grid(words)]


def with_values(tree, overrides):
    tree = copy.deepcopy(tree)
    for override in overrides:
        path, value = override.split("=", 1)
        *parents, key = path.split(".")
        inner = reduce(dict.__getitem__, parents, tree)
        assert key in inner
        inner[key] = yaml.safe_load(value)
    return tree


def test_plain_values_come_to_what_hydra_makes_of_them():
    words = ("local.lr=0.1,0.3", "schedule.cohort=1", "local.clip_norm=null")
    assert settings(*words) == composed(*words)


def test_learning_rates_and_seeds_of_one_grid_are_one_batch_with_both_axes():
    assert batches(settings("local.lr=0.1,0.3", "seed=range(2)")) == [
        Batch((0, 1, 2, 3), {"local.lr": (0.1, 0.1, 0.3, 0.3), "seed": (0, 1, 0, 1)})]


def test_prox_mu_and_server_rate_are_stacked():
    found = batches(settings("algorithm.mu=0.0,0.1", "algorithm.optimizer.lr=1.0,0.5",
                             choices=("algorithm=fedprox",)))
    assert [set(batch.varying) for batch in found] == [{"algorithm.mu", "algorithm.optimizer.lr"}]
    (batch,) = batches(settings("local.prox=0.0,0.1"))
    assert batch.varying == {"local.prox": (0.0, 0.1)}


def test_rate_written_whole_is_the_number_that_it_is():
    (batch,) = batches(composed("local.lr=1,0.5"))
    assert batch.varying == {"local.lr": (1, 0.5)}


@pytest.mark.parametrize("word", [
    "rounds=2,3", "local.batch_size=16,32", "local.epochs=1,2", "algorithm.weighted=true,false",
    "data.num_sites=208,209", "data.seed=1,2", "local.clip_norm=null,1.0", "model.bias=null,-1.0",
    "schedule.cohort=1.0,0.5", "evaluate.every=1,2"])
def test_what_makes_another_program_is_a_batch_of_its_own(word):
    assert [batch.trials for batch in batches(settings(word))] == [(0,), (1,)]


@pytest.mark.parametrize("word", ["model=mlp", "local=adamw", "algorithm=fedprox"])
def test_other_part_is_a_batch_of_its_own(word):
    assert [batch.trials for batch in batches([base(), base((word,))])] == [(0,), (1,)]


def test_other_settings_split_a_grid_and_the_numbers_stay_together_within():
    found = batches(composed("local.lr=0.1,0.3", "model=logistic,mlp"))
    assert found == [Batch((0, 2), {"local.lr": (0.1, 0.3)}), Batch((1, 3), {"local.lr": (0.1, 0.3)})]


def test_number_against_null_is_another_program():
    found = batches(settings("algorithm.optimizer.v0=null,0.0,0.1", choices=("algorithm=fedadagrad",)))
    assert found == [Batch((0,), {}), Batch((1, 2), {"algorithm.optimizer.v0": (0.0, 0.1)})]


def test_schedule_of_rates_is_stacked_with_none_other():
    schedule = "local.lr={_target_:fedray.learn.cosine,lr:%s,rounds:2}"
    plain = [*composed("local.lr=0.1"), *composed(schedule % 0.1), *composed(schedule % 0.3)]
    assert [len(batch) for batch in batches(plain)] == [1, 1, 1]
    server = "algorithm.optimizer.lr={_target_:fedray.learn.cosine,lr:%s,rounds:2}"
    assert len(batches([*composed(server % 0.1), *composed(server % 0.3)])) == 2


@pytest.mark.parametrize("cohort", ["0.5", "16", "1"])
def test_seeds_that_ask_other_sites_are_apart_but_their_rates_are_not(cohort):
    found = batches(settings(f"schedule.cohort={cohort}", "seed=0,1", "local.lr=0.1,0.3"))
    assert [batch.varying for batch in found] == [{"local.lr": (0.1, 0.3)}] * 2


def test_seeds_under_cyclic_sampling_ask_the_same_sites():
    assert len(batches(settings("schedule.sampling=cyclic", "schedule.cohort=0.5", "seed=0,1"))) == 1


def test_seeds_under_poisson_sampling_are_apart():
    assert len(batches(settings("schedule.sampling=poisson", "seed=0,1"))) == 2


def test_seed_that_also_splits_the_data_is_apart():
    assert [batch.trials for batch in batches(composed("data=eicu_mortality", "seed=0,1"))] == [(0,), (1,)]


def test_equal_trials_are_one_batch_without_an_axis():
    assert batches(settings("seed=0") * 2) == [Batch((0, 1), {})]


def test_count_of_own_code_is_not_stacked_but_its_number_is():
    one = {"algorithm": {"_target_": "own.rule", "steps": 3, "rate": 0.1}, "schedule": {"cohort": 1.0}}
    other = copy.deepcopy(one)
    other["algorithm"]["rate"] = 0.2
    third = copy.deepcopy(one)
    third["algorithm"]["steps"] = 4
    assert [batch.trials for batch in batches([one, other, third])] == [(0, 1), (2,)]


def test_true_is_no_number():
    assert len(batches([{"algorithm": {"x": True}}, {"algorithm": {"x": 1.0}}])) == 2


def test_largest_bounds_a_batch_and_keeps_every_trial_once():
    found = batches(settings("seed=range(5)"), largest=2)
    assert [batch.trials for batch in found] == [(0, 1), (2, 3), (4,)]
    assert found[0].varying == {"seed": (0, 1)} and found[2].varying == {}
    with pytest.raises(ValueError, match="at least one"):
        batches([], largest=0)


def test_what_can_be_stacked_is_for_the_caller_to_widen():
    plain = settings("local.momentum=0.0,0.9")
    assert len(batches(plain)) == 2
    assert len(batches(plain, stackable=("seed", "local.*"))) == 1


def test_no_trials_are_no_batches():
    assert batches([]) == []
