"""Vertical logistic regression beside gradient descent on all columns in one place, in numpy; and who must be
there.
"""

import numpy as np
import pytest
import torch

import fedray as fr
from fedray.errors import DataError, FoldError, PolicyError, QuorumError, ScheduleError
from fedray.learn.metrics import auroc
from fedray.runtime.checkpoint import Checkpoints
from tests.unit.algorithms.cases import leaving
from tests.unit.algorithms.vertical_cases import (
    PARTS,
    ROWS,
    Failing,
    aligned,
    batch_of,
    fitted,
    state_of,
    table,
)

ZERO = {"bias": torch.zeros((), dtype=torch.float64)}
LR, L2 = 0.5, 0.05


def pooled_by_hand(rounds, batch_size=None, start=None, bias=0.0, lr=LR, l2=L2, rows=ROWS):
    """Gradient descent of mean log loss + l2/2 |w|^2 on all columns. Returns weights, intercept, losses."""
    x, y = table()
    x, y = x[:rows], y[:rows]
    w, b, losses = np.zeros(6) if start is None else start.copy(), bias, []
    for round in range(rounds):
        at = slice(None) if batch_size is None else batch_of(round, batch_size, rows)
        z = x[at] @ w + b
        losses.append(np.mean(np.logaddexp(0, z) - y[at] * z))
        r = 1 / (1 + np.exp(-z)) - y[at]
        w, b = w - lr * (x[at].T @ r / len(r) + l2 * w), b - lr * r.mean()
    return w, b, losses


def newton():
    """Return weights and intercept that minimise the mean log loss + L2/2 |w|^2."""
    x, y = table()
    x = np.hstack([x, np.ones((ROWS, 1))])
    w, penalty = np.zeros(7), L2 * np.diag([1.0] * 6 + [0.0])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ w))
        slope = x.T @ (p - y) / ROWS + penalty @ w
        w -= np.linalg.solve((x.T * (p * (1 - p))) @ x / ROWS + penalty, slope)
    return w[:6], w[6]


def together(kept):
    return np.concatenate([kept[site].numpy() for site in PARTS])


@pytest.mark.parametrize("batch_size", [None, 16])  # 60 records: three batches of 16 and one of 12
def test_it_equals_gradient_descent_on_all_columns_in_one_place(batch_size):
    start = np.random.default_rng(2).normal(size=6)
    given = {site: start[part] for site, part in PARTS.items()}
    algorithm = fr.algorithms.vertical_logistic(LR, batch_size, L2, given)
    result, kept = fitted(algorithm, {"bias": torch.tensor(0.2).double()}, rounds=9)
    w, b, losses = pooled_by_hand(9, batch_size, start, float(torch.tensor(0.2)))
    assert np.abs(together(kept) - w).max() < 1e-12
    assert abs(float(result.params["bias"]) - b) < 1e-12
    told = [record.metrics["loss"] for record in result.metrics]
    assert np.abs(np.array(told) - losses).max() < 1e-12 and len(set(losses)) == 9


def test_it_reaches_the_optimum_of_all_columns():
    result, kept = fitted(fr.algorithms.vertical_logistic(2.0, l2=L2), ZERO, rounds=400)
    w, b = newton()
    assert np.abs(together(kept) - w).max() < 1e-9
    assert abs(float(result.params["bias"]) - b) < 1e-9


def test_two_sites_with_the_same_columns_share_a_weight():
    data = aligned()
    data["c"] = data["a"]
    _, kept = fitted(fr.algorithms.vertical_logistic(LR), ZERO, rounds=5, data=data)
    assert torch.equal(kept["a"], kept["c"]) and bool(kept["a"].all())


@pytest.mark.parametrize("holders", [(), ("a", "b")])
def test_none_or_two_holders_of_labels_are_refused(holders):
    with pytest.raises(DataError, match=f"{len(holders)} of 3 sites hold labels"):
        fitted(fr.algorithms.vertical_logistic(LR), ZERO, 1, aligned(holders))


@pytest.mark.parametrize("packs", [1, 3])
def test_sites_with_unequal_numbers_of_records_are_refused(packs):
    data = aligned() | {"c": aligned(rows=50)["c"]}
    with pytest.raises(FoldError, match="every site must return the same structure"):
        fitted(fr.algorithms.vertical_logistic(LR), ZERO, 1, data, packs)


def failing(in_round, monkeypatch, name):
    """Return the algorithm with a step of site c that raises in one round."""
    import sys

    module = sys.modules["fedray.algorithms.vertical_logistic"]
    made = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *settings: Failing(made(*settings), "c", in_round))
    return fr.algorithms.vertical_logistic(LR)


@pytest.mark.parametrize("step", ["Scores", "Descended"])  # in the first exchange, and in the last
def test_a_round_without_one_site_is_none_for_everybody(step, monkeypatch):
    algorithm = failing(3, monkeypatch, step)
    schedule = fr.synchronous(quorum=0.5, retries=0)
    with fr.simulate(aligned(), packs=3) as federation:
        with pytest.raises(QuorumError, match="2 of 3 sites delivered and each is needed") as caught:
            fr.fit(algorithm, federation, init=ZERO, rounds=5, schedule=schedule)
        federation.aggregator.root.commit([])
        kept, state = state_of(federation), federation.aggregator.state
    w, b, _ = pooled_by_hand(3, l2=0.0)
    assert np.abs(together(kept) - w).max() < 1e-12 and abs(float(state.params["bias"]) - b) < 1e-12
    assert "value" not in str(caught.value) and "ArithmeticError" in str(caught.value)


def test_a_schedule_that_leaves_sites_out_is_refused():
    with pytest.raises(ScheduleError, match="needs all 3 sites"):
        fitted(fr.algorithms.vertical_logistic(LR), ZERO, 1, schedule=fr.synchronous(cohort=2))
    schedule = fr.synchronous(sampling="poisson", cohort=1.0)  # asks all of them with probability 1
    assert fitted(fr.algorithms.vertical_logistic(LR), ZERO, 1, schedule=schedule)[0].rounds == 1


def test_labels_leave_by_name_and_a_policy_may_refuse_them():
    algorithm = fr.algorithms.vertical_logistic(LR)
    assert leaving(algorithm) == {"scores": {"data", "state", "id", "rng"}, "label": {"data", "rng"}}
    with pytest.raises(PolicyError, match="label"):
        fr.compile(algorithm, [fr.passes.require()])
    assert "label" in fr.egress(fr.compile(algorithm, [fr.passes.require(visible=("label",))]))


@pytest.mark.parametrize("init", [{"w": torch.zeros(1)}, {"bias": torch.zeros(1), "weight": torch.ones(6)}])
def test_weights_are_not_given_to_the_server(init):
    with pytest.raises(ValueError, match="start="):
        fitted(fr.algorithms.vertical_logistic(LR), init, 1)


def test_test_rows_are_measured_where_the_labels_are():
    algorithm = fr.algorithms.vertical_logistic(LR)
    with fr.simulate(aligned(test=20), packs=2) as federation:
        program = {"test": algorithm.evaluate("test")}
        result = fr.fit(algorithm, federation, init=ZERO, rounds=10, evaluate=program)
        federation.aggregator.root.commit([])
        kept = state_of(federation)
    x, y = table()
    score = x[40:] @ together(kept) + float(result.params["bias"])
    (record,) = result.test.sites
    assert record["site"] == "b" and record["n"] == 20
    assert record["auroc"] == pytest.approx(auroc(torch.from_numpy(y[40:] > 0), torch.from_numpy(score)))
    loss = np.mean(np.logaddexp(0, score) - y[40:] * score)
    assert result.test.metrics["loss"] == pytest.approx(loss, abs=1e-12)
    told = result.test.metrics
    assert abs(told["auroc"] - record["auroc"]) <= told["auroc_error_bound"] + 1e-12
    w, _, _ = pooled_by_hand(10, l2=0.0, rows=40)
    assert np.abs(together(kept) - w).max() < 1e-12  # the test rows were not trained on


def test_bits_depend_neither_on_packs_nor_on_an_interruption(tmp_path):
    def run(rounds, packs, **more):
        result, kept = fitted(fr.algorithms.vertical_logistic(LR, 16), ZERO, rounds, packs=packs, **more)
        return result.params_sha256, {site: weight.numpy().tobytes() for site, weight in kept.items()}

    expected = run(4, 1)
    assert [run(4, packs) for packs in (2, 3)] == [expected, expected]
    run(2, 2, checkpoint=Checkpoints(tmp_path))
    assert run(4, 2, checkpoint=Checkpoints(tmp_path), resume=True) == expected
