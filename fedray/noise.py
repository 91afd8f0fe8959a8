"""Noise for differential privacy, from the operating system's entropy. Start at `gaussian` and `skellam`.

Every draw opens its own AES-256 keystream (counter mode) on 32 fresh bytes of `os.urandom`. No generator
of numpy or torch takes part, and none can be seeded by an experiment: two runs of one seed differ in noise.
A `Source` hands out key bytes; a test gives its own (`keystream(bytes(32))`), nothing else should.

Integers are drawn from that keystream directly, by inversion and by rejection, so that they are cryptographic
too and the entropy does not pass through a statistical generator of 128 or 256 bits. Gaussians are float64
before they are rounded: attacks on the low bits of floating-point noise are known, and only the integer noise
is free of them.
"""

import math
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

Source = Callable[[int], bytes]  # num_bytes -> so many bytes, never the same twice
Shape = int | Sequence[int]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

KEY_BYTES = 32
BLOCK = 1 << 15  # numbers at a time: 256 KiB of keystream and its float64 stay in a core's own cache
TABLE_MEAN = 64.0  # Poisson: inversion of a table up to here, transformed rejection above
MAX_VARIANCE = 1e18  # of integer noise: its counts stay far inside int64


def keystream(key: bytes | None = None) -> Source:
    """Return a source of AES-256 keystream under a fresh key of the operating system, or a test's own key."""
    key = os.urandom(KEY_BYTES) if key is None else key
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return lambda num_bytes: encryptor.update(bytes(num_bytes))


def uniform(shape: Shape, source: Source | None = None) -> Tensor:
    """Draw float64 numbers strictly between 0 and 1, multiples of 2^-53 plus 2^-54."""
    return torch.from_numpy(_uniform(_size(shape), source or keystream())).view(_shape(shape))


def gaussian(
    shape: Shape, std: float = 1.0, source: Source | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw normal numbers of mean 0, on the CPU.

    Box and Muller's pairs in float64, from 53 random bits for the radius (which ends at 8.65) and for the
    angle, rounded to `dtype` at the end.
    Raises: ValueError on a negative or infinite `std`.
    """
    if not 0 <= std < math.inf:
        raise ValueError(f"noise: std={std} must be a number of 0 or more")
    size, source = _size(shape), source or keystream()
    drawn = torch.empty(size, dtype=dtype)
    for start in range(0, size if std else 0, BLOCK):
        block = drawn[start : start + BLOCK]
        pairs = -(-len(block) // 2)
        radius, angle = torch.from_numpy(_uniform(2 * pairs, source)).view(2, pairs)
        radius.log_().mul_(-2 * std * std).sqrt_()
        angle.mul_(2 * math.pi)
        block[:pairs] = torch.cos(angle).mul_(radius)
        block[pairs:] = angle.sin_().mul_(radius)[: len(block) - pairs]
    return (drawn if std else drawn.zero_()).view(_shape(shape))


def skellam(shape: Shape, variance: float, source: Source | None = None) -> Tensor:
    """Draw int64 numbers of Skellam's law: the difference of two Poisson counts of mean variance / 2 each.

    Sums of independent draws are again Skellam, of the summed variance: shares of noise add up exactly.
    Poisson counts come by inversion of a float64 table up to a mean of 64; above, by transformed rejection
    with Loader's saddle-point form of the probability, which keeps its relative accuracy at any mean.
    Raises: ValueError on a variance below 0 or above 1e18.
    Source: Hoermann, The transformed rejection method for generating Poisson random variables, 1993, PTRS;
    Loader, Fast and accurate computation of binomial probabilities, 2000.
    """
    if not 0 <= variance <= MAX_VARIANCE:
        raise ValueError(f"noise: variance={variance} must lie between 0 and {MAX_VARIANCE:g}")
    size, source = _size(shape), source or keystream()
    drawn = np.zeros(size, dtype=np.int64)
    poisson = _by_table if variance / 2 <= TABLE_MEAN else _by_rejection
    for start in range(0, size if variance else 0, BLOCK):
        block = drawn[start : start + BLOCK]
        block += poisson(len(block), variance / 2, source)
        block -= poisson(len(block), variance / 2, source)
    return torch.from_numpy(drawn).view(_shape(shape))


def _shape(shape: Shape) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _size(shape: Shape) -> int:
    return math.prod(_shape(shape))


def _uniform(size: int, source: Source) -> Floats:
    bits = np.frombuffer(source(8 * size), dtype="<u8") >> np.uint64(11)
    drawn = bits.astype(np.float64)
    drawn += 0.5
    drawn *= 2.0**-53
    return drawn


def _by_table(size: int, mean: float, source: Source) -> Counts:
    """Return Poisson counts of a mean up to `TABLE_MEAN`, by inversion."""
    counts = np.arange(int(mean + 14 * math.sqrt(mean) + 40))  # what lies above has less than 2^-53
    logs = counts * math.log(mean) - mean - np.cumsum(np.log(np.maximum(counts, 1)))
    return np.searchsorted(np.cumsum(np.exp(logs)), _uniform(size, source)).astype(np.int64)


def _by_rejection(size: int, mean: float, source: Source) -> Counts:
    """Return Poisson counts less the whole part of their mean, which a difference of two does not need."""
    drawn = np.empty(size, dtype=np.int64)
    missing = np.arange(size)
    while len(missing):
        offset, is_good = _propose(len(missing), mean, source)
        drawn[missing[is_good]] = offset[is_good]
        missing = missing[~is_good]
    return drawn


def _propose(size: int, mean: float, source: Source) -> tuple[Counts, NDArray[np.bool_]]:
    """Return proposals of PTRS (count - floor(mean)) and which of them to accept."""
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    u, v = _uniform(2 * size, source).reshape(2, size)
    u -= 0.5
    us = 0.5 - np.abs(u)
    whole = math.floor(mean)
    offset = np.floor((2 * a / us + b) * u + ((mean - whole) + 0.43))
    is_good = (us >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2))
    unsure = np.flatnonzero(~is_good & (offset + whole >= 0) & ((us >= 0.013) | (v <= us)))
    us, v = us[unsure], v[unsure]
    bound = np.log(v * (1.1239 + 1.1328 / (b - 3.4)) / (a / (us * us) + b))
    is_good[unsure] = bound <= _log_poisson(offset[unsure], mean)
    return offset.astype(np.int64), is_good


def _log_poisson(offset: Floats, mean: float) -> Floats:
    """Return the log-probability of the count floor(mean) + offset, by Loader's form.

    Stirling's error is good to 1e-13 from a count of 16 on, below which a mean above 64 does not come.
    """
    whole = math.floor(mean)
    count = np.maximum(offset + whole, 1.0)
    apart = offset - (mean - whole)  # count - mean, without the rounding of large counts
    inverse = 1 / count
    error = inverse * (1 / 12 - inverse**2 * (1 / 360 - inverse**2 * (1 / 1260 - inverse**2 / 1680)))
    found: Floats = -error - _deviance(count, apart, mean) - 0.5 * np.log(2 * math.pi * count)
    return found


def _deviance(count: Floats, apart: Floats, mean: float) -> Floats:
    """Return count * log(count / mean) - apart, by its series where the two nearly cancel."""
    v = apart / (count + mean)
    square, power = v * v, v.copy()
    series = apart * v
    for odd in range(3, 17, 2):
        power = power * square
        series = series + 2 * count * power / odd
    far = np.abs(v) > 0.1
    series[far] = count[far] * np.log(count[far] / mean) - apart[far]
    return series
