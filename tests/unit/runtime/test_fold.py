"""The exact sum: any split, order or nesting gives equal bits, and the mean is as exact as it says."""

import gc
import math
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedray import tree
from fedray.errors import FoldError, QuorumError
from fedray.rows import Column, Same, expand, stack
from fedray.runtime import fold, hashes, lanes, totals
from fedray.runtime.hashes import sha256_of


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
    merged = fold.added(fold.joined("x", order, exponents), exponents)
    expected = fold.fold(whole, exponents)
    assert all(units(a) == units(b) for a, b in zip(merged.arrays, expected.arrays, strict=True))
    values = [totals.result(parts, exponents, is_exact=True).value
              for parts in (order, [merged], [expected])]
    for found in values[:2]:
        assert torch.equal(found["delta"].buffer, values[2]["delta"].buffer)
        assert found["loss"] == values[2]["loss"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=2, max_size=9), st.data())
def test_the_weighted_mean_is_within_1e12_of_the_largest_value(rows, data):
    weights = data.draw(st.lists(st.integers(1, 5000), min_size=len(rows), max_size=len(rows)))
    operand = fold.operand(stacked(rows).value, torch.tensor(weights, dtype=torch.float64))
    exponents = tuple(max(need, -30) for need in operand.needs)
    total = totals.result([fold.fold(operand, exponents)], exponents, is_exact=True)
    largest = max(abs(x) for row in rows for x in row)
    for column in range(2):
        exact = sum(Fraction(row[column]) * w for row, w in zip(rows, weights, strict=True)) / sum(weights)
        mean = float(total.value["delta"].buffer[0, column]) / sum(weights)
        assert abs(mean - float(exact)) <= 1e-12 * max(largest, 2.0**-30)


def test_float64_statistics_keep_76_bits_below_the_largest_value():
    rows = [[1e9 + 1e-6], [-1e9], [3e-6]]
    operand = fold.operand(stacked(rows, torch.float64).value, torch.ones(3, dtype=torch.float64))
    total = totals.result([fold.fold(operand, operand.needs)], operand.needs, is_exact=False)
    error = float(total["delta"]["w"][0]) - math.fsum(row[0] for row in rows)
    assert abs(error) <= 2.0 ** (operand.needs[0] - 76)


def test_a_lost_row_cannot_count_even_when_it_is_not_finite():
    operand = fold.operand(
        stacked([[1.0], [float("nan")], [2.0]]).value, torch.tensor([1.0, 0.0, 1.0]).double()
    )
    total = totals.result([fold.fold(operand, operand.needs)], operand.needs, is_exact=True)
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
        fold.joined("delta", [part, part], (4,))


def test_a_weight_sum_of_zero_is_a_quorum_error():
    operand = fold.operand(stacked([[1.0]]).value, torch.zeros(1, dtype=torch.float64))
    total = totals.result([fold.fold(operand, (4, 4))], (4, 4), is_exact=True)
    with pytest.raises(QuorumError):
        total.divided_by(0.0)


def test_sites_with_other_shapes_are_refused():
    a = fold.operand(stack([{"w": torch.ones(2)}]).value, torch.ones(1).double())
    b = fold.operand(stack([{"w": torch.ones(3)}]).value, torch.ones(1).double())
    with pytest.raises(FoldError, match="different shapes"):
        fold.joined("delta", [fold.fold(a, (4,)), fold.fold(b, (4,))], (4,))


def reference_lanes(matrix, weights, exponent, num_lanes):
    """Fold as the first version did: whole matrices in float64, lost rows blanked by a copy."""
    blanked = torch.where((weights == 0).view(-1, 1), torch.zeros((), dtype=matrix.dtype), matrix)
    bits = lanes.LANE_BITS[num_lanes]
    rest = torch.ldexp(blanked.to(torch.float64), torch.tensor(bits - exponent))
    found = torch.empty(num_lanes, matrix.shape[1], dtype=torch.float64)
    for lane in range(num_lanes):
        whole = rest.round()
        torch.mv(whole.t(), weights, out=found[lane])
        rest = (rest - whole).mul_(float(2**bits))
    return found.numpy()


def reference_total(found, exponent):
    total = np.zeros(found.shape[1])
    for lane in range(len(found) - 1, -1, -1):
        total += np.ldexp(found[lane], exponent - lanes.LANE_BITS[len(found)] * (lane + 1))
    return total


def units(found):
    """Return what lanes hold, in whole multiples of the finest grid: it may be split in several ways."""
    found = np.asarray(found)
    assert (np.abs(found) < 2.0**63).all() and (found == np.rint(found)).all()
    factors = [2 ** (lanes.LANE_BITS[len(found)] * power) for power in range(len(found) - 1, -1, -1)]
    whole = found.astype(np.int64).astype(object)  # Python's integers, which have no largest one
    return sum(lane * factor for lane, factor in zip(whole, factors, strict=True)).tolist()


def awkward(k, columns, dtype, spread, seed):
    """Values over many magnitudes, zeros of both signs, halves, denormals, and the ends of the range."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randint(-spread, spread + 1, (k, columns), generator=generator).double()
    matrix = (torch.randn(k, columns, generator=generator, dtype=torch.float64) * 2.0**scale).to(dtype)
    kinds = torch.randint(0, 12, (k, columns), generator=generator)
    tiny = 1e-42 if dtype == torch.float32 else 5e-320 if dtype == torch.float64 else 0.0
    for kind, value in enumerate((0.0, -0.0, 0.5, -1.5, tiny, 2.0**-14)):
        matrix[kinds == kind] = value
    return matrix


WEIGHTS = {
    "ones": torch.ones,
    "mixed": lambda k: torch.arange(k) % 5 * 37,  # the first is zero
    "large": lambda k: torch.full((k,), 2**26 // k),
    "all zero": torch.zeros,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("weigh", WEIGHTS)
@pytest.mark.parametrize("k", [1, 2, 7, 50])
def test_the_blocked_fold_has_the_bits_of_the_whole_matrix_fold(k, weigh, dtype, monkeypatch):
    monkeypatch.setattr(lanes, "COLUMNS", 64)  # several blocks, the last one narrower
    monkeypatch.setattr(lanes, "WORK_ELEMENTS", 64 * 8)  # several bunches of rows too
    weights = WEIGHTS[weigh](k).double()
    num_lanes = fold.LeafSpec((), dtype, None).num_lanes
    for seed, spread in enumerate((0, 8, 12 if dtype == torch.float16 else 60)):
        matrix = awkward(k, 133, dtype, spread if dtype.is_floating_point else 20, seed)
        need = lanes.exponent_of(lanes.largest_of(matrix, weights))
        assert need == lanes.exponent_of(
            float(matrix[weights != 0].double().abs().max()) if weights.any() else 0
        )
        for exponent in (need, need + 6, 4, 30, 200, -150):
            if exponent < max(need, -lanes.MAX_EXPONENT):
                continue
            expected = reference_lanes(matrix, weights, exponent, num_lanes)
            whole, summed = units(expected), reference_total(expected, exponent).tobytes()
            for known, small in (({}, 0), ({"need": need}, 0), ({}, 2**14)):
                monkeypatch.setattr(lanes, "SMALL_ELEMENTS", small)
                found = torch.zeros(num_lanes, 133, dtype=torch.float64)
                lanes.accumulate(found, [(matrix, weights)], exponent, **known)
                assert units(found) == whole and found.abs().max() <= 2**52
                total = totals.Total([found.numpy()], exponent, fold.LeafSpec((133,), dtype, None)).whole()
                assert total.numpy().tobytes() == summed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_without_elements_are_empty(dtype):
    value = {"a": torch.zeros(3, 0, 3, dtype=dtype), "b": torch.ones(3, 2, dtype=dtype)}
    operand = fold.operand(value, torch.ones(3, dtype=torch.float64))
    grid = (30, 30)
    for parts in ([fold.fold(operand, grid)], [fold.single(operand, row) for row in range(3)]):
        total = totals.result(parts, grid, is_exact=True)
        assert total.value["a"].shape == (0, 3) and total.divided_by(3)["b"].tolist() == [1.0, 1.0]
        assert total.parts["a"].largest() == 0.0


def test_the_bfloat16_row_of_a_lone_site_travels_as_float32():
    rows = torch.randn(2, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    operand = fold.operand({"w": rows}, torch.ones(2, dtype=torch.float64))
    alone, (spec,) = fold.single(operand, 0), fold.specs(operand.spec)
    assert alone.arrays[0].dtype == np.float32 and alone.nbytes == spec.row_bytes
    parts = [alone, fold.single(operand, 1)]
    sums = [totals.result(given, (4,), is_exact=True) for given in (parts, [fold.fold(operand, (4,))])]
    assert torch.equal(sums[0].value["w"], sums[1].value["w"])
    assert sums[0].divided_by(2)["w"].dtype == torch.bfloat16


@pytest.mark.parametrize("num_lanes", [2, 3])
def test_one_number_is_put_together_as_many_are(num_lanes):
    generator = np.random.default_rng(num_lanes)
    spec = fold.LeafSpec((), torch.float32 if num_lanes == 2 else None, None)
    for exponent in (-3, 0, 30):
        parts = [np.rint(generator.standard_normal((num_lanes, 5)) * 2.0**22) for _ in range(2)]
        whole = totals.Total(parts, exponent, fold.LeafSpec((5,), spec.dtype, None)).whole().numpy()
        for place in range(5):
            one = totals.Total([part[:, place : place + 1] for part in parts], exponent, spec).number()
            assert np.float64(one).tobytes() == whole[place : place + 1].tobytes()
    assert not np.signbit(totals.Total([np.full((num_lanes, 1), -0.0)], 0, spec).number())


@pytest.mark.parametrize("exponent", [-140, -126, -100, 100, 128, 152, 153, 890])
@pytest.mark.parametrize("small", [0, 2**14])
def test_grids_at_the_ends_of_float32_have_the_bits_of_the_whole_matrix_fold(exponent, small, monkeypatch):
    monkeypatch.setattr(lanes, "SMALL_ELEMENTS", small)
    matrix = awkward(3, 40, torch.float32, 0, 1) * 2.0**-20 * (2.0 ** min(exponent, 120))
    weights = torch.tensor([3.0, 1.0, 1e6], dtype=torch.float64)
    found = torch.zeros(2, 40, dtype=torch.float64)
    lanes.accumulate(found, [(matrix, weights)], exponent)
    assert units(found) == units(reference_lanes(matrix, weights, exponent, 2))


@pytest.mark.parametrize("small", [0, 2**14])
def test_several_operands_add_up_in_the_lanes_that_are_given(small, monkeypatch):
    monkeypatch.setattr(lanes, "SMALL_ELEMENTS", small)
    blocks = [awkward(k, 33, torch.float32, 3, k) for k in (1, 60, 2, 70)]
    weights = [torch.arange(len(block)).double() for block in blocks]
    found = torch.zeros(2, 33, dtype=torch.float64)
    lanes.accumulate(found, list(zip(blocks[:2], weights[:2], strict=True)), 12)
    lanes.accumulate(found, list(zip(blocks[2:], weights[2:], strict=True)), 12)
    assert units(found) == units(reference_lanes(torch.cat(blocks), torch.cat(weights), 12, 2))


def test_a_value_shared_by_all_rows_is_added_once_with_the_total_weight(monkeypatch):
    shared = Same({"w": torch.randn(5, generator=torch.Generator().manual_seed(3)), "n": 3.0})
    weights = torch.tensor([5.0, 0.0, 7.0], dtype=torch.float64)
    expanded = fold.operand(expand(shared, 3), weights)
    copied = fold.operand({"w": shared.value["w"].repeat(3, 1), "n": expanded.matrices[1]}, weights)
    rows = []
    monkeypatch.setattr(lanes, "SMALL_ELEMENTS", 0)
    inner = lanes._bunches
    monkeypatch.setattr(
        lanes, "_bunches", lambda found, most: rows.append(len(found[0][1])) or inner(found, most)
    )
    a, b = fold.fold(expanded, (4, 4)), fold.fold(copied, (4, 4))
    assert all(np.array_equal(x, y) for x, y in zip(a.arrays, b.arrays, strict=True))
    assert rows == [1, 3, 3, 3] and expanded.needs == copied.needs and expanded.nbytes == 20 + 24


@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_total_read_in_blocks_has_the_bits_of_the_whole(num_parts, dtype, monkeypatch):
    monkeypatch.setattr(totals, "COLUMNS", 64)  # several blocks, the last one narrower
    rows = [awkward(2, 157, dtype, 8, seed) for seed in range(num_parts)]
    spec, weights = fold.LeafSpec((157,), dtype, None), torch.tensor([3.0, 5.0], dtype=torch.float64)
    parts = [fold.fold(fold.operand(matrix, weights), (20,)) for matrix in rows]
    every = reference_lanes(torch.cat(rows), weights.repeat(num_parts), 20, spec.num_lanes)
    expected = torch.from_numpy(reference_total(every, 20))
    total = totals.result([frozen(part) for part in parts], (20,), is_exact=True)
    assert torch.equal(total.value, expected)
    assert torch.equal(total.divided_by(7), (expected / 7).to(dtype))
    assert total.parts.largest() == float(expected.abs().max())
    assert sha256_of({"w": total.parts}) == sha256_of({"w": expected})
    monkeypatch.setattr(hashes, "HASHED_BYTES", 64)
    monkeypatch.setattr(hashes, "BLOCK_WORDS", 32)
    assert sha256_of({"w": total.parts}) == sha256_of({"w": expected})


def frozen(part):
    for array in part.arrays:
        array.flags.writeable = False
    return part


def partial(seed, weight=3):
    operand = fold.operand(
        {"w": torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))},
        torch.tensor([1.0, weight - 1.0], dtype=torch.float64),
    )
    return fold.fold(operand, (4,))


def test_adding_writes_to_no_part():
    parts = [frozen(partial(seed)) for seed in range(4)]
    before = [part.arrays[0].copy() for part in parts]
    merged = fold.added(fold.joined("w", parts, (4,)), (4,))
    assert np.array_equal(merged.arrays[0], sum(before)) and merged.weight == 12
    assert all(np.array_equal(part.arrays[0], old) for part, old in zip(parts, before, strict=True))


def test_rows_of_lone_sites_and_lanes_merge_to_the_bits_of_one_fold():
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))
    weights = torch.tensor([3.0, 1.0, 9.0, 2.0], dtype=torch.float64)
    whole = fold.operand({"w": rows}, weights)
    parts = [fold.single(whole, 0), fold.fold(fold.operand({"w": rows[1:3]}, weights[1:3]), (4,))]
    parts.append(fold.single(whole, 3))
    merged = fold.added(fold.joined("w", [frozen(part) for part in parts], (4,)), (4,))
    assert units(merged.arrays[0]) == units(fold.fold(whole, (4,)).arrays[0])


def test_a_sum_and_its_mean_are_gone_when_nobody_holds_them_without_the_garbage_collector():
    gc.disable()
    try:
        total = totals.result([partial(1)], (4,), is_exact=True)
        mean = total.divided_by(3)
        held = [weakref.ref(total.parts["w"]), weakref.ref(mean["w"])]
        del total, mean
        assert [reference() for reference in held] == [None, None]
    finally:
        gc.enable()


def test_the_next_grid_is_that_of_the_largest_mean():
    part = partial(2, weight=7)
    total = totals.result([part], (4,), is_exact=True)
    exponent = math.frexp(float((total.value["w"] / 7).abs().max()))[1]
    assert totals.next_exponents(total.parts, [part]) == (exponent + fold.HEADROOM_BITS,)
    assert totals.next_exponents(total.value, [part]) == (exponent + fold.HEADROOM_BITS,)


def test_a_fast_sum_is_one_float32_buffer_and_numbers_beside_it_stay_exact():
    rows = [[0.5, 2.0, -1.0], [1.5, 0.25, 3.0], [float("nan")] * 3]
    weights = torch.tensor([2.0, 3.0, 0.0], dtype=torch.float64)
    operand = fold.operand(stacked(rows).value, weights, "fast")
    assert operand.needs[0] == lanes.NO_NEED and operand.needs[1] == 1
    part = fold.fold(operand, (4, 30))
    assert [(array.dtype, array.shape) for array in part.arrays] == [
        (np.float32, (1, 32)),
        (np.float64, (3, 1)),
    ]
    mean = totals.result(fold.joined("x", [part, fold.fold(operand, (4, 30))], (4, 30)), (4, 30), True)
    assert mean.divided_by(10)["delta"]["w"].tolist() == pytest.approx([1.1, 0.95, 1.4], rel=1e-6)
    assert mean.divided_by(10)["loss"] == 1.1
