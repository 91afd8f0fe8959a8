"""The one-shot ensemble beside its definition in numpy: the mean of the sites' probabilities."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.algorithms.one_shot_ensemble import side_by_side
from fedray.data.site import SiteData
from fedray.learn.distilling import Ensemble
from tests.unit.algorithms.cases import LR, NUM_FEATURES
from tests.unit.algorithms.label_cases import sigmoid, slope, tables

STEPS = 20


def labels(site):
    return (tables()[site][1] > 0).astype(float)


def data():
    return {
        i: SiteData({"x": torch.from_numpy(x[:, :-1].copy()).float(), "y": torch.tensor(labels(i)).float()})
        for i, (x, _) in tables().items()
    }


def measured(asked):
    """Return what the program says after `asked` rounds of local training of one site each."""
    model = fr.learn.logistic(NUM_FEATURES)
    local = fr.learn.sgd(model, lr=LR, steps=STEPS)
    program = fr.algorithms.one_shot_ensemble(model, split="train", bins=50)
    with fr.simulate(data(), packs=2) as federation:
        schedule = fr.synchronous(cohort=1, sampling="cyclic")
        alone = fr.fit(fr.algorithms.local_only(local), federation, init=model.init(0), rounds=asked,
                       schedule=schedule)  # fmt: skip
        return fr.compute(program, federation, state=alone.params)["pooled"]


@pytest.mark.parametrize("asked", [5, 3])
def test_every_site_has_one_vote(asked):
    """After 3 rounds d and e have not trained: they vote with the common start, one half."""
    models = {}
    for place, (i, (x, _)) in enumerate(tables().items()):
        w = np.zeros(NUM_FEATURES + 1)
        for _ in range(STEPS if place < asked else 0):
            w = w - LR * slope(w, x, labels(i))
        models[i] = w
    rows, y = np.concatenate([t[0] for t in tables().values()]), np.concatenate([labels(i) for i in tables()])
    p = np.mean([sigmoid(rows @ w) for w in models.values()], 0)
    found = measured(asked)
    assert found["loss"] == pytest.approx(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), rel=1e-5)
    assert found["brier"] == pytest.approx(np.mean((p - y) ** 2), rel=1e-5)


def test_the_mean_of_probabilities_is_not_that_of_logits():
    model = fr.learn.logistic(2, num_classes=3)
    flats = [fr.tree.flatten({"weight": torch.randn(3, 2), "bias": torch.zeros(3)}) for _ in range(2)]
    both = side_by_side(dict(zip("ab", flats, strict=True)))
    x = torch.randn(4, 2)
    said = Ensemble(model).predict(both, {"x": x})
    logits = [x @ flat["weight"].T for flat in flats]
    mean = (torch.softmax(logits[0], 1) + torch.softmax(logits[1], 1)) / 2
    assert torch.allclose(said.exp(), mean, atol=1e-6)
    assert not torch.allclose(said.softmax(1), ((logits[0] + logits[1]) / 2).softmax(1), atol=1e-3)


def test_a_model_without_classes_is_refused():
    with pytest.raises(ValueError, match="one_shot_ensemble"):
        fr.algorithms.one_shot_ensemble(fr.learn.linear(2))
