"""AFL beside a loop that is written from the paper, in numpy, and where it settles on two quadratics."""

import numpy as np
import pytest

import fedray as fr
from fedray.algorithms.afl import on_simplex
from fedray.core.explain import egress_rows
from tests.unit.algorithms.cases import (
    AT_ZERO,
    COHORTS,
    LR,
    NUM_FEATURES,
    STEPS,
    quadratic,
    tables,
    trained,
    two_quadratics,
    uneven,
    vector,
)

SITES = tuple("abcde")


def nearest(v):
    """Project onto the simplex by halving an interval: sum max(v - cut, 0) falls in `cut`."""
    low, high = min(v) - 1.0, max(v)
    for _ in range(200):
        cut = (low + high) / 2
        low, high = (cut, high) if np.maximum(v - cut, 0).sum() > 1 else (low, cut)
    return np.maximum(v - cut, 0)


def afl_by_hand(rate, by_position=False):
    """Mohri et al., Algorithm 1, its steps quoted. Returns w_T, the average of all w_t, and lambda.

    `by_position` is the mistake: weights by the place in the cohort, not by the site.
    """
    w, weights = np.zeros(NUM_FEATURES + 1), np.full(5, 0.2)  # "Initialization: w_0, lambda_0"
    visited = []
    for cohort in COHORTS:  # "for t = 1, 2, ..., T do": "Obtain stochastic gradients"
        step, slope = 0.0, np.zeros(5)
        for place, site in enumerate(cohort):
            k = place if by_position else SITES.index(site)
            x, y = tables()[site]
            own = w.copy()
            for _ in range(STEPS[site]):
                own = own - LR * x.T @ (x @ own - y) / len(y)
            step = step + 5 / 3 * weights[k] * (own - w)
            slope[k] = 5 / 3 * ((x @ w - y) ** 2).mean() / 2
        w = w + step  # "w_t = Project(w_{t-1} - gamma_w delta_w L(w_{t-1}, lambda_{t-1}), W)"
        # "lambda_t = Project(lambda_{t-1} + gamma_lambda delta_lambda, Lambda)"
        weights = nearest(weights + rate * slope)
        visited.append(w)
    return w, np.mean(visited, axis=0), weights  # "Output: w^A = 1/T sum w_t"


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1])
def test_afl_equals_the_papers_loop(rate):
    result, _ = trained(fr.algorithms.afl(uneven(), SITES, rate))
    last, mean, weights = afl_by_hand(rate)
    assert np.abs(vector(result.state.iterate) - last).max() < 1e-12
    assert np.abs(vector(result.params) - mean).max() < 1e-12
    assert np.abs(np.array([result.state.weights[site] for site in SITES]) - weights).max() < 1e-12


def test_the_last_iterate_is_reported_where_asked():
    result, _ = trained(fr.algorithms.afl(uneven(), SITES, 0.01, average=False))
    assert np.abs(vector(result.params) - afl_by_hand(0.01)[0]).max() < 1e-12


def test_weights_by_position_would_be_told_apart():
    right, wrong = afl_by_hand(0.01), afl_by_hand(0.01, by_position=True)
    assert np.abs(right[0] - wrong[0]).max() > 1e-2 and np.abs(right[2] - wrong[2]).max() > 1e-2


def test_the_order_of_the_sites_changes_nothing():
    forward, back = (
        trained(fr.algorithms.afl(uneven(), names, 0.01))[0] for names in (SITES, SITES[::-1])
    )
    assert forward.params_sha256 == back.params_sha256 and forward.state.weights == back.state.weights


@pytest.mark.slow
def test_afl_settles_where_the_worst_loss_is_smallest():
    # both losses are equal at x = -1/3, and the slopes cancel: lambda_0 (x - 1) + lambda_1 4 (x + 1) = 0
    local = fr.learn.sgd(quadratic, lr=0.05, steps=1)
    algorithm = fr.algorithms.afl(local, ("h0", "h1"), 0.05, average=False)
    result, _ = trained(algorithm, two_quadratics(), 600, fr.synchronous(), AT_ZERO)
    assert float(result.params["x"]) == pytest.approx(-1 / 3, abs=1e-6)
    assert result.state.weights["h0"] == pytest.approx(2 / 3, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_projection_is_the_nearest_point_of_the_simplex(seed):
    values = np.random.default_rng(seed).normal(size=7) * (1 + seed)
    found = on_simplex(dict(zip("abcdefg", values.tolist(), strict=True)))
    assert np.abs(np.array(list(found.values())) - nearest(values)).max() < 1e-12


def test_that_the_server_sees_each_loss_is_listed():
    rows = egress_rows(fr.compile(fr.algorithms.afl(uneven(), SITES)))
    assert [row["name"] for row in rows if row["visible"].startswith("yes")] == ["loss"]


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_sites_must_be_named_once(names):
    with pytest.raises(ValueError, match="each once"):
        fr.algorithms.afl(uneven(), names)


def test_a_negative_rate_is_refused():
    with pytest.raises(ValueError, match="rate=-1"):
        fr.algorithms.afl(uneven(), SITES, -1)
