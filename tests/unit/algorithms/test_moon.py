"""MOON beside a loop that is written from the paper, in numpy, with its gradient by hand."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.learn import objectives
from tests.unit.algorithms.cases import (
    COHORTS,
    LR,
    NUM_FEATURES,
    SIZES,
    STEPS,
    Uneven,
    kept,
    leaving,
    tables,
    trained,
    uneven,
    vector,
)
from tests.unit.runtime.toy import Breaks

WIDTH, MU, TAU = 2, 2.0, 0.5
START = np.random.default_rng(5).normal(size=WIDTH * NUM_FEATURES + WIDTH)
INIT = {
    "encoder": torch.tensor(START[:-WIDTH]).view(WIDTH, NUM_FEATURES),
    "head": torch.tensor(START[-WIDTH:]),
}


def features(params, batch):
    return batch["x"] @ params["encoder"].T


def loss(params, batch):
    return (features(params, batch) @ params["head"] - batch["y"]).square().mean() / 2


def local_of(steps=STEPS):
    return Uneven(fr.learn.sgd(loss, lr=LR / 4), steps)


def split(model):
    return model[:-WIDTH].reshape(WIDTH, NUM_FEATURES), model[-WIDTH:]


def turn(z, other):
    """Return the cosine of each row with the other's, and its derivative with respect to z."""
    lengths = np.linalg.norm(z, axis=1, keepdims=True), np.linalg.norm(other, axis=1, keepdims=True)
    cosine = (z * other).sum(1, keepdims=True) / (lengths[0] * lengths[1])
    return cosine, other / (lengths[0] * lengths[1]) - cosine * z / lengths[0] ** 2


def slope_of(model, received, previous, x, y, mu):
    """Return the gradient of l_sup + mu l_con; l_con = -log(e^{s_g/tau} / (e^{s_g/tau} + e^{s_p/tau}))."""
    encoder, head = split(model)
    z = x @ encoder.T
    error = (z @ head - y) / len(y)
    (near, to_near), (far, to_far) = (turn(z, x @ split(other)[0].T) for other in (received, previous))
    share = 1 / (1 + np.exp((near - far) / TAU))  # d l_con / d (s_p - s_g), times tau
    along = np.outer(error, head) + mu * share * (to_far - to_near) / TAU / len(y)
    return np.append((along.T @ x).ravel(), z.T @ error)


def moon_by_hand(mu=MU, cohorts=COHORTS, weighted=True, previous_is="last round"):
    """Li, He and Song, Algorithm 1 (lines quoted). Returns w and every site's last model."""
    w = START.copy()
    last = {i: START.copy() for i in tables()}
    for cohort in cohorts:  # "for t = 0, 1, ..., T-1 do"
        found = {}
        for i in cohort:  # "send the global model w^t to P_i"
            x, y = tables()[i][0][:, :-1], tables()[i][1]
            own, before = w.copy(), last[i] if previous_is == "last round" else w  # "w_i^t <- w^t"
            for _ in range(STEPS[i]):  # "for each batch b": z, z_glob, z_prev; "l <- l_sup + mu l_con"
                own = own - LR / 4 * slope_of(own, w, before, x, y, mu)  # "w_i^t <- w_i^t - eta grad l"
            found[i] = last[i] = own  # "return w_i^t to server"
        rows = {i: SIZES[i] if weighted else 1 for i in cohort}
        w = sum(rows[i] * found[i] for i in cohort) / sum(rows.values())  # "sum |D^i|/|D| w_k^t"
    return w, last


@pytest.mark.parametrize(("mu", "weighted"), [(MU, True), (MU, False), (0.3, True)])
def test_moon_equals_the_papers_loop(mu, weighted):
    algorithm = fr.algorithms.moon(local_of(), mu, TAU, features, weighted=weighted)
    result, found = trained(algorithm, init=INIT, look=kept)
    w, last = moon_by_hand(mu, weighted=weighted)
    assert np.abs(vector(result.params) - w).max() < 1e-12
    assert max(np.abs(found[i] - last[i]).max() for i in last) < 1e-12


def test_without_the_term_it_is_fedavg_to_the_bit_and_with_it_it_is_not():
    plain, _ = trained(fr.algorithms.fedavg(local_of()), init=INIT)
    without, _ = trained(fr.algorithms.moon(local_of(), 0.0, TAU, features), init=INIT)
    assert without.params_sha256 == plain.params_sha256
    assert [record.metrics for record in without.metrics] == [record.metrics for record in plain.metrics]
    assert np.abs(moon_by_hand(MU)[0] - moon_by_hand(0.0)[0]).max() > 1e-2


def test_the_previous_model_is_that_of_the_last_round():
    wrong = moon_by_hand(previous_is="received")[0]
    assert np.abs(moon_by_hand()[0] - wrong).max() > 1e-3


def test_a_site_that_was_not_counted_keeps_its_previous_model():
    class Broken(Breaks):
        def with_objective(self, objective):
            return Broken(self.inner.with_objective(objective), self.at, self.in_round, self.how)

    broken = Broken(local_of(), ("b",), 2, "raise")
    schedule = fr.synchronous(cohort=3, sampling="cyclic", quorum=0.5)
    algorithm = fr.algorithms.moon(broken, MU, TAU, features)
    _, found = trained(algorithm, rounds=3, schedule=schedule, init=INIT, look=kept)
    _, last = moon_by_hand(cohorts=["abc", "ade", "cd"])
    assert max(np.abs(found[i] - last[i]).max() for i in last if found[i] is not None) < 1e-12


def test_what_a_site_keeps_meets_a_reduction_through_training_alone():
    algorithm = fr.algorithms.moon(local_of(), MU, TAU, features)
    assert leaving(algorithm, stop=True) == {"delta": {"trained"}, "metrics": {"trained"}}
    assert "state" in leaving(algorithm)["delta"]


@pytest.mark.parametrize(
    ("model", "width"),
    [(fr.learn.mlp(4, hidden=(6, 5)), 5), (fr.learn.cnn((1, 8, 8), channels=(3,), norm="batch"), 48)],
    ids=["mlp", "cnn"],
)
def test_features_of_a_model_are_what_its_last_layer_reads(model, width):
    shape = (7, 4) if width == 5 else (7, 1, 8, 8)
    batch = {"x": torch.randn(shape, generator=torch.Generator().manual_seed(1)), "y": torch.zeros(7)}
    params = model.init(2)
    found = objectives.Features(model)(params, batch)
    head = [name for name in params if name.startswith(f"{len(model.module) - 1}.")]
    weight, bias = (params[name] for name in sorted(head, reverse=True))
    assert found.shape == (7, width)
    assert torch.allclose((found @ weight.T + bias).squeeze(1), model.predict(params, batch), atol=1e-6)


def test_a_model_of_layers_trains_with_features_of_its_own():
    model = fr.learn.cnn((1, 8, 8), channels=(3,), norm="batch", num_classes=3)
    draws = torch.Generator().manual_seed(1)
    data = {
        f"h{i}": fr.data.SiteData(
            {
                "x": torch.randn(12, 1, 8, 8, generator=draws),
                "y": torch.randint(0, 3, (12,), generator=draws),
            }
        )
        for i in range(3)
    }
    local = fr.learn.sgd(model, lr=0.1, batch_size=5)
    result, _ = trained(fr.algorithms.moon(local), data, 2, fr.synchronous(), model.init(0))
    plain, _ = trained(fr.algorithms.fedavg(local), data, 2, fr.synchronous(), model.init(0))
    assert list(result.params) == list(plain.params) and not result.failures
    assert result.params_sha256 != plain.params_sha256


@pytest.mark.parametrize(("mu", "temperature"), [(-1.0, 0.5), (1.0, 0.0)])
def test_settings_that_cannot_be_are_refused(mu, temperature):
    with pytest.raises(ValueError, match="mu=-1.0|temperature=0.0"):
        fr.algorithms.moon(local_of(), mu, temperature, features)


def test_features_that_are_not_known_are_asked_for():
    with pytest.raises(ValueError, match="is not known of this model"):
        fr.algorithms.moon(uneven())
