"""Pre-training on masked rows and fine-tuning on few labels, beside a loop that is written from the paper."""

import hashlib

import numpy as np
import pytest
import torch

import fedray as fr
from tests.unit.algorithms.cases import COHORTS, LR, NUM_FEATURES, SIZES, STEPS, Uneven, leaving, trained
from tests.unit.algorithms.label_cases import sigmoid, sites, slope, tables

WIDTH, SHARE, ALPHA, ROUNDS = 2, 0.4, 1.5, 3
DRAWS = np.random.default_rng(6)
ENCODER, HEAD = DRAWS.normal(size=(WIDTH, NUM_FEATURES)), DRAWS.normal(size=WIDTH)
WIDE = (NUM_FEATURES, WIDTH)
FIRST = {
    "mask.weight": DRAWS.normal(size=WIDE),
    "mask.bias": DRAWS.normal(size=NUM_FEATURES),
    "feature.weight": DRAWS.normal(size=WIDE),
    "feature.bias": DRAWS.normal(size=NUM_FEATURES),
}
INIT = {"e": torch.tensor(ENCODER), "v": torch.tensor(HEAD)}


def features(params, batch):
    return batch["x"] @ params["e"].T


def loss(params, batch):
    assert (batch["y"] >= 0).all()
    z = features(params, batch) @ params["v"]
    return torch.nn.functional.binary_cross_entropy_with_logits(z, batch["y"])


def algorithm(**settings):
    given = {"rounds": ROUNDS, "share": SHARE, "weight": ALPHA, "features": features,
             "first_estimators": {name: torch.tensor(value) for name, value in FIRST.items()}}  # fmt: skip
    local = Uneven(fr.learn.sgd(loss, lr=LR), STEPS)
    return fr.algorithms.pretrain(local, **{**given, **settings})


def stream(seed, round, site):
    """The documented derivation of a site's random stream."""
    text = f"fedray|{seed}|{round}|{site}|mask"
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def masked_step(w, x, draws, alpha, other="rows"):
    """One step of VIME's pretext task on all rows; w = {encoder, mask.*, feature.*}."""
    n, d = x.shape
    m = (draws[0].numpy() < SHARE).astype(float)  # m ~ Bernoulli(p_m)
    bar = np.take_along_axis(x, draws[1].numpy().argsort(0), 0) if other == "rows" else np.zeros_like(x)
    tilde = m * bar + (1 - m) * x  # equation 3: x~ = m * x_bar + (1 - m) * x
    z = tilde @ w["e"].T
    to_m = (sigmoid(z @ w["mask.weight"].T + w["mask.bias"]) - m) / (n * d)  # l_m: cross-entropy, equation 5
    to_r = 2 * alpha * (z @ w["feature.weight"].T + w["feature.bias"] - x) / (n * d)  # l_r: equation 6
    back = to_m @ w["mask.weight"] + to_r @ w["feature.weight"]
    slopes = {"e": back.T @ tilde, "mask.weight": to_m.T @ z, "mask.bias": to_m.sum(0),
              "feature.weight": to_r.T @ z, "feature.bias": to_r.sum(0)}  # fmt: skip
    return {name: value - LR * slopes[name] for name, value in w.items()}


def by_hand(alpha=ALPHA, frozen=False, other="rows", rows_of="labelled"):
    """Federated averaging of both phases. Returns encoder and head, and the estimators."""
    w, v = {"e": ENCODER.copy(), **{name: value.copy() for name, value in FIRST.items()}}, HEAD.copy()
    for t, cohort in enumerate(COHORTS):
        found, rows = {}, {}
        for i in cohort:
            x, y = tables()[i][0][:, :-1], tables()[i][1]
            own, head, draws = dict(w), v.copy(), stream(0, t, i)
            keep = y >= 0
            for _ in range(STEPS[i]):
                if t < ROUNDS:
                    draw = torch.rand((2, *x.shape), generator=draws, dtype=torch.float64)
                    own = masked_step(own, x, draw, alpha, other)
                elif keep.any():
                    z = x[keep] @ own["e"].T
                    g = (sigmoid(z @ head) - y[keep]) / keep.sum()
                    step = np.zeros_like(own["e"]) if frozen else np.outer(g, head).T @ x[keep]
                    own, head = {**own, "e": own["e"] - LR * step}, head - LR * slope(head, z, y[keep])
            found[i] = own, head
            rows[i] = SIZES[i] if t < ROUNDS or rows_of == "all" else keep.sum()
        total = sum(rows.values())
        w = {name: sum(rows[i] * found[i][0][name] for i in cohort) / total for name in w}
        v = sum(rows[i] * found[i][1] for i in cohort) / total
    return np.append(w["e"].ravel(), v), w


@pytest.mark.parametrize("frozen", [False, True])
def test_pretrain_equals_the_papers_loop(frozen):
    settings = {"frozen": True, "head": ["v"]} if frozen else {}
    result, _ = trained(algorithm(**settings), sites(), init=INIT)
    model, estimators = by_hand(frozen=frozen)
    found = np.append(result.params["e"].numpy().ravel(), result.params["v"].numpy())
    assert np.abs(found - model).max() < 1e-12
    for name, value in result.state.estimators.items():
        assert np.abs(value.numpy() - estimators[name.removeprefix("vime.")]).max() < 1e-12


@pytest.mark.parametrize("rule", ["momentum", "adam", "yogi"])
def test_what_is_held_stays_whatever_the_server_optimizer_remembers(rule):
    made = algorithm(frozen=True, head=["v"], optimizer=getattr(fr.learn.optimizer, rule)(0.1))
    found, later = (trained(made, sites(), init=INIT, rounds=ROUNDS + more)[0] for more in (0, 3))
    assert torch.equal(found.params["e"], later.params["e"])
    assert not torch.equal(found.params["v"], later.params["v"])
    for name, value in found.state.estimators.items():
        assert torch.equal(value, later.state.estimators[name])


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"other": "zeros"}, {"rows_of": "all"}, {"frozen": True}])
def test_both_losses_replacements_and_weights_matter(wrong):
    assert np.abs(by_hand(**wrong)[0] - by_hand()[0]).max() > 1e-5


def test_only_updates_leave():
    assert set(leaving(algorithm())) == {"delta", "metrics"}


def test_a_model_of_layers_trains_in_both_phases_on_any_packs():
    model = fr.learn.mlp(NUM_FEATURES, hidden=(4,), norm="batch", dropout=0.2)
    data = {i: fr.data.SiteData({n: t[n].float() for n in ("x", "y")}) for i, t in sites().items()}
    local = fr.learn.sgd(model, lr=LR, steps=2)  # BatchNorm needs two rows in a batch
    made = fr.algorithms.pretrain(local, rounds=2, num_features=NUM_FEATURES, frozen=True)
    found = set()
    for packs in (1, 2, 5):
        with fr.simulate(data, packs=packs) as federation:
            result = fr.fit(made, federation, init=model.init(0), rounds=4)
        assert list(result.params) == list(model.init(0)) and not result.failures
        found.add(result.params_sha256)
    assert len(found) == 1


@pytest.mark.parametrize("settings", [{"rounds": -1}, {"share": 1.0}, {"weight": -1.0}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match="pretrain"):
        algorithm(**settings)


def test_what_the_estimators_need_is_asked_for():
    local = fr.learn.sgd(fr.learn.mlp(NUM_FEATURES, hidden=(4,)), lr=LR)
    with pytest.raises(ValueError, match="num_features"):
        fr.algorithms.pretrain(local).init(local.model.init(0))
