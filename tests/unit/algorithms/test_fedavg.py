"""FedAvg, FedSGD and the server optimizers beside loops that are written from the papers, in numpy."""

import math

import numpy as np
import pytest
import torch

import fedray as fr
from fedray import tree
from fedray.learn import optimizer
from tests.unit.algorithms.cases import (
    AT_ZERO,
    COHORTS,
    INIT,
    LR,
    NUM_FEATURES,
    SIZES,
    STEPS,
    quadratic,
    settled,
    sites,
    squares,
    tables,
    trained,
    two_quadratics,
    uneven,
    vector,
)


def gradient(w, x, y):
    return x.T @ (x @ w - y) / len(y)


def deltas_of(w, cohort, lr):
    """The boxes' inner part: each client's steps from the received w, and its model less w."""
    found = {}
    for k in cohort:  # McMahan, Algorithm 1: "for each client k in S_t in parallel do"
        own = w.copy()
        for _ in range(STEPS[k]):  # ClientUpdate: "for each local epoch i from 1 to E", one batch of all rows
            own = own - lr * gradient(own, *tables()[k])  # "w <- w - eta grad l(w; b)"
        found[k] = own - w
    return found


def averaged(w, cohort, lr, weighted=True):
    """McMahan, Algorithm 1: "w_{t+1} <- sum over S_t of n_k / n w^k_{t+1}", less w_t."""
    found = deltas_of(w, cohort, lr)
    rows = {k: SIZES[k] if weighted else 1 for k in cohort}
    return sum(rows[k] / sum(rows.values()) * found[k] for k in cohort)


def fedavg_by_hand(weighted=True, lr=LR):
    w = np.zeros(NUM_FEATURES + 1)
    for cohort in COHORTS:  # "for each round t = 1, 2, ... do: S_t <- random set of m clients"
        w = w + averaged(w, cohort, lr, weighted)
    return w


@pytest.mark.parametrize("weighted", [True, False])
def test_fedavg_equals_the_papers_loop(weighted):
    result, _ = trained(fr.algorithms.fedavg(uneven(), weighted=weighted))
    assert [(record.asked, record.counted) for record in result.metrics] == [(3, 3)] * 5
    assert np.abs(vector(result.params) - fedavg_by_hand(weighted)).max() < 1e-12


def test_the_reference_tells_weights_apart():
    assert np.abs(fedavg_by_hand(True) - fedavg_by_hand(False)).max() > 1e-2


def test_fedavg_reports_the_training_loss_weighted_by_rows():
    result, _ = trained(fr.algorithms.fedavg(uneven()), rounds=1)
    losses = {}
    for k in COHORTS[0]:
        (x, y), w, seen = tables()[k], np.zeros(NUM_FEATURES + 1), []
        for _ in range(STEPS[k]):
            seen.append(np.square(x @ w - y).mean() / 2)
            w = w - LR * gradient(w, x, y)
        losses[k] = np.mean(seen)
    expected = sum(SIZES[k] * losses[k] for k in "abc") / sum(SIZES[k] for k in "abc")
    assert result.metrics[0].metrics["loss"] == pytest.approx(expected, abs=1e-12)


def pooled_descent(rounds, lr=LR):
    rows = list(tables().values())
    x, y = np.vstack([x for x, _ in rows]), np.concatenate([y for _, y in rows])
    w = np.zeros(NUM_FEATURES + 1)
    for _ in range(rounds):
        w = w - lr * gradient(w, x, y)
    return w


ONE_FULL_STEP = {
    "fedavg": lambda: fr.algorithms.fedavg(fr.learn.sgd(squares, lr=LR, steps=1)),
    "fedsgd": lambda: fr.algorithms.fedsgd(squares, lr=LR),
}


@pytest.mark.parametrize("name", ONE_FULL_STEP)
def test_one_full_batch_step_at_all_sites_is_pooled_gradient_descent(name):
    result, _ = trained(ONE_FULL_STEP[name](), rounds=12, schedule=fr.synchronous())
    assert np.abs(vector(result.params) - pooled_descent(12)).max() < 1e-12


def test_fedsgd_with_a_part_of_the_sites_equals_the_papers_formula():
    w = np.zeros(NUM_FEATURES + 1)
    for cohort in COHORTS:  # McMahan, section 2: "w_{t+1} <- w_t - eta sum_k n_k / n g_k"
        n = sum(SIZES[k] for k in cohort)
        w = w - LR * sum(SIZES[k] / n * gradient(w, *tables()[k]) for k in cohort)
    result, _ = trained(fr.algorithms.fedsgd(squares, lr=LR))
    assert np.abs(vector(result.params) - w).max() < 1e-12


def test_rates_may_follow_a_schedule_of_the_round():
    rates = fr.learn.schedules.step(LR, every=2, factor=0.5)
    result, _ = trained(fr.algorithms.fedsgd(squares, lr=rates), rounds=4, schedule=fr.synchronous())
    rows = list(tables().values())
    x, y = np.vstack([x for x, _ in rows]), np.concatenate([y for _, y in rows])
    w = np.zeros(NUM_FEATURES + 1)
    for rate in (LR, LR, LR / 2, LR / 2):
        w = w - rate * gradient(w, x, y)
    assert np.abs(vector(result.params) - w).max() < 1e-12


def fedopt_by_hand(kind, lr, b1, b2, tau=1e-3):
    """Reddi et al., Algorithm 2 (Hsu et al. for momentum), with the paper's box word by word."""
    x = np.zeros(NUM_FEATURES + 1)
    m, v = np.zeros_like(x), np.full_like(x, tau**2)  # "Initialization: x_0, v_{-1} >= tau^2"
    for cohort in COHORTS:  # "Sample a subset S of clients"; "x^t_{i,0} = x_t"
        delta = averaged(x, cohort, LR)  # "Delta_t = 1/|S| sum Delta_i^t", here with weights n_i / n
        if kind == "momentum":
            m = b1 * m + delta
            x = x + lr * m
            continue
        m = b1 * m + (1 - b1) * delta  # "m_t = beta_1 m_{t-1} + (1 - beta_1) Delta_t"
        if kind == "adagrad":
            v = v + delta**2  # "v_t = v_{t-1} + Delta_t^2 (FedAdagrad)"
        elif kind == "yogi":
            v = v - (1 - b2) * delta**2 * np.sign(v - delta**2)  # "(FedYogi)"
        else:
            v = b2 * v + (1 - b2) * delta**2  # "v_t = beta_2 v_{t-1} + (1 - beta_2) Delta_t^2 (FedAdam)"
        x = x + lr * m / (np.sqrt(v) + tau)  # "x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)"
    return x


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("momentum", {"lr": 0.7, "b1": 0.9, "b2": 0.0}),
        ("adagrad", {"lr": 0.1, "b1": 0.3, "b2": 0.0}),
        ("adam", {"lr": 0.1, "b1": 0.9, "b2": 0.99}),
        ("yogi", {"lr": 0.05, "b1": 0.9, "b2": 0.99}),
    ],
)
def test_server_optimizers_equal_the_papers_loop(kind, settings):
    made = {
        "momentum": lambda: optimizer.momentum(settings["lr"], settings["b1"]),
        "adagrad": lambda: optimizer.adagrad(settings["lr"], settings["b1"]),
        "adam": lambda: optimizer.adam(settings["lr"], settings["b1"], settings["b2"]),
        "yogi": lambda: optimizer.yogi(settings["lr"], settings["b1"], settings["b2"]),
    }[kind]()
    result, _ = trained(fr.algorithms.fedavg(uneven(), made))
    assert np.abs(vector(result.params) - fedopt_by_hand(kind, **settings)).max() < 1e-12


def resting_in_round_one(round):
    return 0.0 if round == 1 else 0.1


def test_fedadams_first_rounds_equal_a_hand_computation_with_one_all_zero_round():
    """From x = 0 the two sites move by 0.1 and -0.4, so D = -0.15; in round 1 D = 0."""
    algorithm = fr.algorithms.fedavg(
        fr.learn.sgd(quadratic, lr=resting_in_round_one, steps=1), optimizer.adam(0.1)
    )
    run = [trained(algorithm, two_quadratics(), n, fr.synchronous(), AT_ZERO)[0].state for n in (1, 2, 3)]

    m0, v0 = 0.1 * -0.15, 0.99 * 1e-6 + 0.01 * 0.0225
    x0 = 0.1 * m0 / (math.sqrt(v0) + 1e-3)
    m1, v1 = 0.9 * m0, 0.99 * v0
    x1 = x0 + 0.1 * m1 / (math.sqrt(v1) + 1e-3)
    d2 = -0.1 * ((x1 - 1) + 4 * (x1 + 1)) / 2
    m2, v2 = 0.9 * m1 + 0.1 * d2, 0.99 * v1 + 0.01 * d2**2
    x2 = x1 + 0.1 * m2 / (math.sqrt(v2) + 1e-3)
    expected = [(x0, m0, v0), (x1, m1, v1), (x2, m2, v2)]
    for state, (x, m, v) in zip(run, expected, strict=True):
        assert float(state.params["x"]) == pytest.approx(x, abs=1e-12)
        assert float(state.optimizer["m"]["x"]) == pytest.approx(m, abs=1e-12)
        assert float(state.optimizer["v"]["x"]) == pytest.approx(v, abs=1e-12)
    assert x0 == pytest.approx(-0.093557, abs=1e-6)


# f_i(x) = a_i/2 (x - b_i)^2 with a = (1, 4), b = (1, -1) and K steps of 0.05: FedAvg settles at
# sum s_i b_i / sum s_i, s_i = 1 - (1 - eta a_i)^K, the optimum being -0.6
@pytest.mark.parametrize(
    ("steps", "rounds", "expected"), [(1, 150, -0.6), (10, 30, -0.379757), (50, 12, -0.040005)]
)
def test_fedavg_settles_where_the_algebra_says(steps, rounds, expected):
    shares = [1 - (1 - 0.05 * a) ** steps for a in (1.0, 4.0)]
    found = settled(fr.algorithms.fedavg(fr.learn.sgd(quadratic, lr=0.05, steps=steps)), rounds)
    assert found == pytest.approx((shares[0] - shares[1]) / sum(shares), abs=1e-7)
    assert found == pytest.approx(expected, abs=1e-6)


def test_two_equal_sites_count_twice():
    assert np.array_equal(tables()["c"][0], tables()["d"][0])
    algorithm = fr.algorithms.fedavg(uneven())
    twice, _ = trained(algorithm, chosen("c", "d", "e"), 1, fr.synchronous())
    w = np.zeros(NUM_FEATURES + 1)
    assert np.abs(vector(twice.params) - averaged(w, "cde", LR)).max() < 1e-12
    once, _ = trained(algorithm, chosen("c", "e"), 1, fr.synchronous())
    assert np.abs(vector(twice.params) - vector(once.params)).max() > 1e-3


def chosen(*names):
    return {name: data for name, data in sites().items() if name in names}


def test_the_parameters_keep_their_dtype_and_the_start_is_not_written_to():
    result, _ = trained(fr.algorithms.fedavg(uneven()), rounds=1)
    assert result.params["w"].dtype == torch.float64
    assert tree.equal(INIT, {"w": torch.zeros(NUM_FEATURES).double(), "b": torch.zeros(()).double()})
