"""Secrets of 256 bits in shares of which any t rebuild them and any t - 1 tell nothing.

Polynomials over the prime field of p = 2^256 - 189, in plain integers: Python multiplies 256 bits in some
60 ns, and the places of the shares are small, so products of their differences stay short. Many secrets have
the same survivors, so a set's Lagrange weights are made once (`lagrange`), and a secret is a sum of products.
Source: Shamir, How to share a secret, CACM 1979.
"""

import math
import operator
import os
from collections.abc import Callable, Iterable, Sequence

PRIME = 2**256 - 189
SECRET_BYTES = 32


def random_secret(entropy: Callable[[int], bytes] = os.urandom) -> int:
    """Return a uniform element of the field: 32 bytes of the OS, drawn again where they reach p."""
    while True:
        secret = int.from_bytes(entropy(SECRET_BYTES), "little")
        if secret < PRIME:
            return secret


def to_bytes(element: int) -> bytes:
    """Return the 32 bytes of a secret or a share, little-endian."""
    return element.to_bytes(SECRET_BYTES, "little")


def from_bytes(data: bytes) -> int:
    """Read a secret or a share. Raises ValueError if it is none: another length, or p and above."""
    element = int.from_bytes(data, "little")
    if len(data) != SECRET_BYTES or element >= PRIME:
        raise ValueError("32 bytes below p are an element of the field")
    return element


def split(
    secret: int, places: Sequence[int], threshold: int, entropy: Callable[[int], bytes] = os.urandom
) -> list[int]:
    """Return the share for each place (distinct, 1 to 2^32): the values there of a random polynomial.

    Its degree is threshold - 1, its value at 0 the secret.
    """
    if not 1 <= threshold <= len(places):
        raise ValueError(f"threshold {threshold} of {len(places)} shares")
    coefficients = [random_secret(entropy) for _ in range(threshold - 1)]
    return share_out([secret, *coefficients], places)


def share_out(coefficients: Sequence[int], places: Sequence[int]) -> list[int]:
    """Return the values of a polynomial, lowest coefficient first, at the places."""
    shares = []
    for x in places:
        if not 0 < x < 2**32:
            raise ValueError(f"a share lies at a place from 1 to 2^32 - 1, not {x}")
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * x + coefficient) % PRIME
        shares.append(value)
    return shares


def lagrange(places: Sequence[int], at: int = 0) -> list[int]:
    """Return the weights whose sum of products with the shares at these places is the value at `at`."""
    if len(set(places)) != len(places):
        raise ValueError("two shares of one place")
    tops, bottoms = [], []
    for x in places:
        others = [y for y in places if y != x]
        tops.append(math.prod(at - y for y in others))
        bottoms.append(math.prod(x - y for y in others) % PRIME)
    return [top * inverse % PRIME for top, inverse in zip(tops, _inverses(bottoms), strict=True)]


def _inverses(elements: Sequence[int]) -> list[int]:
    """Return the inverses of field elements with one inversion for all."""
    before = [1]
    for element in elements:
        before.append(before[-1] * element % PRIME)
    inverse = pow(before[-1], -1, PRIME)
    found = []
    for element, product in zip(reversed(elements), reversed(before[:-1]), strict=True):
        found.append(inverse * product % PRIME)
        inverse = inverse * element % PRIME
    return found[::-1]


def rebuild(weights: Sequence[int], shares: Sequence[int]) -> int:
    """Return the secret of shares in the order of their weights from `lagrange`."""
    products: Iterable[int] = map(operator.mul, weights, shares)
    return sum(products) % PRIME
