"""Shares of a secret: the known answer, every set of t rebuilds, none of t - 1 does."""

import itertools
import os
import time

import pytest

from fedray.secrecy import shamir

SECRET = int.from_bytes(bytes(range(32)), "little")


def test_known_answer_k3_shares():
    shares = [shamir.to_bytes(share) for share in shamir.share_out([SECRET, 5, 7], [1, 2, 3])]
    assert [share[0] for share in shares] == [0x0C, 0x26, 0x4E]
    assert {share[1:] for share in shares} == {bytes(range(1, 32))}


def test_known_answer_k3_weights():
    assert shamir.lagrange([1, 2, 3]) == [3, shamir.PRIME - 3, 1]
    weights = shamir.lagrange([2, 5, 9])
    assert [w * m % shamir.PRIME for w, m in zip(weights, (21, 12, 28), strict=True)] == [
        45,
        shamir.PRIME - 18,
        10,
    ]


def test_the_modulus_is_prime():
    # Miller-Rabin: a composite passes one base with a chance under 1/4
    odd, twos = shamir.PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(40):
        x = pow(2 + int.from_bytes(os.urandom(31), "little"), odd, shamir.PRIME)
        assert x == 1 or any(pow(x, 2**i, shamir.PRIME) == shamir.PRIME - 1 for i in range(twos))


def test_every_set_of_t_shares_rebuilds_the_secret():
    places = range(1, 9)
    shares = dict(zip(places, shamir.split(SECRET, places, 5), strict=True))
    for some in itertools.combinations(places, 5):
        assert shamir.rebuild(shamir.lagrange(some), [shares[place] for place in some]) == SECRET


def test_any_of_500_random_sets_of_34_rebuilds_among_50():
    shares = dict(enumerate(shamir.split(SECRET, range(1, 51), 34), start=1))
    for _ in range(500):
        some = sorted(shares, key=lambda place: os.urandom(8))[:34]
        assert shamir.rebuild(shamir.lagrange(some), [shares[place] for place in some]) == SECRET


def test_t_minus_one_shares_fit_every_secret():
    places = [1, 2, 3]
    known = shamir.share_out([SECRET, 11, 13, 17], places)  # degree 3: a fourth share is missing
    for claimed in (0, 1, SECRET, shamir.PRIME - 1):
        # a polynomial of degree 3 through the claimed secret and the three shares exists and is unique
        weights = shamir.lagrange([0, *places], at=77)
        value = shamir.rebuild(weights, [claimed, *known])
        again = shamir.rebuild(shamir.lagrange([*places, 77]), [*known, value])
        assert again == claimed


def test_fewer_shares_rebuild_something_else():
    shares = shamir.split(SECRET, range(1, 9), 5)
    assert shamir.rebuild(shamir.lagrange(range(1, 5)), shares[:4]) != SECRET


def test_two_splits_of_a_secret_share_nothing():
    places = range(1, 6)
    assert not set(shamir.split(SECRET, places, 3)) & set(shamir.split(SECRET, places, 3))


def test_secret_of_the_field_is_drawn_again_where_it_is_too_large():
    draws = [b"\xff" * 32, b"\x01" + bytes(31)]
    assert shamir.random_secret(lambda size: draws.pop(0)) == 1


@pytest.mark.parametrize("data", [b"\xff" * 32, bytes(31)])
def test_bytes_that_are_no_element_are_refused(data):
    with pytest.raises(ValueError, match="below p"):
        shamir.from_bytes(data)


@pytest.mark.parametrize("places", [[0, 1], [2**32]])
def test_share_at_a_place_that_tells_the_secret_is_refused(places):
    with pytest.raises(ValueError, match="place"):
        shamir.split(SECRET, places, 1)


def test_two_shares_of_one_place_are_refused():
    with pytest.raises(ValueError, match="two shares"):
        shamir.lagrange([1, 1])


def test_threshold_over_the_shares_is_refused():
    with pytest.raises(ValueError, match="threshold"):
        shamir.split(SECRET, [1, 2], 3)


def test_two_hundred_secrets_at_134_are_rebuilt_fast():
    places = list(range(1, 135))
    shares = shamir.share_out([SECRET, *(shamir.random_secret() for _ in range(133))], places)
    began = time.process_time()
    weights = shamir.lagrange(places)
    found = {shamir.rebuild(weights, shares) for _ in range(200)}
    assert found == {SECRET}
    assert time.process_time() - began <= 0.5  # 5 ms measured on one core; the benchmark holds 50 ms
