"""FedDyn beside a loop that is written from the paper, in numpy; what each site keeps, and when."""

import numpy as np
import pytest
import torch

import fedray as fr
from tests.unit.algorithms.cases import (
    AT_ZERO,
    COHORTS,
    LR,
    NUM_FEATURES,
    STEPS,
    kept,
    quadratic,
    settled,
    tables,
    trained,
    two_quadratics,
    uneven,
    vector,
    with_statistics,
)
from tests.unit.runtime.toy import Breaks

NUM_SITES = 5


def feddyn_by_hand(alpha, cohorts=COHORTS):
    """Acar et al., Algorithm 1, its lines quoted. Returns theta, h and the gradient kept at every device."""
    theta, h = np.zeros(NUM_FEATURES + 1), np.zeros(NUM_FEATURES + 1)
    gradients = {k: np.zeros(NUM_FEATURES + 1) for k in tables()}  # "Input: ... grad L_k(theta_k^0) = 0"
    for cohort in cohorts:  # "for t = 1, ..., T do: Sample devices P_t, transmit theta^{t-1}"
        models = {}
        for k in cohort:  # "for each device k in P_t, and in parallel do"
            x, y = tables()[k]
            own = theta.copy()  # "theta_k^t = argmin L_k(theta) - <grad L_k(theta_k^{t-1}), theta>
            for _ in range(STEPS[k]):  # + alpha/2 ||theta - theta^{t-1}||^2", by some gradient steps
                slope = x.T @ (x @ own - y) / len(y)
                own = own - LR * (slope - gradients[k] + alpha * (own - theta))
            gradients[k] = gradients[k] - alpha * (own - theta)  # "grad L_k(theta_k^t) = ... "
            models[k] = own
        h = h - alpha / NUM_SITES * sum(models[k] - theta for k in cohort)  # "h^t = h^{t-1} - alpha/m (...)"
        mean = sum(models.values()) / len(cohort)
        theta = mean - h / alpha if alpha else mean  # "theta^t = (1/|P_t| sum theta_k^t) - h^t / alpha"
    return theta, h, gradients


@pytest.mark.parametrize("alpha", [0.0, 0.1, 2.0])
def test_feddyn_equals_the_papers_loop(alpha):
    result, memories = trained(fr.algorithms.feddyn(uneven(), NUM_SITES, alpha), look=kept)
    theta, h, gradients = feddyn_by_hand(alpha)
    assert np.abs(vector(result.params) - theta).max() < 1e-12
    assert np.abs(vector(result.state.memory) - h).max() < 1e-12
    assert max(np.abs(memories[k] - gradients[k]).max() for k in gradients) < 1e-12


def test_the_servers_memory_is_the_mean_over_all_sites_also_those_never_asked():
    result, memories = trained(fr.algorithms.feddyn(uneven(), NUM_SITES, 0.5), rounds=1, look=kept)
    found = {k: np.zeros(4) if memory is None else memory for k, memory in memories.items()}
    assert {k for k in found if not found[k].any()} == {"d", "e"}
    assert np.abs(vector(result.state.memory) - sum(found.values()) / NUM_SITES).max() < 1e-12


def test_a_site_that_was_not_counted_keeps_its_memory():
    broken = Breaks(uneven(), ("b",), 2, "nan")  # b is asked in rounds 0, 2 and 3
    schedule = fr.synchronous(cohort=3, sampling="cyclic", quorum=0.5)
    algorithm = fr.algorithms.feddyn(broken, NUM_SITES, 0.5)
    result, memories = trained(algorithm, rounds=3, schedule=schedule, look=kept)
    theta, _, gradients = feddyn_by_hand(0.5, cohorts=["abc", "ade", "cd"])
    assert np.abs(vector(result.params) - theta).max() < 1e-12
    assert max(np.abs(memories[k] - gradients[k]).max() for k in gradients) < 1e-12


# One exact-by-hand round on a = (1, 4), b = (1, -1) from x = 0, two steps of 0.1, alpha = 5:
# step 1: y = 0.1 a b; step 2: y + 0.1 (a (b - y) - alpha y)
def test_the_regulariser_acts_on_the_gradient_and_is_squared():
    firsts = [0.1 * a * b for a, b in ((1.0, 1.0), (4.0, -1.0))]
    for alpha in (0.0, 5.0):
        ends = [
            y + 0.1 * (a * (b - y) - alpha * y)
            for y, a, b in zip(firsts, (1.0, 4.0), (1.0, -1.0), strict=True)
        ]
        mean = sum(ends) / 2
        h = -alpha * mean  # all sites took part
        expected = mean - (h / alpha if alpha else 0.0)
        local = fr.learn.sgd(quadratic, lr=0.1, steps=2)
        found = settled(fr.algorithms.feddyn(local, 2, alpha), 1)
        assert found == pytest.approx(expected, abs=1e-15)
    inert = settled(fr.algorithms.feddyn(fr.learn.sgd(quadratic, lr=0.1, steps=2), 2, 0.0), 1)
    # alpha/2 ||y - x||, not squared, would pull by alpha/2 whatever the distance
    unsquared = sum(y + 0.1 * (a * (b - y) - 2.5 * np.sign(y)) for y, a, b in
                    zip(firsts, (1.0, 4.0), (1.0, -1.0), strict=True))  # fmt: skip
    assert abs(found - inert) > 0.05 and abs(found - unsquared) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "rounds"), [
    (fr.synchronous(), 80), (fr.synchronous(cohort=1, sampling="cyclic"), 120),
])  # fmt: skip
@pytest.mark.parametrize(("steps", "alpha"), [(40, 0.5), (40, 2.0)])
def test_feddyn_reaches_the_optimum_under_full_and_cyclic_participation(schedule, rounds, steps, alpha):
    algorithm = fr.algorithms.feddyn(fr.learn.sgd(quadratic, lr=0.1, steps=steps), 2, alpha)
    result, _ = trained(algorithm, two_quadratics(), rounds, schedule, AT_ZERO)
    assert float(result.params["x"]) == pytest.approx(-0.6, abs=1e-8)


def test_statistics_of_batches_are_averaged_whatever_the_memory():
    model, data = with_statistics()
    local = fr.learn.sgd(model, lr=0.01, steps=1)
    found = [
        trained(fr.algorithms.feddyn(local, NUM_SITES, alpha), data, 1, fr.synchronous(), model.init(0))[0]
        for alpha in (0.0, 0.5)
    ]
    cut = found[0].params.schema.trainable
    assert torch.equal(found[0].params.buffer[:, cut:], found[1].params.buffer[:, cut:])
    assert not found[1].state.memory.buffer[:, cut:].any()


def test_a_negative_strength_is_refused():
    with pytest.raises(ValueError, match="alpha=-1"):
        fr.algorithms.feddyn(uneven(), NUM_SITES, -1)
