"""The exact sum: any split, order or nesting gives equal bits, and the mean is as exact as it says."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray import tree
from fedray.errors import FoldError, QuorumError
from fedray.rows import Column, stack
from fedray.runtime import fold


def stacked(rows, dtype=torch.float32):
    return stack(
        [
            {"delta": tree.flatten({"w": torch.tensor(row, dtype=dtype)}), "loss": float(row[0])}
            for row in rows
        ]
    )


def parts_of(rows, weights, exponents, cuts):
    parts, start = [], 0
    for stop in [*cuts, len(rows)]:
        if stop > start:
            operand = fold.operand(
                stacked(rows[start:stop]).value, torch.tensor(weights[start:stop], dtype=torch.float64)
            )
            parts.append(fold.single(operand, 0) if stop - start == 1 else fold.fold(operand, exponents))
        start = stop
    return parts


numbers = st.floats(-1000, 1000, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=2, max_size=9), st.data())
def test_every_split_and_order_gives_equal_bits(rows, data):
    weights = data.draw(st.lists(st.integers(1, 5000), min_size=len(rows), max_size=len(rows)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows)), max_size=4)))
    whole = fold.operand(stacked(rows).value, torch.tensor(weights, dtype=torch.float64))
    exponents = tuple(max(need, fold.START_EXPONENT) for need in whole.needs)
    parts = parts_of(rows, weights, exponents, cuts)
    order = data.draw(st.permutations(parts))
    merged = fold.lifted(fold.merge("x", order, exponents), exponents)
    expected = fold.fold(whole, exponents)
    assert all(np.array_equal(a, b) for a, b in zip(merged.arrays, expected.arrays, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=2, max_size=9), st.data())
def test_the_weighted_mean_is_within_1e12_of_the_largest_value(rows, data):
    weights = data.draw(st.lists(st.integers(1, 5000), min_size=len(rows), max_size=len(rows)))
    operand = fold.operand(stacked(rows).value, torch.tensor(weights, dtype=torch.float64))
    exponents = tuple(max(need, -30) for need in operand.needs)
    total = fold.result(fold.fold(operand, exponents), exponents, is_exact=True)
    largest = max(abs(x) for row in rows for x in row)
    for column in range(2):
        exact = sum(Fraction(row[column]) * w for row, w in zip(rows, weights, strict=True)) / sum(weights)
        mean = float(total.value["delta"].buffer[0, column]) / sum(weights)
        assert abs(mean - float(exact)) <= 1e-12 * max(largest, 2.0**-30)


def test_float64_statistics_keep_76_bits_below_the_largest_value():
    rows = [[1e9 + 1e-6], [-1e9], [3e-6]]
    operand = fold.operand(stacked(rows, torch.float64).value, torch.ones(3, dtype=torch.float64))
    total = fold.result(fold.fold(operand, operand.needs), operand.needs, is_exact=False)
    error = float(total["delta"]["w"][0]) - math.fsum(row[0] for row in rows)
    assert abs(error) <= 2.0 ** (operand.needs[0] - 76)


def test_a_lost_row_cannot_count_even_when_it_is_not_finite():
    operand = fold.operand(
        stacked([[1.0], [float("nan")], [2.0]]).value, torch.tensor([1.0, 0.0, 1.0]).double()
    )
    total = fold.result(fold.fold(operand, operand.needs), operand.needs, is_exact=True)
    assert float(total.divided_by(2.0)["delta"]["w"][0]) == 1.5


def test_weights_beyond_53_bits_are_refused_with_the_remedy():
    part = fold.LaneSum(
        fold.spec_of({"x": Column(torch.ones(1).double(), False)}),
        (4,),
        (np.ones((3, 1)),),
        2**26,
        False,
    )
    with pytest.raises(FoldError, match="weight_cap"):
        fold.merge("delta", [part, part], (4,))


def test_a_weight_sum_of_zero_is_a_quorum_error():
    operand = fold.operand(stacked([[1.0]]).value, torch.zeros(1, dtype=torch.float64))
    total = fold.result(fold.fold(operand, (4, 4)), (4, 4), is_exact=True)
    with pytest.raises(QuorumError):
        total.divided_by(0.0)


def test_sites_with_other_shapes_are_refused():
    a = fold.operand(stack([{"w": torch.ones(2)}]).value, torch.ones(1).double())
    b = fold.operand(stack([{"w": torch.ones(3)}]).value, torch.ones(1).double())
    with pytest.raises(FoldError, match="different shapes"):
        fold.merge("delta", [fold.fold(a, (4,)), fold.fold(b, (4,))], (4,))
