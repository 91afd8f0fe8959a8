"""FedMatch beside a loop that is written from the paper, in numpy, with its gradients by hand."""

import hashlib

import numpy as np
import pytest
import torch

import fedray as fr
from tests.unit.algorithms.cases import COHORTS, LR, NUM_FEATURES, STEPS, Uneven, leaving, trained, vector
from tests.unit.algorithms.label_cases import INIT, START, logits, loss, mean, sigmoid, sites, slope, tables

TAU, HELPERS, SUP, CON, AGR, L2, L1 = 0.6, 2, 3.0, 0.7, 0.9, 0.5, 0.02
SHARE = 1 / 6
SETTINGS = {"threshold": TAU, "helpers": HELPERS, "supervised": SUP, "consistency": CON,
            "agreement": AGR, "l2": L2, "l1": L1, "logits": logits}  # fmt: skip
KEY = hashlib.sha256(b"fedray|0|0||fedmatch").digest()  # the documented derivation of a stream
NOISE = torch.Generator().manual_seed(int.from_bytes(KEY[:8], "big"))
A_INPUT = np.append(torch.randn((1, NUM_FEATURES), generator=NOISE, dtype=torch.float64).numpy()[0], 1.0)


def local():
    return Uneven(fr.learn.sgd(loss, lr=LR), STEPS)


def both(z):
    """Return the probabilities of the two classes."""
    return np.stack([1 - sigmoid(z), sigmoid(z)], 1)


def unsupervised(theta, helpers, x, votes_of="all"):
    """Return the gradient of Phi with respect to psi, over rows that theta is sure of."""
    p = both(x @ theta)
    sure = p.max(1) >= TAU  # "we discard instances with low-confident predictions"
    if not sure.any():
        return np.zeros_like(theta)
    x, p = x[sure], p[sure]
    votes, g = np.eye(2)[p.argmax(1)], np.zeros_like(theta)
    for h in helpers:
        q = both(x @ h)
        votes = votes + (np.eye(2)[q.argmax(1)] if votes_of == "all" else 0)
        # d/dz of sum_c q_c (log q_c - log p_c) is p_1 - q_1
        g = g + CON / len(helpers) * x.T @ (p[:, 1] - q[:, 1]) / len(x)
    return g + AGR * slope(theta, x, votes.argmax(1))  # y^ = Max(1(p_theta) + sum_j 1(p_hj))


def by_hand(weighted=True, order="sigma first", votes_of="all", helpers=HELPERS, rounds=5):
    """The paper's loop with labels at the client. Returns theta."""
    sigma, psi = (1 - SHARE) * START, SHARE * START
    known = {}  # site -> (answer to noise, psi)
    for cohort in COHORTS[:rounds]:
        found = {}
        for i in cohort:  # "for each client in parallel do"
            x, y = tables()[i]
            others = sorted(j for j in known if j != i)
            if i in known:  # "psi_h1:H <- nearest neighbours"
                others.sort(key=lambda j: np.abs(known[j][0] - known[i][0]))
            near = [sigma + known[j][1] for j in others[:helpers]] if i in known else []
            s, u, labelled = sigma.copy(), psi.copy(), y >= 0
            for _ in range(STEPS[i]):  # "for minibatch s in S and u in U do"
                to_s = SUP * slope(s + u, x[labelled], y[labelled])
                after = s - LR * to_s  # "sigma <- sigma - eta grad L_s(sigma + psi*)"
                at = after if order == "sigma first" else s
                # "lambda_L2 ||sigma* - psi||^2 + lambda_L1 ||psi||_1"
                to_u = 2 * L2 * (u - at) + L1 * np.sign(u)
                if not labelled.all():
                    to_u = to_u + unsupervised(at + u, near, x[~labelled], votes_of)
                s, u = after, u - LR * to_u  # "psi <- psi - eta grad L_u(sigma* + psi)"
            found[i] = np.append(s, u)
        for i in cohort:
            s, u = np.split(found[i], 2)
            known[i] = (sigmoid(A_INPUT @ (s + u)), u)
        sigma, psi = np.split(mean(found, cohort, weighted), 2)
    return sigma + psi


@pytest.mark.parametrize("weighted", [True, False])
def test_fedmatch_equals_the_papers_loop(weighted):
    result, _ = trained(fr.algorithms.fedmatch(local(), weighted=weighted, **SETTINGS), sites(), init=INIT)
    assert np.abs(vector(result.params) - by_hand(weighted)).max() < 1e-12


@pytest.mark.parametrize("wrong", [{"order": "together"}, {"votes_of": "itself"}, {"helpers": 0}])
def test_order_votes_and_helpers_matter(wrong):
    assert np.abs(by_hand(**wrong) - by_hand()).max() > 1e-6


def test_the_model_starts_where_it_is_given():
    state = fr.algorithms.fedmatch(local(), **SETTINGS).init(INIT)
    assert np.abs(vector(state.params) - START).max() == 0
    assert list(state.both) == ["w", "b", "psi.w", "psi.b"]


def test_the_server_sees_psi_of_every_site_and_says_so():
    algorithm = fr.algorithms.fedmatch(local(), **SETTINGS)
    assert set(leaving(algorithm)) == {"delta", "metrics", "psi"}
    assert "psi" in fr.egress(fr.compile(algorithm))


def test_a_model_of_layers_with_batch_statistics_trains():
    model = fr.learn.mlp(NUM_FEATURES, hidden=(4,), norm="batch")
    data = {i: fr.data.SiteData({n: t[n].float() for n in ("x", "y")}) for i, t in sites().items()}
    algorithm = fr.algorithms.fedmatch(fr.learn.sgd(model, lr=0.05), noise=0.1, threshold=0.5)
    result, _ = trained(algorithm, data, 3, init=model.init(0))
    assert list(result.params) == list(model.init(0)) and not result.failures


def test_bits_do_not_depend_on_packs():
    found = set()
    for packs in (1, 2, 5):
        with fr.simulate(sites(), packs=packs) as federation:
            algorithm = fr.algorithms.fedmatch(local(), **SETTINGS)
            found.add(fr.fit(algorithm, federation, init=INIT, rounds=3).params_sha256)
    assert len(found) == 1


@pytest.mark.parametrize("settings", [{"l2": -1.0}, {"helpers": -1}, {"psi_share": 1.0}, {"l2": 10.0}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match="fedmatch"):
        fr.algorithms.fedmatch(local(), **{**SETTINGS, **settings})
