"""Tuned sweeps before anything runs: what is refused, what is checked, points there and back."""

import importlib.util

import pytest

from fedray import cli
from fedray.errors import ConfigError
from fedray.sweep import tune_space
from fedray.sweep.space import read
from fedray.sweep.tune_space import Space, corners

WORDS = ("rounds=9", "local.lr=tag(log, interval(0.001,1))", "model=logistic,mlp",
         "local.steps=int(interval(1,8))")


@pytest.fixture
def extra(monkeypatch):
    monkeypatch.setattr(tune_space, "NEEDED", ())


def test_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    without = lambda name, *_: None if name == "optuna" else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "--tune", "3", "local.lr=interval(0.1,1)"]) == 2
    told = capsys.readouterr().err
    assert "--tune needs optuna" in told and "fix: pip install 'fedray[tune]'" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "told"), [
    (["seed=0,1", "local.lr=interval(0,1)"], "one seed"), (["rounds=3"], "needs a setting"),
    (["local.lr=interval(-1,1)"], "local.lr=-1"),
    (["evaluate.valid=false", "local.lr=interval(0.1,1)"], "validation"),
    (["experiment=none", "evaluate=none", "local.lr=interval(0.1,1)"], "validation")])
def test_tuning_that_cannot_be_is_refused_at_once(words, told, extra, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "--tune", "3", *words]) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_corners_try_each_bound_and_each_value(extra):
    tried = {word for trial in corners(WORDS) for word in trial.overrides}
    assert tried == {"rounds=9", "local.lr=0.001", "local.lr=1", "model=logistic", "model=mlp",
                     "local.steps=1", "local.steps=8"}


def test_point_becomes_a_trial_and_the_trial_that_point():
    space = Space(read(WORDS))
    point = {"axis1": 0.0123456, "axis2": "mlp", "axis3": 5}
    trial = space.trial(point)
    assert trial.overrides == ("rounds=9", "local.lr=0.0123456", "model=mlp", "local.steps=5")
    assert trial.varying == trial.overrides[1:] and space.point(trial) == point


def test_axes_become_distributions_of_optuna():
    optuna = pytest.importorskip("optuna", reason="the extra `tune` is not installed")
    rate, model, steps = Space(read(WORDS)).distributions().values()
    assert rate == optuna.distributions.FloatDistribution(0.001, 1.0, log=True)
    assert model == optuna.distributions.CategoricalDistribution(("logistic", "mlp"))
    assert steps == optuna.distributions.IntDistribution(1, 8)


def test_unreadable_words_are_refused(extra):
    with pytest.raises(ConfigError, match="nonsense"):
        corners(["nonsense"])
