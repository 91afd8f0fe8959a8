"""Fixed point in the ring of integers mod 2^32 (or 2^64), where sums are exact and masks hide perfectly.

Every party knows the number of sites, the bound of a coordinate and the cap of a weight, so the sum of all
sites at the bound still fits: it never wraps. A row of d values becomes d + 3 words: the weighted values,
then the site's weight, 1 for the count of sites, and the number of values that the bound has cut.
Start reading at `Encoding`, then `encode` and `decode`.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedray.errors import SecrecyError
from fedray.secrecy.keystream import MAX_BYTES, OneTimeKey, keystream

NUM_LANES = 3  # weight, count, number of cut values: the last words of a row
BLOCK = 1 << 15  # values at a time: 256 KiB of float64 stay in the second-level cache
NOISE_RESERVE = 8.0  # standard deviations of a sum's noise that still fit: missed once in 10^15 coordinates
LOOSE = 0.01  # a mean weight under this share of the cap wastes more than six bits

log = logging.getLogger(__name__)

Words = NDArray[np.unsignedinteger[Any]]
Floats = NDArray[np.floating[Any]]
Entropy = Callable[[int], bytes]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What all parties agree on before a value is encoded.

    `bound` is the largest absolute value of a coordinate, larger ones are cut; `max_weight` the largest
    weight of a site, larger ones count as this. `noise_std` is the standard deviation, in the unit of
    `bound`, of noise that is added to the sum in the ring; room for 8 of them is kept. `rounding` is to the
    nearest integer, or up or down at random, which is right on average ("stochastic").
    """

    num_sites: int
    bound: float
    max_weight: float = 1.0
    bits: Literal[32, 64] = 32
    rounding: Literal["nearest", "stochastic"] = "nearest"
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        if self.num_sites < 1 or self.bits not in (32, 64):
            raise ValueError(f"num_sites >= 1 and bits 32 or 64, not {self.num_sites} and {self.bits}")
        if self.rounding not in ("nearest", "stochastic"):
            raise ValueError(f'rounding is "nearest" or "stochastic", not {self.rounding!r}')
        if not (0 < self.bound < np.inf and 0 < self.max_weight < np.inf and 0 <= self.noise_std < np.inf):
            raise ValueError(
                "bound, max_weight and noise_std are finite, the first two positive, the last not negative"
            )
        if self.q_max < 1:
            raise ValueError(
                f"{self.num_sites} sites with this noise leave no step in {self.bits} bits: "
                "less noise, fewer sites or bits=64"
            )

    @cached_property
    def q_max(self) -> int:
        """The largest absolute value of one site: num_sites of them and the noise stay below half the ring.

        At most 2^53, where float64 ends to hold every integer.
        """
        half = (1 << (self.bits - 1)) - 1
        if self.noise_std:  # num_sites q + 8 noise_std q / bound <= half
            return min(int(half / (self.num_sites + NOISE_RESERVE * self.noise_std / self.bound)), 2**53)
        return min(half // self.num_sites, 2**53)

    @cached_property
    def q_weight(self) -> int:
        """The largest word of the lanes for weight and cut values: they are not negative."""
        return min(((1 << self.bits) - 1) // self.num_sites, 2**53)

    @property
    def scale(self) -> float:
        """Steps of the ring in 1."""
        return self.q_max / self.bound

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian words of the ring."""
        return np.dtype(f"<u{self.bits // 8}")

    def length(self, size: int) -> int:
        """Return the words of a row of `size` values. Raises ValueError beyond what one key may mask."""
        if (size + NUM_LANES) * self.dtype.itemsize > MAX_BYTES:
            raise ValueError(f"one key masks {MAX_BYTES} bytes; {size} values of {self.bits} bits are more")
        return size + NUM_LANES

    def error_bound(self, mean_weight: float) -> float:
        """Return how far a coordinate of the mean may lie from the exact one, as a share of max_weight.

        Half a step a site with rounding to the nearest, one step at random; a cut weight rounds by itself.
        """
        step = 0.5 if self.rounding == "nearest" else 1.0
        return step * self.bound / (self.q_max * mean_weight)


def encode(x: Floats, weights: Floats, encoding: Encoding, entropy: Entropy = os.urandom) -> Words:
    """Encode rows of values with one weight each; a row's words depend on that row alone.

    Shapes: x (k, d), weights (k,) -> (k, d + 3). The product is taken in float64: float32 ends to hold every
    integer at 2^24, and at the bound it could round beyond q_max. Stochastic rounding asks `entropy` for a
    key of 32 bytes for each row.
    Raises: SecrecyError E_NONFINITE; ValueError on a weight that is negative or not finite.
    """
    if not finite_rows(x).all():
        raise SecrecyError("E_NONFINITE", "a value is not a finite number; after masking nobody could tell")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("a weight is negative or not finite")
    num_rows, size = x.shape
    out = np.empty((num_rows, encoding.length(size)), encoding.dtype)
    for row, values, weight in zip(out, x, weights, strict=True):
        share = min(float(weight) / encoding.max_weight, 1.0)
        key = OneTimeKey(entropy(32)) if encoding.rounding == "stochastic" else None
        num_cut = _values(values, share, encoding, key, row[:size])
        row[size:] = round(share * encoding.q_weight), 1, min(num_cut, encoding.q_weight)
    return out


def _values(x: Floats, share: float, encoding: Encoding, key: OneTimeKey | None, out: Words) -> int:
    """Write the words of one row's values and return how many of them the bound has cut."""
    signed = out.view(out.dtype.str.replace("u", "i"))
    factor, limit, num_cut = share * encoding.scale, share * encoding.q_max, 0
    stream = keystream(key, len(x)) if key else None
    scaled = np.empty(min(BLOCK, len(x)))
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK]
        num_cut += int(np.count_nonzero(np.abs(block) > encoding.bound))
        v = np.multiply(block, factor, out=scaled[: len(block)], dtype=np.float64)
        np.clip(v, -limit, limit, out=v)
        if stream is None:
            np.rint(v, out=v)
        else:
            below = np.floor(v)
            np.subtract(v, below, out=v)
            draws = stream[start : start + BLOCK] * 2.0**-32
            np.add(below, draws < v, out=v)
        signed[start : start + BLOCK] = v
    return num_cut


def finite_rows(x: Floats) -> NDArray[np.bool_]:
    """Tell which rows of (k, d) hold finite numbers only.

    A finite sum of squares has finite terms; where it is not (large values overflow too) all are looked at.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares = [np.dot(row, row) for row in x]
    finite: NDArray[np.bool_] = np.isfinite(squares)
    for row in np.flatnonzero(~finite):
        finite[row] = np.isfinite(x[row]).all()
    return finite


@dataclass(frozen=True, slots=True)
class Sums:
    """What a sum of encoded rows says. A weight is a share of max_weight, so `weight` <= num_sites."""

    values: NDArray[np.float64]  # the sum of weight x value
    weight: float
    num_sites: int
    num_cut: int

    @property
    def mean(self) -> NDArray[np.float64]:
        """The weighted mean. Raises ZeroDivisionError where all weights are zero."""
        if self.weight == 0:
            raise ZeroDivisionError("the weights of all sites are zero: there is no mean")
        return self.values / self.weight


def decode(total: Words, encoding: Encoding, num_counted: int, warns: bool = True) -> Sums:
    """Read the sum of `num_counted` encoded rows.

    Raises: SecrecyError E_COUNT if the count lane says another number: a fault of the protocol, masks that do
    not cancel, or a site that lies.
    """
    *_, weight, count, num_cut = (int(word) for word in total[-NUM_LANES:])
    if count != num_counted:
        raise SecrecyError(
            "E_COUNT",
            f"{num_counted} sites were to be in the sum, its count lane differs: "
            "masks did not cancel or a site has lied",
        )
    values = total[:-NUM_LANES].view(total.dtype.str.replace("u", "i")) / encoding.scale
    sums = Sums(values, weight / encoding.q_weight, count, num_cut)
    if warns and 0 < sums.weight < LOOSE * count:
        log.warning("weights are under %g of their cap on average: a smaller max_weight loses less", LOOSE)
    return sums
