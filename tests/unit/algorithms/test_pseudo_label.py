"""Pseudo-labels beside a loop that is written from the paper, in numpy."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.data.site import SiteData
from fedray.learn.supervision import PseudoLabels
from tests.unit.algorithms.cases import COHORTS, CYCLIC, LR, NUM_FEATURES, STEPS, Uneven, trained, vector
from tests.unit.algorithms.label_cases import INIT, START, logits, loss, mean, sigmoid, sites, slope, tables

WEIGHT, RAMP = 2.0, (1, 4)
A = fr.algorithms


def local():
    return Uneven(fr.learn.sgd(loss, lr=LR), STEPS)


def alpha(t, weight=WEIGHT, ramp=RAMP):
    """Lee, equation 16."""
    first, last = ramp
    return 0.0 if t < first else weight * min(1.0, (t - first) / (last - first))


def by_hand(threshold, weighted=True, weight=WEIGHT, is_confident_mean=False):
    """Federated averaging of Lee's loss. Returns w."""
    w = START.copy()
    for t, cohort in enumerate(COHORTS):
        found = {}
        for i in cohort:
            x, y = tables()[i]
            own, known = w.copy(), y >= 0
            for _ in range(STEPS[i]):
                p = sigmoid(x @ own)
                label, surety = (p > 0.5).astype(float), np.maximum(p, 1 - p)  # equation 14: argmax f
                used = ~known & (surety >= threshold)
                over = used.sum() if is_confident_mean else (~known).sum()
                share = used.sum() / over if over else 0.0
                # equation 15: the mean over n labelled rows, alpha(t) times that over n' others
                g = slope(own, x[known], y[known])
                g = g + alpha(t, weight) * share * slope(own, x[used], label[used])
                own = own - LR * g
            found[i] = own
        w = mean(found, cohort, weighted)
    return w


@pytest.mark.parametrize(("threshold", "weighted"), [(0.0, True), (0.7, True), (0.7, False)])
def test_pseudo_label_equals_the_papers_loop(threshold, weighted):
    algorithm = A.pseudo_label(local(), WEIGHT, RAMP, threshold, logits=logits, weighted=weighted)
    result, _ = trained(algorithm, sites(), init=INIT)
    assert np.abs(vector(result.params) - by_hand(threshold, weighted)).max() < 1e-12


def test_without_weight_rows_without_a_label_change_nothing_and_with_it_they_do():
    """A regulariser must change the gradient."""
    result, _ = trained(A.pseudo_label(local(), 0.0, RAMP, logits=logits), sites(), init=INIT)
    assert np.abs(vector(result.params) - by_hand(0.0, weight=0.0)).max() < 1e-12
    assert np.abs(by_hand(0.0, weight=0.0) - by_hand(0.0)).max() > 1e-3


def test_unsure_rows_count_in_the_mean_over_the_others():
    """The mean over sure rows alone would give few of them the weight of all."""
    assert np.abs(by_hand(0.7) - by_hand(0.7, is_confident_mean=True)).max() > 1e-3


def test_all_rows_labelled_is_federated_averaging_to_the_bit():
    data = {i: site.with_columns(y=(site["y"] > 0).double()) for i, site in sites().items()}
    plain, _ = trained(A.fedavg(local()), data, init=INIT)
    for labels in ("step", "round"):
        same, _ = trained(A.pseudo_label(local(), labels=labels, logits=logits), data, init=INIT)
        assert same.params_sha256 == plain.params_sha256


def once_by_hand(threshold, start=1):
    """The variant: the model received labels rows once a round, from round `start` on."""
    w = START.copy()
    for t, cohort in enumerate(COHORTS):
        found, rows = {}, {}
        for i in cohort:
            x, y = tables()[i]
            p = sigmoid(x @ w)
            sure = (np.maximum(p, 1 - p) >= threshold) & (t >= start)
            y = np.where((y < 0) & sure, p > 0.5, y)
            x, y, own = x[y >= 0], y[y >= 0], w.copy()
            for _ in range(STEPS[i]):
                own = own - LR * slope(own, x, y)
            found[i], rows[i] = own, len(y)
        w = sum(rows[i] * found[i] for i in cohort) / sum(rows.values())
    return w


def test_labels_of_the_round_equal_the_plain_loop():
    algorithm = A.pseudo_label(local(), None, (1, 1), 0.7, "round", logits)
    result, _ = trained(algorithm, sites(), init=INIT)
    assert np.abs(vector(result.params) - once_by_hand(0.7)).max() < 1e-12


def test_labels_of_the_round_are_trained_as_one_program_within_1e_4_in_float32():
    model = fr.learn.logistic(NUM_FEATURES)
    data = {i: SiteData({n: t[n].float() for n in ("x", "y")}) for i, t in sites().items()}
    init = fr.tree.flatten({"weight": INIT["w"].float()[None], "bias": INIT["b"].float()[None]})
    stacked = fr.learn.budgeted(fr.learn.sgd(model, lr=LR, steps=9), STEPS)
    assert stacked.rows is not None
    algorithm = A.pseudo_label(stacked, None, (0, 0), 0.6, "round", model.output)
    found, _ = trained(algorithm, data, 1, CYCLIC, init)
    plain = A.pseudo_label(local(), None, (0, 0), 0.6, "round", logits)
    double, _ = trained(plain, sites(), 1, init=INIT)
    flat = torch.cat([found.params["weight"][0], found.params["bias"]]).double().numpy()
    assert np.abs(flat - vector(double.params)).max() < 1e-4


@pytest.mark.parametrize("labels", ["step", "round"])
def test_bits_do_not_depend_on_packs(labels):
    model = fr.learn.mlp(NUM_FEATURES, hidden=(4,))
    data = {i: SiteData({n: t[n].float() for n in ("x", "y")}) for i, t in sites().items()}
    algorithm = A.pseudo_label(fr.learn.sgd(model, lr=LR, batch_size=4), ramp=(0, 0), labels=labels)
    found = set()
    for packs in (1, 2, 5):
        with fr.simulate(data, packs=packs) as federation:
            result = fr.fit(algorithm, federation, init=model.init(0), rounds=3, schedule=CYCLIC)
        assert not result.failures
        found.add(result.params_sha256)
    assert len(found) == 1


def test_classes_are_labelled_as_two_are():
    """One logit a row, or two: the same probabilities, so the same objective."""
    batch = {"x": torch.randn(6, 3, dtype=torch.float64), "y": torch.tensor([0, 1, -1, -1, 1, -1])}
    params = {"w": torch.randn(3, dtype=torch.float64, requires_grad=True)}

    def binary(params, batch):
        return batch["x"] @ params["w"]

    def classes(params, batch):
        z = batch["x"] @ params["w"]
        return torch.stack([torch.zeros_like(z), z], 1)

    def cross_entropy(params, batch):
        return torch.nn.functional.cross_entropy(classes(params, batch), batch["y"])

    found = [PseudoLabels(said, threshold=0.6)(cross_entropy, params, batch) for said in (binary, classes)]
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("settings", [{"labels": "epoch"}, {"threshold": 1.5}, {"ramp": (3, 2)},
                                      {"weight": -1.0}, {"labels": "round", "weight": 1.0}])  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match="pseudo_label"):
        A.pseudo_label(local(), logits=logits, **settings)


def test_predictions_that_are_not_known_are_asked_for():
    with pytest.raises(ValueError, match="logits="):
        A.pseudo_label(local())
