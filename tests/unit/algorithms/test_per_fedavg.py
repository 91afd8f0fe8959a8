"""Per-FedAvg beside a loop written from the paper, in numpy, and where it settles on two quadratics."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.learn.objectives import AfterOneStep
from tests.unit.algorithms.cases import (
    COHORTS,
    LR,
    NUM_FEATURES,
    SAME_STEPS,
    SIZES,
    STEPS,
    gradient,
    kept,
    leaving,
    personal_models,
    quadratic,
    settled,
    single,
    tables,
    trained,
    uneven,
    vector,
)

ALPHA = 0.15


def per_fedavg_by_hand(
    variant="hf", weighted=False, cohorts=COHORTS, steps=STEPS, from_inner=False
):
    """Fallah et al., Algorithm 1 (lines quoted), on all rows. Returns w and every site's own model."""
    w = np.zeros(NUM_FEATURES + 1)
    for cohort in cohorts:  # "for k from 0 to K - 1 do": "Server chooses a subset A_k"; sends w_k
        found = {}
        for i in cohort:  # "for all users i in A_k": "Set w_{k+1,0}^i = w_k"
            x = tables()[i][0]
            curve, own = np.eye(NUM_FEATURES + 1) - ALPHA * x.T @ x / len(x), w.copy()
            for _ in range(steps[i]):  # "for t from 1 to tau do"
                inner = own - ALPHA * gradient(i, own)  # "Set w~ = w_{t-1} - alpha g(w_{t-1}, D)"
                slope = gradient(i, inner)  # "w_t = w_{t-1} - beta (I - alpha H(w_{t-1}, D'')) g(w~, D')"
                own = (inner if from_inner else own) - LR * (curve @ slope if variant == "hf" else slope)
            found[i] = own
        rows = {i: SIZES[i] if weighted else 1 for i in cohort}
        w = sum(rows[i] * found[i] for i in cohort) / sum(rows.values())  # "w_{k+1} = 1/rn sum w_{k+1,tau}"
    return w, {i: w - ALPHA * gradient(i, w) for i in tables()}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("variant", ["hf", "fo"])
def test_per_fedavg_equals_the_papers_loop(variant, weighted):
    algorithm = fr.algorithms.per_fedavg(uneven(), ALPHA, variant, weighted=weighted)
    result, found = trained(algorithm, look=personal_models(algorithm))
    w, models = per_fedavg_by_hand(variant, weighted)
    assert np.abs(vector(result.params) - w).max() < 1e-12
    assert max(np.abs(found[i] - models[i]).max() for i in models) < 1e-12


@pytest.mark.parametrize("variant", ["hf", "fo"])
def test_single_precision_comes_to_the_same_after_a_round(variant):
    local, data, init = single(form="auto")
    # its loss is not halved: the inner rate is
    result, _ = trained(fr.algorithms.per_fedavg(local, ALPHA / 2, variant), data, 1, init=init)
    w, _ = per_fedavg_by_hand(variant, cohorts=COHORTS[:1], steps=SAME_STEPS)
    assert np.abs(vector(result.params) - w).max() < 1e-4


@pytest.mark.parametrize("variant", ["hf", "fo"])
def test_keeping_the_inner_step_would_be_seen(variant):
    wrong = per_fedavg_by_hand(variant, from_inner=True)[0]
    assert np.abs(per_fedavg_by_hand(variant)[0] - wrong).max() > 1e-2


def test_the_two_variants_differ():
    assert np.abs(per_fedavg_by_hand("hf")[0] - per_fedavg_by_hand("fo")[0]).max() > 1e-2


# one step: both vanish where sum_i s_i (b_i - w) = 0, s_i = a (1 - alpha a)^2 (hf) or a (1 - alpha a) (fo)
@pytest.mark.parametrize(("variant", "power"), [("hf", 2), ("fo", 1)])
def test_per_fedavg_settles_where_the_algebra_says(variant, power):
    shares = [a * (1 - 0.2 * a) ** power for a in (1.0, 4.0)]
    local = fr.learn.sgd(quadratic, lr=0.5, steps=1)
    found = settled(fr.algorithms.per_fedavg(local, 0.2, variant), 150)
    assert found == pytest.approx((shares[0] - shares[1]) / sum(shares), abs=1e-9)


@pytest.mark.parametrize("is_second_order", [True, False])
def test_the_three_batches_of_a_step_are_thirds(is_second_order):
    """On f = mean (x . w)^2 / 2 the gradient is (I - alpha H'') H' (I - alpha H) w; `fo` lacks H''."""
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(9, 4, generator=draws, dtype=torch.float64)
    w = torch.randn(4, generator=draws, dtype=torch.float64).requires_grad_()
    target = AfterOneStep(0.1, is_second_order, is_split=True)
    loss = lambda params, batch: (batch["x"] @ params["w"]).square().mean() / 2  # noqa: E731
    (found,) = torch.autograd.grad(target(loss, {"w": w}, {"x": x}), [w])
    first, second, third = (part.T @ part / 3 for part in x.split(3))
    eye = torch.eye(4, dtype=torch.float64)
    expected = second @ (eye - 0.1 * first) @ w.detach()
    expected = (eye - 0.1 * third) @ expected if is_second_order else expected
    assert torch.allclose(found, expected, atol=1e-13)


def test_batches_of_a_model_train_and_the_loss_is_that_after_a_step():
    model = fr.learn.mlp(NUM_FEATURES, (8,))
    found = single()[1].items()
    data = {site: fr.data.SiteData({"x": t["x"], "y": (t["y"] > 0).float()}) for site, t in found}
    local = fr.learn.sgd(model, lr=0.2, batch_size=6, epochs=2)
    result, _ = trained(
        fr.algorithms.per_fedavg(local, 0.1), data, 15, fr.synchronous(), model.init(0)
    )
    losses = [record.metrics["loss"] for record in result.metrics]
    assert losses[-1] < 0.8 * losses[0]


def test_sites_keep_nothing_and_nothing_kept_leaves():
    algorithm = fr.algorithms.per_fedavg(uneven(), ALPHA)
    assert leaving(algorithm) == {"delta": {"data", "rng"}, "metrics": {"data", "rng"}}
    assert all(state is None for state in trained(algorithm, rounds=1, look=kept)[1].values())


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="choose 'hf' or 'fo'"):
        fr.algorithms.per_fedavg(uneven(), ALPHA, "exact")
