"""FedGKT beside a loop that is written from the paper, in numpy, with its gradients by hand."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.core.explain import egress_rows
from tests.unit.algorithms.cases import COHORTS, LR, NUM_FEATURES, SIZES, STEPS, Uneven, trained
from tests.unit.algorithms.label_cases import sigmoid, sites, tables

WIDTH, WEIGHT, T, EPOCHS, SERVER_LR = 2, 0.7, 2.0, 2, 0.3
DRAWS = np.random.default_rng(5)
ENCODER = DRAWS.normal(size=(WIDTH, NUM_FEATURES))
HEAD, NET = DRAWS.normal(size=WIDTH), DRAWS.normal(size=WIDTH)
INIT = {"e": torch.tensor(ENCODER), "v": torch.tensor(HEAD)}


def labelled():
    return {i: site.with_columns(y=(site["y"] > 0).double()) for i, site in sites().items()}


def features(params, batch):
    return torch.tanh(batch["x"] @ params["e"].T)


def small(params, batch):
    return features(params, batch) @ params["v"]


def large(params, batch):
    return batch["x"] @ params["u"]


def cross_entropy(logits):
    def loss(params, batch):
        return torch.nn.functional.binary_cross_entropy_with_logits(logits(params, batch), batch["y"])

    return loss


def algorithm(**settings):
    local = Uneven(fr.learn.sgd(cross_entropy(small), lr=LR), STEPS)
    server = fr.learn.sgd(cross_entropy(large), lr=SERVER_LR)
    given = {"weight": WEIGHT, "temperature": T, "epochs": EPOCHS, "start": {"u": torch.tensor(NET)},
             "features": features, "logits": small, "server_logits": large}  # fmt: skip
    return fr.algorithms.fedgkt(local, server, **{**given, **settings})


def to_logit(z, y, teacher, weight):
    """Return the gradient of CE + KL(p_teacher || p) with respect to each row's logit."""
    g = sigmoid(z) - y
    if teacher is not None:
        g = g + weight * (sigmoid(z / T) - sigmoid(teacher / T)) / T
    return g / len(y)


def by_hand(weight=WEIGHT, cohorts=COHORTS, sent="after"):
    """He et al., Algorithm 1 (lines quoted). Returns every site's model and the server's."""
    own = {k: (ENCODER.copy(), HEAD.copy()) for k in SIZES}
    teacher = dict.fromkeys(SIZES)  # Z_s^(k): none before the first
    u = NET.copy()
    for cohort in cohorts:  # "for each round r = 1, 2, ..., R do"
        rows = {}
        for k in cohort:  # "for each client k in parallel do": ClientTrain(k, Z_s^(k))
            x, y = tables()[k][0][:, :-1], (tables()[k][1] > 0).astype(float)
            e, v = own[k]
            before = np.tanh(x @ e.T)
            for _ in range(STEPS[k]):  # "W_k <- W_k - eta_k grad l_c(W_k; b)"
                h = np.tanh(x @ e.T)
                g = to_logit(h @ v, y, teacher[k], weight)
                e, v = e - LR * (np.outer(g, v) * (1 - h**2)).T @ x, v - LR * h.T @ g
            own[k] = e, v
            h = np.tanh(x @ e.T)  # "H_k <- f_e(W_e; x), Z_c <- f_c(W_c; h)"
            rows[k] = (before if sent == "before" else h, h @ v, y)
        for _ in range(EPOCHS):  # "for each local epoch i from 1 to E_s do"
            for k in cohort:  # "for each client k do": "W_s <- W_s - eta_s grad l_s(W_s; b)"
                h, z, y = rows[k]
                u = u - SERVER_LR * h.T @ to_logit(h @ u, y, z, weight)
        for k in cohort:  # "Z_s^(k) <- f_s(W_s; h)", sent back to client k
            teacher[k] = rows[k][0] @ u
    return {k: np.append(e.ravel(), v) for k, (e, v) in own.items()}, u


def models(federation):
    packs = federation.aggregator.root.transport.hosts.values()
    states = {site: pack.state_of(site) for pack in packs for site in pack.sites}
    return {k: np.append(s.net["e"].numpy().ravel(), s.net["v"].numpy()) for k, s in states.items() if s}


@pytest.mark.parametrize("weight", [WEIGHT, 0.0])
def test_fedgkt_equals_the_papers_loop(weight):
    result, found = trained(algorithm(weight=weight), labelled(), init=INIT, look=models)
    own, u = by_hand(weight)
    assert np.abs(result.state.net["u"].numpy() - u).max() < 1e-12
    assert max(np.abs(found[k] - own[k]).max() for k in own) < 1e-12


def test_teachers_and_the_features_after_training_matter():
    own, u = by_hand()
    assert np.abs(by_hand(0.0)[1] - u).max() > 1e-4
    assert max(np.abs(by_hand(0.0)[0][k] - own[k]).max() for k in own) > 1e-4
    assert np.abs(by_hand(sent="before")[1] - u).max() > 1e-4


def test_features_logits_and_labels_of_every_row_are_seen_and_said():
    rows = egress_rows(fr.compile(algorithm()))
    assert {row["name"] for row in rows if row["visible"] != "no"} == {"rows"}
    assert {row["name"] for row in rows} == {"rows", "metrics", "metrics.weight"}


def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one_on_any_packs(tmp_path):
    from fedray.runtime.checkpoint import Checkpoints

    model = fr.learn.mlp(NUM_FEATURES, hidden=(4,))
    data = {i: fr.data.SiteData({n: t[n].float() for n in ("x", "y")}) for i, t in labelled().items()}

    def run(rounds, packs, **more):
        made = fr.algorithms.fedgkt(fr.learn.sgd(model, lr=0.1), hidden=(5,))
        with fr.simulate(data, packs=packs) as federation:
            schedule = fr.synchronous(cohort=3, sampling="cyclic")
            result = fr.fit(made, federation, init=model.init(0), rounds=rounds, schedule=schedule, **more)
            federation.aggregator.root.commit([])
            packs_ = federation.aggregator.root.transport.hosts.values()
            found = {i: pack.state_of(i).net.buffer.numpy().tobytes() for pack in packs_ for i in pack.sites}
        assert not result.failures
        return fr.tree.flatten(result.state.net).buffer.numpy().tobytes(), dict(sorted(found.items()))

    expected = run(4, 1)
    assert run(4, 3) == expected
    run(2, 3, checkpoint=Checkpoints(tmp_path))
    assert run(4, 3, checkpoint=Checkpoints(tmp_path), resume=True) == expected


@pytest.mark.parametrize("settings", [{"weight": -1.0}, {"temperature": 0.0}, {"epochs": 0}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match="fedgkt"):
        algorithm(**settings)
