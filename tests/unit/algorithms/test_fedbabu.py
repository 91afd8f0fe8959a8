"""FedBABU and fine-tuning beside loops that are written from the papers, in numpy."""

import numpy as np
import pytest
import torch

import fedray as fr
from tests.unit.algorithms.cases import (
    COHORTS,
    CYCLIC,
    LR,
    SAME_STEPS,
    SIZES,
    STEPS,
    gradient,
    kept,
    leaving,
    personal_models,
    single,
    squares,
    tables,
    trained,
    uneven,
    vector,
)

START = np.array([0.3, -0.2, 0.1, 0.8])
INIT = {"w": torch.tensor(START[:3]), "b": torch.tensor(START[3], dtype=torch.float64)}
BODY = np.array([1.0, 1.0, 1.0, 0.0])
ALL = np.ones(4)


def descend(site, at, steps, mask):
    for _ in range(steps):
        at = at - LR * mask * gradient(site, at)
    return at


def averaged_by_hand(mask, weighted=True, cohorts=COHORTS, steps=STEPS, start=START):
    """Oh et al., Algorithm 1 (lines quoted); with every parameter in the mask it is FedAvg."""
    theta = start.copy()  # "initialize theta_G^0 = {theta_ext, theta_cls}"
    for cohort in cohorts:  # "for each round k = 1, ..., K do": "C^k <- random subset of clients"
        # "for each client in parallel": "ClientBodyUpdate": "theta_ext <- theta_ext - eta grad"
        found = {i: descend(i, theta, steps[i], mask) for i in cohort}
        rows = {i: SIZES[i] if weighted else 1 for i in cohort}
        theta = sum(rows[i] * found[i] for i in cohort) / sum(rows.values())  # "sum n_i/n theta_i"
    return theta


@pytest.mark.parametrize("weighted", [True, False])
def test_fedbabu_equals_the_papers_loop_and_its_head_stays(weighted):
    algorithm = fr.algorithms.fedbabu(uneven(), ["b"], weighted=weighted)
    result, found = trained(algorithm, init=INIT, look=personal_models(algorithm))
    theta = averaged_by_hand(BODY, weighted)
    assert np.abs(vector(result.params) - theta).max() < 1e-12
    assert float(result.params["b"]) == START[3]
    for i in tables():  # "fine-tuning": the whole model, on the site's own rows
        assert np.abs(found[i] - descend(i, theta, STEPS[i], ALL)).max() < 1e-12


def test_single_precision_comes_to_the_same_after_a_round():
    local, data, init = single()
    result, _ = trained(fr.algorithms.fedbabu(local, ["bias"]), data, 1, init=init)
    theta = averaged_by_hand(BODY, cohorts=COHORTS[:1], steps=SAME_STEPS, start=np.zeros(4))
    assert np.abs(vector(result.params) - theta).max() < 1e-4


def test_training_the_head_would_be_seen():
    assert np.abs(averaged_by_hand(ALL)[:3] - averaged_by_hand(BODY)[:3]).max() > 1e-2


@pytest.mark.parametrize(("trained_words", "mask"), [(None, ALL), (["b"], 1 - BODY)])
def test_fine_tuning_starts_from_the_global_model_and_moves_what_it_may(trained_words, mask):
    tune = fr.learn.sgd(squares, lr=LR, steps=6)
    algorithm = fr.algorithms.fine_tuning(uneven(), tune, trained_words)
    result, found = trained(algorithm, init=INIT, look=personal_models(algorithm))
    theta = averaged_by_hand(ALL)
    assert np.abs(vector(result.params) - theta).max() < 1e-12
    assert max(np.abs(found[i] - descend(i, theta, 6, mask)).max() for i in tables()) < 1e-12


def test_fine_tuning_of_a_part_that_is_none_is_refused_before_a_site_is_asked():
    with pytest.raises(ValueError, match="names no parameter"):
        trained(fr.algorithms.fine_tuning(uneven(), trained=["c"]))


def test_fine_tuning_changes_nothing_of_the_training():
    plain, _ = trained(fr.algorithms.fedavg(uneven()))
    algorithm = fr.algorithms.fine_tuning(uneven())
    result, _ = trained(algorithm, look=personal_models(algorithm))
    assert result.params_sha256 == plain.params_sha256


@pytest.mark.parametrize("make", [fr.algorithms.fine_tuning, lambda u: fr.algorithms.fedbabu(u, ["b"])])
def test_sites_keep_nothing_and_nothing_kept_leaves(make):
    algorithm = make(uneven())
    assert leaving(algorithm) == {"delta": {"data", "rng"}, "metrics": {"data", "rng"}}
    _, found = trained(algorithm, rounds=1, schedule=CYCLIC, look=kept)
    assert all(state is None for state in found.values())


def test_evaluation_measures_the_fine_tuned_models():
    model = fr.learn.linear(3)
    data = {}
    for site, table in single()[1].items():
        rows = len(table["y"])
        twice = {name: torch.cat([table[name], table[name]]) for name in ("x", "y")}
        splits = {"train": torch.arange(rows), "valid": torch.arange(rows, 2 * rows)}
        data[site] = fr.data.SiteData(twice, splits)
    algorithm = fr.algorithms.fine_tuning(fr.learn.sgd(model, lr=LR / 2, steps=2))
    watch = {
        split: fr.algorithms.evaluation(model, split="valid", personal=personal)
        for split, personal in (("valid", False), ("test", algorithm.personal))
    }
    with fr.simulate(data, packs=2) as federation:
        result = fr.fit(algorithm, federation, init=model.init(0), rounds=3, evaluate=watch, every=3)
    shared, own = (record.metrics["loss"] for record in result.evaluations)
    theta = averaged_by_hand(ALL, cohorts=["abcde"] * 3, steps=SAME_STEPS, start=np.zeros(4))

    def loss(models):
        errors = [tables()[i][0] @ models[i] - tables()[i][1] for i in tables()]
        return np.mean(np.concatenate(errors) ** 2)

    assert shared == pytest.approx(loss(dict.fromkeys(tables(), theta)), rel=1e-4)
    assert own == pytest.approx(loss({i: descend(i, theta, 2, ALL) for i in tables()}), rel=1e-4)
