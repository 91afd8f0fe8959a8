"""FedDF beside a loop that is written from the paper, in numpy; the sites' form beside the server's."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.core.explain import egress_rows
from fedray.learn.distilling import divergence
from tests.unit.algorithms.cases import COHORTS, LR, NUM_FEATURES, STEPS, Uneven, leaving, trained, vector
from tests.unit.algorithms.label_cases import INIT, START, logits, loss, mean, sigmoid, sites, slope, tables

ROWS, RATE, DISTIL = 7, 0.5, 6
PUBLIC = np.random.default_rng(3).normal(size=(ROWS, NUM_FEATURES))
GIVEN = {"public": {"x": torch.tensor(PUBLIC)}, "steps": DISTIL, "lr": RATE, "logits": logits}


def labelled():
    """The five sites, every row with a label."""
    return {i: site.with_columns(y=(site["y"] > 0).double()) for i, site in sites().items()}


def local():
    return Uneven(fr.learn.sgd(loss, lr=LR), STEPS)


def by_hand(weighted=True, teacher_is="mean of logits", start_is="mean", steps=DISTIL):
    """Lin et al., Algorithm 1 (lines quoted). Returns x."""
    x = START.copy()
    d = np.hstack([PUBLIC, np.ones((ROWS, 1))])
    for cohort in COHORTS:  # "for each communication round t = 1, ..., T do"
        found = {}
        for k in cohort:  # "x_t^k <- Client-LocalUpdate(k, x_{t-1})"
            rows, y = tables()[k][0], (tables()[k][1] > 0).astype(float)
            own = x.copy()
            for _ in range(STEPS[k]):
                own = own - LR * slope(own, rows, y)
            found[k] = own
        if start_is == "mean":  # "initialize for model fusion x_{t,0} <- sum n_k/n x_t^k"
            x = mean(found, cohort, weighted)
        p = sigmoid(np.mean([d @ found[k] for k in cohort], 0))  # AVGLOGITS: sigma(1/|S_t| sum_k f(x_t^k, d))
        if teacher_is == "mean of probabilities":
            p = np.mean([sigmoid(d @ found[k]) for k in cohort], 0)
        for _ in range(steps):  # "for j in {1, ..., N} do": x <- x - eta dKL(teacher, sigma(f(x, d)))/dx
            x = x - RATE * d.T @ (sigmoid(d @ x) - p) / ROWS
    return x


@pytest.mark.parametrize(("where", "weighted"), [("server", True), ("sites", True), ("server", False)])
def test_feddf_equals_the_papers_loop(where, weighted):
    algorithm = fr.algorithms.feddf(local(), where=where, weighted=weighted, **GIVEN)
    result, _ = trained(algorithm, labelled(), init=INIT)
    assert np.abs(vector(result.params) - by_hand(weighted)).max() < 1e-12


def test_the_mean_of_logits_that_leaves_the_sites_is_that_of_the_server():
    found = [trained(fr.algorithms.feddf(local(), where=where, **GIVEN), labelled(), init=INIT)[0].params
             for where in ("server", "sites")]  # fmt: skip
    assert np.abs(vector(found[0]) - vector(found[1])).max() < 1e-12


@pytest.mark.parametrize(
    "wrong", [{"teacher_is": "mean of probabilities"}, {"start_is": "last"}, {"steps": 0}]
)
def test_teacher_start_and_steps_matter(wrong):
    assert np.abs(by_hand(**wrong) - by_hand()).max() > 1e-4


def test_without_steps_it_is_federated_averaging():
    result, _ = trained(fr.algorithms.feddf(local(), **{**GIVEN, "steps": 0}), labelled(), init=INIT)
    plain, _ = trained(fr.algorithms.fedavg(local()), labelled(), init=INIT)
    assert np.abs(vector(result.params) - vector(plain.params)).max() < 1e-12


def test_no_single_value_is_seen_where_the_sites_say_logits():
    seen = {}
    for where in ("server", "sites"):
        rows = egress_rows(fr.compile(fr.algorithms.feddf(local(), where=where, **GIVEN)))
        seen[where] = {row["name"] for row in rows if row["visible"] != "no"}
    assert seen == {"server": {"model"}, "sites": set()}
    algorithm = fr.algorithms.feddf(local(), where="sites", **GIVEN)
    assert set(leaving(algorithm)) == {"delta", "logits", "metrics"}


def test_the_divergence_is_that_of_the_teacher_from_the_student():
    teacher, student = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.5, 0.0, 1.0]])
    p, q = (np.exp(z) / np.exp(z).sum() for z in (teacher.numpy() / 2, student.numpy() / 2))
    assert float(divergence(teacher, student, 2.0)) == pytest.approx((p * np.log(p / q)).sum(), abs=1e-6)


@pytest.mark.parametrize("packs", [2, 5])
def test_bits_do_not_depend_on_packs_and_noise_is_drawn_where_no_row_is_public(packs):
    model = fr.learn.mlp(NUM_FEATURES, hidden=(4,))
    data = {i: fr.data.SiteData({n: t[n].float() for n in ("x", "y")}) for i, t in labelled().items()}
    local, width = fr.learn.sgd(model, lr=LR), NUM_FEATURES
    for where in ("server", "sites"):
        algorithm = fr.algorithms.feddf(local, where=where, steps=3, num_features=width)
        found = set()
        for number in (1, packs):
            with fr.simulate(data, packs=number) as federation:
                found.add(fr.fit(algorithm, federation, init=model.init(0), rounds=2).params_sha256)
        assert len(found) == 1


@pytest.mark.parametrize("settings", [{"where": "hub"}, {"steps": -1}, {"public": {"x": torch.zeros(0, 3)}},
                                      {"public": None}])  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match="feddf"):
        fr.algorithms.feddf(local(), **{**GIVEN, **settings})
