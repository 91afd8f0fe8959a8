"""The generators hold the facts that performance.md states, and all systems start from the same bytes."""

import hashlib
from pathlib import Path

import learning
import numpy as np
import pytest
import torch
import workloads


@pytest.fixture(scope="module")
def w1(tmp_path_factory: pytest.TempPathFactory) -> workloads.Data:
    path = tmp_path_factory.mktemp("data") / "w1.npz"
    workloads.write("w1", path)
    return workloads.read(path)


def test_w1_has_the_stated_rows(w1: workloads.Data) -> None:
    assert len(w1.x) == 180_591 and len(w1.x) + len(w1.x_test) == 200_859
    assert (w1.sizes.min(), w1.sizes.max(), len(w1.sizes)) == (38, 11_265, 200)
    assert np.median(w1.sizes) == 627.5  # stated as 628


def test_w1_is_stored_as_float32(w1: workloads.Data) -> None:
    assert {w1.x.dtype, w1.y.dtype, *(value.dtype for value in w1.init.values())} == {np.dtype("float32")}


def test_w1_costs_the_stated_operations(w1: workloads.Data) -> None:
    # performance.md: 0.143 CPU s at 104 GFLOP/s
    assert w1.flops_per_round(range(1, 3)) / 104e9 == pytest.approx(0.143, abs=5e-4)


def test_one_site_learns_from_the_initial_weights(w1: workloads.Data) -> None:
    module, largest = learning.started(w1), int(w1.sizes.argmax())
    x, y = map(torch.from_numpy, w1.site(largest))
    loss = learning.loss_of(w1.workload)
    learning.train_plain(module, x, y, learning.batch_order(0, largest, len(x)), loss)
    before = learning.metric(w1, w1.init)
    after = learning.metric(w1, {name: value.numpy() for name, value in module.state_dict().items()})
    assert before < 0.6 < 0.75 < after


def test_lean_steps_equal_plain_steps(w1: workloads.Data) -> None:
    plain, lean, loss = learning.started(w1), learning.started(w1), learning.loss_of(w1.workload)
    x, y = map(torch.from_numpy, w1.site(0))
    order = learning.batch_order(3, 0, len(x))
    learning.train_plain(plain, x, y, order, loss)
    learning.train_lean(lean, x, y, order, loss)
    torch.testing.assert_close(dict(lean.named_parameters()), dict(plain.named_parameters()))


def test_w2_draws_the_same_bytes_every_time(tmp_path: Path) -> None:
    digests = set()
    for name in ("a.npz", "b.npz"):
        workloads.write("w2", tmp_path / name)
        data = workloads.read(tmp_path / name)
        arrays = (data.x, data.y, data.x_test, data.init["weight"])
        digests.add(hashlib.sha256(b"".join(array.tobytes() for array in arrays)).digest())
    assert len(digests) == 1 and data.x.shape == (100_000, 64) and data.x_test.shape == (10_000, 64)


def test_w2_cohort_is_sorted_and_another_each_round() -> None:
    first, second = (workloads.cohort(workloads.WORKLOADS["w2"], round) for round in (0, 1))
    assert len(set(first.tolist())) == 100 and (np.diff(first) > 0).all()
    assert first.tolist() == np.sort(np.random.default_rng(1000).choice(1000, 100, replace=False)).tolist()
    assert first.tolist() != second.tolist()


def test_batch_order_is_the_stated_permutation() -> None:
    expected = torch.randperm(50, generator=torch.Generator().manual_seed(2 * 100_003 + 7))
    assert torch.equal(learning.batch_order(2, 7, 50), expected)


@pytest.mark.parametrize(("name", "count"),
                         [("w1", 16_641), ("w2", 65), ("w3", 1_663_370), ("w4", 24_711_690)])
def test_weights_fit_the_module(name: str, count: int) -> None:
    workload = workloads.WORKLOADS[name]
    shapes = {key: tuple(value.shape) for key, value in learning.module_of(workload).state_dict().items()}
    assert workload.num_parameters == count
    assert {key: value.shape for key, value in workloads.initial_weights(workload).items()} == shapes


def test_initial_weights_lie_within_one_over_the_root_of_the_fan_in() -> None:
    weights = workloads.initial_weights(workloads.WORKLOADS["w3"])
    assert 0.99 / 5 < np.abs(weights["0.weight"]).max() <= 1 / 5
    assert np.abs(weights["9.bias"]).max() <= 1 / np.sqrt(512)


def test_convolution_counts_its_positions() -> None:
    # performance.md: W3 takes 1.7 CPU s at 255 GFLOP/s for 6,000 images
    assert workloads.WORKLOADS["w3"].flops_per_row * 6000 / 255e9 == pytest.approx(1.7, abs=0.05)


def test_auroc_counts_ties_one_half() -> None:
    score, label = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0.0, 0.0, 1.0, 1.0])
    assert learning.auroc(score, label) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
