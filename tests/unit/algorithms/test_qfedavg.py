"""q-FedAvg beside a loop that is written from the paper, in numpy; what a loss of the server would do."""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.algorithms.qfedavg import ShareOf
from fedray.rng import Key
from fedray.testing import check_rows
from tests.unit.algorithms.cases import (
    COHORTS,
    LR,
    NUM_FEATURES,
    SIZES,
    STEPS,
    tables,
    trained,
    uneven,
    vector,
    with_statistics,
)


def qfedavg_by_hand(q, lipschitz=1 / LR, weighted=False, is_one_loss=False):
    """Li et al., Algorithm 2, its steps quoted. `is_one_loss` is the mistake: one loss for all devices."""
    w = np.zeros(NUM_FEATURES + 1)
    for cohort in COHORTS:  # "Server selects a subset S_t of K devices at random"
        above, below = 0.0, 0.0
        loss = {k: ((tables()[k][0] @ w - tables()[k][1]) ** 2).mean() / 2 + 1e-10 for k in cohort}
        if is_one_loss:
            loss = dict.fromkeys(cohort, np.mean(list(loss.values())))
        for k in cohort:
            x, y = tables()[k]
            own = w.copy()
            for _ in range(STEPS[k]):  # "updates w^t for E epochs of SGD on F_k with step-size eta"
                own = own - LR * x.T @ (x @ own - y) / len(y)
            p = SIZES[k] if weighted else 1
            step = lipschitz * (w - own)  # "Delta w_k^t = L (w^t - w_k^{t+1})"
            above = above + p * loss[k] ** q * step  # "Delta_k^t = F_k^q(w^t) Delta w_k^t"
            # "h_k^t = q F_k^{q-1}(w^t) ||Delta w_k^t||^2 + L F_k^q(w^t)"
            below += p * (q * loss[k] ** (q - 1) * (step**2).sum() + lipschitz * loss[k] ** q)
        w = w - above / below  # "w^{t+1} = w^t - sum Delta_k^t / sum h_k^t"
    return w


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 5.0])
def test_qfedavg_equals_the_papers_loop(q, weighted):
    result, _ = trained(fr.algorithms.qfedavg(uneven(), q, weighted=weighted))
    assert np.abs(vector(result.params) - qfedavg_by_hand(q, weighted=weighted)).max() < 1e-12


def test_another_lipschitz_constant_equals_the_papers_loop():
    result, _ = trained(fr.algorithms.qfedavg(uneven(), 2.0, lipschitz=3.0))
    assert np.abs(vector(result.params) - qfedavg_by_hand(2.0, 3.0)).max() < 1e-12


@pytest.mark.parametrize("weighted", [True, False])
def test_a_power_of_zero_is_federated_averaging(weighted):
    plain, _ = trained(fr.algorithms.fedavg(uneven(), weighted=weighted))
    found, _ = trained(fr.algorithms.qfedavg(uneven(), 0.0, weighted=weighted))
    assert np.abs(vector(plain.params) - vector(found.params)).max() < 1e-13


def test_one_loss_of_the_server_for_all_sites_would_be_told_apart():
    found = vector(trained(fr.algorithms.qfedavg(uneven(), 2.0))[0].params)
    assert np.abs(found - qfedavg_by_hand(2.0, is_one_loss=True)).max() > 1e-2


def test_sites_with_equal_rows_count_twice():
    pair = {name: data for name, data in with_statistics()[1].items() if name in "cd"}
    model = fr.learn.linear(NUM_FEATURES)
    local = fr.learn.sgd(model, lr=0.05, steps=2)
    both, _ = trained(fr.algorithms.qfedavg(local), pair, 2, fr.synchronous(), model.init(0))
    one, _ = trained(fr.algorithms.qfedavg(local), {"c": pair["c"]}, 2, fr.synchronous(), model.init(0))
    assert torch.allclose(both.params.buffer, one.params.buffer, atol=1e-6)


def test_in_single_precision_and_as_one_program_a_round_is_the_same():
    model, data = fr.learn.linear(NUM_FEATURES), with_statistics()[1]
    algorithms = [
        fr.algorithms.qfedavg(fr.learn.sgd(model, lr=0.05, steps=2, form=form), 2.0)
        for form in ("stacked", "loop")
    ]
    stacked, plain = (trained(a, data, 1, init=model.init(0))[0].params for a in algorithms)
    assert torch.allclose(stacked.buffer, plain.buffer, atol=1e-4) and stacked.buffer.abs().max() > 0.1


def test_the_shares_of_a_group_are_those_of_each_site():
    key = Key(0, 0, "a")
    check_rows(
        ShareOf(1.7, 0.1, None), [(0.01 * i**3, 0.3 * i, key) for i in range(30)], tolerance=1e-12
    )


def test_statistics_of_batches_are_averaged_whatever_the_power():
    model, data = with_statistics()
    local = fr.learn.sgd(model, lr=0.01, steps=1)
    plain, far = (
        trained(algorithm, data, 1, fr.synchronous(), model.init(0))[0].params
        for algorithm in (fr.algorithms.fedavg(local, weighted=False), fr.algorithms.qfedavg(local, 3.0))
    )
    cut = plain.schema.trainable
    assert torch.allclose(plain.buffer[:, cut:], far.buffer[:, cut:], rtol=1e-6)
    assert not torch.allclose(plain.buffer[:, :cut], far.buffer[:, :cut], rtol=1e-2)


def resting(round):
    return 0.0


def test_a_rate_of_zero_keeps_the_parameters():
    result, _ = trained(fr.algorithms.qfedavg(uneven(resting), 2.0), rounds=1)
    assert not result.failures and not vector(result.params).any()


def test_settings_and_losses_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="q=-1"):
        fr.algorithms.qfedavg(uneven(), -1)
    with pytest.raises(ValueError, match="below 0"):
        ShareOf(0.5, 0.1, None)(-0.1, 1.0, Key(0, 0, "a"))
