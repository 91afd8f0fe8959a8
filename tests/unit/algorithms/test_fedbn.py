"""FedBN beside a loop that is written from the paper, in numpy; counters of batches are nobody's average."""

import numpy as np
import pytest
import torch
from torch import nn

import fedray as fr
from tests.unit.algorithms.cases import (
    COHORTS,
    LR,
    NUM_FEATURES,
    SIZES,
    STEPS,
    Uneven,
    leaving,
    personal_models,
    sites,
    tables,
    trained,
    vector,
)

EPS, MOMENTUM = 1e-5, 0.1


def model_of(momentum=MOMENTUM):
    layers = nn.Sequential(nn.BatchNorm1d(NUM_FEATURES, momentum=momentum), nn.Linear(NUM_FEATURES, 1))
    return fr.learn.from_module(layers.double(), task="number")


def local_of(model):
    return Uneven(fr.learn.sgd(model, lr=LR / 2), STEPS)  # the loss of a model of numbers is not halved


def fedbn_by_hand(start, weighted=False, cohorts=COHORTS):
    """Li et al., Algorithm 1 (lines quoted). Returns the linear layer, and what each site keeps."""
    linear = np.append(start["1.weight"].numpy().ravel(), float(start["1.bias"]))
    norms = {k: [np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)] for k in tables()}
    for cohort in cohorts:
        found = {}
        for k in cohort:  # "for each user k and each layer l do": "w_{t+1,k} <- SGD(w_{t,k})"
            x, y = tables()[k][0][:, :-1], tables()[k][1]
            scaled = (x - x.mean(0)) / np.sqrt(x.var(0) + EPS)
            own, (scale, shift, mean, var) = linear.copy(), norms[k]
            for _ in range(STEPS[k]):
                out = scaled * scale + shift
                error = (out @ own[:3] + own[3] - y) / len(y)
                slopes = (scaled * np.outer(error, own[:3])).sum(0), error.sum() * own[:3]
                own = own - LR * np.append(out.T @ error, error.sum())
                scale, shift = scale - LR * slopes[0], shift - LR * slopes[1]
                mean = (1 - MOMENTUM) * mean + MOMENTUM * x.mean(0)
                var = (1 - MOMENTUM) * var + MOMENTUM * x.var(0, ddof=1)
            found[k], norms[k] = own, [scale, shift, mean, var]  # "if layer l is not BatchNorm then"
        rows = {k: SIZES[k] if weighted else 1 for k in cohort}
        linear = sum(rows[k] * found[k] for k in cohort) / sum(rows.values())  # "1/K sum_k w_{t+1,k}"
    return linear, norms


@pytest.mark.parametrize("weighted", [False, True])
def test_fedbn_equals_the_papers_loop(weighted):
    model = model_of()
    start = model.init(3)
    algorithm = fr.algorithms.fedbn(local_of(model), ["0"], weighted=weighted)
    result, found = trained(algorithm, init=start, look=personal_models(algorithm))
    linear, norms = fedbn_by_hand(start, weighted)
    assert np.abs(vector({n: result.params[n] for n in ("1.weight", "1.bias")}) - linear).max() < 1e-12
    for k, (scale, shift, *statistics) in norms.items():
        assert np.abs(found[k] - np.concatenate([scale, shift, linear, *statistics])).max() < 1e-12


def test_the_batch_norm_layers_of_a_model_are_found():
    local = fr.learn.sgd(fr.learn.cnn((1, 8, 8), channels=(4, 4), norm="batch"), lr=0.1)
    algorithm = fr.algorithms.fedbn(local)
    kept = algorithm.init_site(algorithm.init(local.model.init(0)))
    kinds = ("weight", "bias", "running_mean", "running_var")
    assert sorted(kept) == sorted(f"{layer}.{kind}" for layer in ("1", "5") for kind in kinds)
    norms = fr.learn.sgd(fr.learn.mlp(3, norm="batch"), lr=0.1)
    assert sorted(fr.algorithms.fedbn(norms).init(norms.model.init(0)).params)
    with pytest.raises(ValueError, match="no BatchNorm layer"):
        fr.algorithms.fedbn(fr.learn.sgd(fr.learn.mlp(3, norm="layer"), lr=0.1))


def test_counters_of_batches_are_kept_out_of_every_average():
    """A layer without momentum divides by its counter: one that was averaged would show in its statistics."""
    model = model_of(momentum=None)
    algorithm = fr.algorithms.fedbn(local_of(model), ["0"])
    result, found = trained(algorithm, init=model.init(3), look=personal_models(algorithm))
    assert not any("num_batches" in name for name in result.params)
    assert int(model.module[0].num_batches_tracked) == 0
    for k, table in sites().items():
        assert torch.allclose(torch.from_numpy(found[k][10:13]), table["x"].mean(0), atol=1e-12)
        assert torch.allclose(torch.from_numpy(found[k][13:]), table["x"].var(0), atol=1e-12)


def test_statistics_of_a_site_leave_through_nothing():
    model = model_of()
    local = local_of(model)
    algorithm = fr.algorithms.fedbn(local, ["0"])
    assert leaving(algorithm, stop=True) == {"delta": {"trained"}, "metrics": {"trained"}}
    result, _ = trained(algorithm, init=model.init(3))
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(result.params[f"0.{name}"], model.init(3)[f"0.{name}"])
