"""pFedMe beside a loop that is written from the paper, in numpy, and its fixed points on two quadratics."""

import numpy as np
import pytest

import fedray as fr
from tests.unit.algorithms.cases import (
    AT_ZERO,
    COHORTS,
    LR,
    NUM_FEATURES,
    SAME_STEPS,
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
    two_quadratics,
    uneven,
    vector,
)

LAMBDA, ETA = 1.5, 0.2


def proximal_point(site, w, steps):
    """Line 7: minimise f_i(theta) + lambda/2 ||theta - w||^2 from w, by so many gradient steps."""
    theta = w.copy()
    for _ in range(steps):
        theta = theta - LR * (gradient(site, theta) + LAMBDA * (theta - w))
    return theta


def pfedme_by_hand(local_rounds=1, beta=1.0, cohorts=COHORTS, steps=STEPS, overwrites=False):
    """Dinh et al., Algorithm 1, with its line numbers. Returns x and every site's own model."""
    x = np.zeros(NUM_FEATURES + 1)  # 1: input w^0
    for cohort in cohorts:  # 2: for t = 0 to T - 1; 3: the server sends w_t; 9: it samples a subset S
        found = []
        for i in cohort:  # 4: for all i (those outside S are not heard)
            w = x.copy()  # 5: w_{i,0} = w_t
            for _ in range(local_rounds):  # 6: for r = 0 to R - 1
                theta = proximal_point(i, w, steps[i])  # 7
                w = theta if overwrites else w - ETA * LAMBDA * (w - theta)  # 8
            found.append(w)
        x = (1 - beta) * x + beta * sum(found) / len(found)  # 10
    return x, {i: proximal_point(i, x, steps[i]) for i in tables()}


@pytest.mark.parametrize(("local_rounds", "beta"), [(1, 1.0), (3, 1.0), (2, 0.5), (1, 1.5)])
def test_pfedme_equals_the_papers_loop(local_rounds, beta):
    algorithm = fr.algorithms.pfedme(uneven(), LAMBDA, ETA, local_rounds, beta)
    result, found = trained(algorithm, look=personal_models(algorithm))
    x, models = pfedme_by_hand(local_rounds, beta)
    assert np.abs(vector(result.params) - x).max() < 1e-12
    assert max(np.abs(found[i] - models[i]).max() for i in models) < 1e-12


def test_the_twin_in_single_precision_comes_to_the_same_after_a_round():
    local, data, init = single()
    algorithm = fr.algorithms.pfedme(local, 2 * LAMBDA, ETA / 2, local_rounds=3)  # its loss is not halved
    result, _ = trained(algorithm, data, 1, init=init)
    x, _ = pfedme_by_hand(3, cohorts=COHORTS[:1], steps=SAME_STEPS)
    assert np.abs(vector(result.params) - x).max() < 1e-4


def test_replacing_w_by_theta_would_be_seen():
    assert np.abs(pfedme_by_hand(2, overwrites=True)[0] - pfedme_by_hand(2)[0]).max() > 1e-2


@pytest.mark.slow
# one local round: w - x = eta lambda s_i (b_i - x), s_i = a/(a + lambda) (1 - (1 - h (a + lambda))^K)
@pytest.mark.parametrize(("steps", "rate"), [(3, 0.05), (60, 0.18)])
def test_pfedme_settles_where_the_algebra_says(steps, rate):
    a, b = (1.0, 4.0), (1.0, -1.0)
    shares = [k / (k + 1) * (1 - (1 - rate * (k + 1)) ** steps) for k in a]
    algorithm = fr.algorithms.pfedme(fr.learn.sgd(quadratic, lr=rate, steps=steps), prox=1.0, lr=1.0)
    found = settled(algorithm, 60)
    assert found == pytest.approx((shares[0] - shares[1]) / sum(shares), abs=1e-9)
    if steps == 60:  # the envelope's own minimum: weights a lambda/(a + lambda), here 1/2 and 4/5
        assert found == pytest.approx(-0.3 / 1.3, abs=1e-9)
        _, own = trained(
            algorithm, two_quadratics(), 60, fr.synchronous(), AT_ZERO, personal_models(algorithm)
        )
        expected = [(k * c + found) / (k + 1) for k, c in zip(a, b, strict=True)]
        assert [float(own[site][0]) for site in ("h0", "h1")] == pytest.approx(expected, abs=1e-9)


def test_sites_keep_nothing_and_nothing_kept_leaves():
    algorithm = fr.algorithms.pfedme(uneven(), LAMBDA, ETA, local_rounds=2)
    inputs = {"data", "rng", "rng:local round 1"}
    assert leaving(algorithm) == {"delta": inputs, "metrics": inputs}
    assert all(state is None for state in trained(algorithm, rounds=1, look=kept)[1].values())


@pytest.mark.parametrize(("prox", "local_rounds"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_settings_that_cannot_be_are_refused(prox, local_rounds):
    with pytest.raises(ValueError, match="above 0|local_rounds=0"):
        fr.algorithms.pfedme(uneven(), prox, ETA, local_rounds)
