"""Values in the ring: known answers, the bound of the error, and room for the extreme."""

import os

import numpy as np
import pytest

from fedray.errors import SecrecyError
from fedray.secrecy.encoding import NUM_LANES, Encoding, decode, encode

HOSPITALS = Encoding(num_sites=200, bound=1.0)
X = np.array([[0.5, -0.25, 1.5, 1e-9, -1.0]])


def signed(words):
    return words.view(words.dtype.str.replace("u", "i")).tolist()


def test_known_answer_k4():
    words = encode(X, np.array([0.5]), HOSPITALS)
    assert (HOSPITALS.q_max, HOSPITALS.q_weight) == (10_737_418, 21_474_836)
    assert signed(words) == [[2_684_354, -1_342_177, 5_368_709, 0, -5_368_709, 10_737_418, 1, 1]]


def test_known_answer_k4_does_not_depend_on_the_width_of_the_input():
    narrow = encode(X.astype(np.float32), np.array([0.5]), HOSPITALS)
    assert (narrow == encode(X, np.array([0.5]), HOSPITALS)).all()


@pytest.mark.parametrize(("num_sites", "q_max"), [(200, 10_737_418), (8, 268_435_455), (1, 2**31 - 1)])
@pytest.mark.parametrize("bound", [1.0, 0.1, 3.7])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_sum_of_all_sites_at_the_bound_does_not_wrap(num_sites, q_max, bound, rounding):
    encoding = Encoding(num_sites=num_sites, bound=bound, rounding=rounding)
    extreme = np.array([[9e30, -9e30, bound, -bound]], np.float32)
    words = encode(extreme, np.array([7.0]), encoding)
    assert [abs(word) for word in signed(words)[0][:4]] == [q_max] * 4
    assert num_sites * q_max < 2**31
    total = words[0] * np.uint32(num_sites)
    assert decode(total, encoding, num_sites).mean == pytest.approx([bound, -bound] * 2)


@pytest.mark.parametrize("bits", [32, 64])
def test_mean_lies_within_the_bound_of_the_error(bits):
    encoding = Encoding(num_sites=50, bound=1.0, max_weight=300.0, bits=bits)
    draws = np.random.default_rng(3)
    x, weights = draws.uniform(-1, 1, (50, 401)), draws.integers(1, 300, 50).astype(float)
    sums = decode(encode(x, weights, encoding).sum(0, encoding.dtype), encoding, 50)
    exact = weights @ x / weights.sum()
    # the weight lane rounds too: its share of the error is 1e-8, that of the values 1e-8 / 0.5
    allowed = encoding.error_bound(weights.mean() / 300) + 0.5 / (encoding.q_weight * weights.mean() / 300)
    assert np.abs(sums.mean - exact).max() <= allowed + 1e-15
    assert sums.weight * 300 == pytest.approx(weights.sum(), rel=1e-7)


def test_error_bound_of_the_specification():
    assert HOSPITALS.error_bound(0.1) == pytest.approx(4.7e-7, rel=0.01)


def test_sixty_four_bits_keep_every_integer_of_float64():
    encoding = Encoding(num_sites=3, bound=1.0, bits=64)
    assert encoding.q_max == 2**53
    assert signed(encode(np.array([[1.0, -1.0]]), np.array([1.0]), encoding))[0][:2] == [2**53, -(2**53)]


def test_cut_values_are_counted_and_weights_over_the_cap_count_as_it():
    encoding = Encoding(num_sites=3, bound=1.0, max_weight=10.0)
    rows = encode(np.array([[2.0, 0.5, -3.0], [1.0, 0.0, 0.0]]), np.array([40.0, 5.0]), encoding)
    sums = decode(rows.sum(0, np.uint32), encoding, 2)
    assert (sums.num_sites, sums.num_cut) == (2, 2)
    assert sums.weight == pytest.approx(1.5)


def test_a_row_encodes_to_the_same_words_alone_and_among_others():
    draws = np.random.default_rng(1)
    x, weights = draws.normal(size=(5, 70_000)).astype(np.float32), draws.uniform(0, 1, 5)
    together = encode(x, weights, HOSPITALS)
    alone = [encode(x[i : i + 1], weights[i : i + 1], HOSPITALS)[0] for i in range(5)]
    assert (together == np.stack(alone)).all()


def test_stochastic_rounding_is_right_on_average_and_never_off_by_one_step():
    encoding = Encoding(num_sites=200, bound=1.0, rounding="stochastic")
    x = np.full((1, 100_000), (1234 + 0.3) / encoding.q_max)
    words = encode(x, np.array([1.0]), encoding, lambda size: bytes(range(size)))[0, :-NUM_LANES]
    assert set(words.tolist()) == {1234, 1235}
    # 5 standard deviations of a share of .3 among 100,000
    assert words.mean() - 1234 == pytest.approx(0.3, abs=5 * (0.21 / 100_000) ** 0.5)


def test_stochastic_rounding_draws_a_key_for_each_row():
    encoding = Encoding(num_sites=200, bound=1.0, rounding="stochastic")
    rows = encode(np.full((2, 400), 1e-6), np.ones(2), encoding, os.urandom)
    assert (rows[0] != rows[1]).any()


def test_noise_keeps_eight_deviations_of_room():
    encoding = Encoding(num_sites=200, bound=2.0, noise_std=9.0)
    largest = [200 * q + 8 * 9.0 * q / 2.0 for q in (encoding.q_max, encoding.q_max + 1)]
    assert largest[0] <= 2**31 - 1 < largest[1]


def test_too_much_noise_is_refused():
    with pytest.raises(ValueError, match="leave no step"):
        Encoding(num_sites=10, bound=1.0, noise_std=1e9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_abuse_1_value_that_is_no_number_is_refused_before_anything_is_encoded(bad):
    with pytest.raises(SecrecyError, match="E_NONFINITE"):
        encode(np.array([[0.0, bad]], np.float32), np.array([1.0]), HOSPITALS)


def test_large_finite_values_are_not_taken_for_infinite():
    words = encode(np.array([[1e38, -1e38]], np.float32), np.array([1.0]), HOSPITALS)
    assert signed(words)[0][:2] == [HOSPITALS.q_max, -HOSPITALS.q_max]


def test_abuse_16_wrong_count_is_refused():
    rows = encode(np.zeros((3, 4)), np.ones(3), HOSPITALS)
    with pytest.raises(SecrecyError, match="E_COUNT"):
        decode(rows.sum(0, np.uint32), HOSPITALS, 4)


def test_weights_of_zero_have_no_mean():
    rows = encode(np.zeros((3, 4)), np.zeros(3), HOSPITALS)
    with pytest.raises(ZeroDivisionError):
        decode(rows.sum(0, np.uint32), HOSPITALS, 3).mean  # noqa: B018


@pytest.mark.parametrize("weight", [-1.0, np.nan])
def test_bad_weight_is_refused(weight):
    with pytest.raises(ValueError, match="weight"):
        encode(np.zeros((1, 4)), np.array([weight]), HOSPITALS)


def test_row_beyond_one_key_is_refused():
    assert HOSPITALS.length(2**34 - 11) == 2**34 - 8
    with pytest.raises(ValueError, match="one key masks"):
        HOSPITALS.length(2**34 - 10)


def test_loose_cap_of_weights_is_told(caplog):
    encoding = Encoding(num_sites=3, bound=1.0, max_weight=1e6)
    decode(encode(np.zeros((3, 1)), np.ones(3), encoding).sum(0, np.uint32), encoding, 3)
    assert "smaller max_weight" in caplog.text
