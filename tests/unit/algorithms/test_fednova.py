"""FedNova beside a loop that is written from the paper, in numpy, and its error on two quadratics."""

import numpy as np
import pytest

import fedray as fr
from fedray.learn import optimizer
from fedray.testing import check_rows
from tests.unit.algorithms.cases import (
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
    uneven,
    vector,
)


def local(momentum=0.0, lr=LR):
    """Every site could take 9 steps, and has the time of STEPS."""
    return fr.learn.budgeted(fr.learn.sgd(squares, lr=lr, steps=9, momentum=momentum), STEPS)


def norm_by_hand(steps, rho, eta_mu):
    """Wang et al., section 4.1: the closed forms of ||a_i||_1 for each local solver."""
    if rho and eta_mu:  # not in the paper: the steps under a gradient of one, from rest
        moved, speed = 0.0, 0.0
        for _ in range(steps):
            speed = rho * speed + 1 - eta_mu * moved
            moved += speed
        return moved
    if rho:  # "local momentum": (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    if eta_mu:  # "proximal": (1 - (1 - alpha)^tau) / alpha with alpha = eta mu
        return (1 - (1 - eta_mu) ** steps) / eta_mu
    return steps  # "vanilla SGD": tau


def fednova_by_hand(rho=0.0, mu=0.0, weighted=True, slow=0.0, rate=1.0, survives=False):
    """Wang et al., section 5: x <- x - tau_eff sum_i p_i eta d_i, the rule quoted step by step.

    `survives` is a mistake: local momentum that lives on between rounds.
    """
    x, slow_buffer = np.zeros(NUM_FEATURES + 1), np.zeros(NUM_FEATURES + 1)
    old = {i: np.zeros_like(x) for i in tables()}
    for cohort in COHORTS:
        d, norms = {}, {}
        for i in cohort:
            features, y = tables()[i]
            own, buffer = x.copy(), old[i]  # the buffer is zero at the start of every round
            for _ in range(STEPS[i]):
                slope = features.T @ (features @ own - y) / len(y) + mu * (own - x)
                buffer = rho * buffer + slope
                own = own - LR * buffer
            if survives:
                old[i] = buffer
            norms[i] = norm_by_hand(STEPS[i], rho, LR * mu)
            d[i] = (x - own) / (LR * norms[i])  # "d_i = G_i a_i / ||a_i||_1": the normalised gradient
        rows = {i: SIZES[i] if weighted else 1 for i in cohort}
        p = {i: rows[i] / sum(rows.values()) for i in cohort}
        tau_eff = sum(p[i] * norms[i] for i in cohort)  # "tau_eff = sum_i p_i ||a_i||_1"
        step = tau_eff * sum(p[i] * LR * d[i] for i in cohort)
        slow_buffer = slow * slow_buffer + step  # slow momentum; without it the step itself
        x = x - rate * slow_buffer
    return x


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("rho", "mu"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.5), (0.6, 0.5)])
def test_fednova_equals_the_papers_rule(rho, mu, weighted):
    result, _ = trained(fr.algorithms.fednova(local(rho), mu, weighted=weighted))
    assert np.abs(vector(result.params) - fednova_by_hand(rho, mu, weighted)).max() < 1e-12


def test_slow_momentum_is_a_server_optimizer():
    result, _ = trained(fr.algorithms.fednova(local(), optimizer=optimizer.momentum(0.7, 0.8)))
    assert np.abs(vector(result.params) - fednova_by_hand(slow=0.8, rate=0.7)).max() < 1e-12


def test_a_users_own_local_update_counts_as_plain_steps():
    result, _ = trained(fr.algorithms.fednova(uneven()))
    assert np.abs(vector(result.params) - fednova_by_hand()).max() < 1e-12


def models_averaged(x, cohort):
    """The mistake: models averaged with weights p_i tau_eff / tau_i, which do not sum to one."""
    rows = {i: SIZES[i] for i in cohort}
    p = {i: rows[i] / sum(rows.values()) for i in cohort}
    tau_eff = sum(p[i] * STEPS[i] for i in cohort)
    found = np.zeros_like(x)
    for i in cohort:
        features, y = tables()[i]
        own = x.copy()
        for _ in range(STEPS[i]):
            own = own - LR * features.T @ (features @ own - y) / len(y)
        found = found + p[i] * tau_eff / STEPS[i] * own
    return found, sum(p[i] * tau_eff / STEPS[i] for i in cohort)


def test_weights_of_models_that_do_not_sum_to_one_are_another_algorithm():
    x = np.ones(NUM_FEATURES + 1)
    found, total = models_averaged(x, "abc")
    init = {"w": INIT["w"] + 1, "b": INIT["b"] + 1}
    result, _ = trained(fr.algorithms.fednova(local()), rounds=1, init=init)
    right = vector(result.params)
    assert total > 1.2
    assert np.abs(found - right - (total - 1) * x).max() < 1e-12  # exactly the mass that is too much


def test_momentum_that_survives_a_round_is_another_algorithm():
    result, _ = trained(fr.algorithms.fednova(local(0.9)))
    assert np.abs(vector(result.params) - fednova_by_hand(0.9, survives=True)).max() > 0.1


@pytest.mark.slow
# a = (1, 4), b = (1, -1), K = (10, 2): FedAvg's bias stays as eta falls, FedNova's falls with eta
def test_the_error_falls_linearly_in_the_rate():
    budget = {"h0": 10, "h1": 2}
    errors, biases = [], []
    for lr in (0.02, 0.01, 0.005):
        few = fr.learn.budgeted(fr.learn.sgd(quadratic, lr=lr, steps=10), budget)
        rounds = int(1 / lr)  # each shrinks the distance by 15 lr
        errors.append(abs(settled(fr.algorithms.fednova(few), rounds) + 0.6))
        shares = [1 - (1 - lr) ** 10, 1 - (1 - 4 * lr) ** 2]  # FedAvg's fixed point, in closed form
        biases.append(abs((shares[0] - shares[1]) / sum(shares) + 0.6))
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.05)
    assert min(biases) > 0.6 and errors[-1] < 0.02


def test_fednova_settles_where_the_algebra_says():
    budget, lr = {"h0": 10, "h1": 2}, 0.05
    few = fr.learn.budgeted(fr.learn.sgd(quadratic, lr=lr, steps=10), budget)
    shares = [(1 - (1 - lr) ** 10) / 10, (1 - (1 - 4 * lr) ** 2) / 2]
    expected = (shares[0] - shares[1]) / sum(shares)
    assert settled(fr.algorithms.fednova(few), 150) == pytest.approx(expected, abs=1e-9)


def test_a_site_that_took_no_step_is_as_one_that_was_not_asked():
    idle = fr.learn.budgeted(fr.learn.sgd(squares, lr=LR, steps=9), {**STEPS, "b": 0})
    result, _ = trained(fr.algorithms.fednova(idle), rounds=2, schedule=fr.synchronous())
    without = {site: data for site, data in sites().items() if site != "b"}
    steps = {site: STEPS[site] for site in without}
    asked = fr.learn.budgeted(fr.learn.sgd(squares, lr=LR, steps=9), steps)
    other, _ = trained(fr.algorithms.fednova(asked), without, rounds=2, schedule=fr.synchronous())
    assert np.abs(vector(result.params) - vector(other.params)).max() < 1e-12


def test_the_work_of_a_group_is_that_of_each_site():
    from fedray.algorithms.fednova import Accumulate
    from fedray.rng import Key

    keys = [(5 + i, i % 4, Key(0, 3, f"s{i}")) for i in range(30)]
    for weighted in (True, False):
        assert check_rows(Accumulate(LR, 0.9, 0.5, weighted), keys, tolerance=1e-15) == 0.0


@pytest.mark.parametrize("make", [
    lambda: fr.algorithms.fednova(uneven(), mu=-1.0),
    lambda: fr.algorithms.fednova(fr.learn.adamw(squares)),
])  # fmt: skip
def test_what_has_no_known_accumulation_is_refused(make):
    with pytest.raises(ValueError, match="must be SGD|mu=-1.0"):
        make()


def test_a_pull_that_jumps_over_the_anchor_is_refused_by_name():
    with pytest.raises(fr.errors.QuorumError):
        trained(fr.algorithms.fednova(local(), mu=1 / LR), rounds=1)
