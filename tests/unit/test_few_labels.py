"""Few labels from the command line: which rows an algorithm is given, and settings that cannot be."""

import numpy as np
import pytest

from fedray import config, experiment
from fedray.config import compose_run
from fedray.config_build import build_experiment
from fedray.errors import ConfigError

TOY = ("experiment=debug", "report=none", "evaluate.bins=50", "rounds=1", "data.scale=0.1", "model=mlp")


def built(*words):
    return build_experiment(experiment.asked_for(compose_run([*TOY, *words])).tree)


def test_algorithms_that_know_rows_without_a_label_get_them_and_others_the_same_labels():
    semi = built("algorithm=pseudo_label", "data.labelled=0.4").data
    plain = built("algorithm=fedavg", "data.labelled=0.4").data
    assert len(semi) == 4
    for site in semi:
        y, alone = semi[site]().train["y"], plain[site]().train["y"]
        assert (y < 0).any() and y[y >= 0].tolist() == alone.tolist()


def test_without_the_setting_every_label_is_there():
    data = built("algorithm=pseudo_label").data
    assert all((data[site]()["y"] >= 0).all() for site in data)


def test_a_run_trains_on_rows_with_a_label_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    outcome = experiment.start(compose_run([*TOY, "data.labelled=0.4"]), live=False)
    assert outcome.run.status == ("done", "") and not outcome.result.failures


def test_public_rows_of_a_file_are_those_that_the_plan_holds(tmp_path):
    width = len(built("algorithm=feddf").data.features)
    np.save(tmp_path / "rows.npy", np.zeros((3, width)))
    words = f"algorithm.public={{_target_: fedray.data.public_rows, path: {tmp_path}/rows.npy}}"
    made = built("algorithm=feddf", "algorithm.where=sites", words).training.algorithm
    rows = [cell.cell_contents for cell in made.round.__closure__ if hasattr(cell.cell_contents, "public")]
    assert {tuple(each.public["x"].shape) for each in rows} == {(3, width)}


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("data.labelled=0", "data.labelled=0.05"),
        ("algorithm=feddf algorithm.where=hub", "algorithm.where=sites"),
        ("algorithm=pseudo_label algorithm.labels=epoch", "algorithm.labels=step"),
        ("algorithm=pseudo_label algorithm.threshold=2", "algorithm.threshold=0.75"),
        ("algorithm=pretrain algorithm.share=1", "algorithm.share=0.3"),
    ],
)
def test_settings_that_cannot_be_are_named_with_their_fix(word, fix):
    with pytest.raises(ConfigError, match=f"Fix: {fix}"):
        config.check(compose_run([*TOY, *word.split()]).config)
