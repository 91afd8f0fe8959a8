"""Coders: how rows of numbers become the bytes that travel, and how they are read back, to the bit.

The number of bytes depends on shapes and settings alone, never on the values: `egress` can promise it before
a site is asked, and the length of a message tells nothing about patients. So codes have a fixed width and no
entropy coding. Each class says which quantiser it is; the passes that use them are in `compression.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedray.coded import Coded
from fedray.rng import Key

SUPPORTS = "its values lie at other coordinates at each site: use randk, whose coordinates are common"
SCALES = "its codes have another scale at each site and do not add up: use randk or powersgd"


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Return whole numbers below 2^bits, (k, n), as bytes, (k, ceil(n * bits / 8)), lowest bit first."""
    k = len(codes)
    if bits == 8:  # a byte each: nothing to take apart
        return codes.to(torch.uint8)
    places = torch.arange(bits, device=codes.device, dtype=codes.dtype)
    flat = ((codes.unsqueeze(-1) >> places) & 1).to(torch.uint8).view(k, -1)
    padded = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8)).view(k, -1, 8)
    powers = (1 << torch.arange(8, device=codes.device)).to(torch.uint8)
    return torch.sum(padded * powers, -1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` whole numbers of each row, int32."""
    k = len(packed)
    if bits == 8:
        return packed[:, :count].to(torch.int32)
    places = torch.arange(8, device=packed.device, dtype=torch.uint8)
    flat = ((packed.unsqueeze(-1) >> places) & 1).view(k, -1)[:, : count * bits]
    powers = 1 << torch.arange(bits, device=packed.device, dtype=torch.int32)
    return torch.sum(flat.reshape(k, count, bits).to(torch.int32) * powers, -1, dtype=torch.int32)


def as_bytes(numbers: Tensor) -> Tensor:
    """Return rows of numbers as rows of bytes."""
    return numbers.contiguous().view(torch.uint8)


def from_bytes(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rows of bytes as rows of numbers."""
    return part.clone(memory_format=torch.contiguous_format).view(dtype)  # a row may start anywhere


def share_of(fraction: float, size: int) -> int:
    """Return how many of `size` numbers a fraction is: rounded up, at least one."""
    return max(1, math.ceil(fraction * size - 1e-9))  # 0.1 * 30 is a little more than 3


def check_fraction(name: str, fraction: float) -> None:
    """Raise ValueError where a fraction is not in (0, 1]."""
    if not 0 < fraction <= 1:
        raise ValueError(f"{name}: fraction={fraction} is not in (0, 1], say 0.01")


def check_finite(numbers: Tensor, what: str) -> Tensor:
    """Raise ArithmeticError where the scale of a row overflows its dtype."""
    if not bool(torch.isfinite(numbers).all()):
        raise ArithmeticError(f"the {what} of an update is too large for its dtype")
    return numbers


@dataclass(frozen=True)
class TopK:
    """The numbers of largest magnitude and their places; of equal ones those that come first."""

    fraction: float
    conflict: ClassVar[str] = SUPPORTS

    @property
    def title(self) -> str:
        """As `explain` names it."""
        return f"topk({self.fraction:g})"

    def encode(self, numbers: Tensor, keys: Sequence[Key]) -> Tensor:
        """Return values, then places of ceil(log2 n) bits each."""
        size = numbers.shape[1]
        count, sizes = share_of(self.fraction, size), numbers.abs()
        least = sizes.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
        is_above, is_least = sizes > least, sizes == least
        left = count - is_above.sum(1, keepdim=True)
        is_kept = is_above | (is_least & (is_least.cumsum(1) <= left))
        places = is_kept.nonzero()[:, 1].view(-1, count)
        coded = pack_bits(places.to(torch.int32), _width(size))
        return torch.cat([as_bytes(numbers.gather(1, places)), coded], 1)

    def decode(self, rows: Tensor, schema: Coded) -> Tensor:
        """Return the values at their places, zero elsewhere."""
        dtype, size = schema.origin.dtype, schema.origin.num_elements
        count = share_of(self.fraction, size)
        cut = count * dtype.itemsize
        places = unpack_bits(rows[:, cut:], _width(size), count).to(torch.int64)
        found = torch.zeros(rows.shape[0], size, dtype=dtype, device=rows.device)
        return found.scatter_(1, places, from_bytes(rows[:, :cut], dtype))


def _width(size: int) -> int:
    return max(1, (size - 1).bit_length())


@dataclass(frozen=True)
class Levels:
    """Random rounding to multiples of norm / levels, the norm of the whole row or of a bucket of it."""

    levels: int
    bucket: int | None = None
    conflict: ClassVar[str] = SCALES

    @property
    def title(self) -> str:
        """As `explain` names it."""
        return f"qsgd({self.levels})" if self.bucket is None else f"qsgd({self.levels}, bucket={self.bucket})"

    def _bucket(self, size: int) -> int:
        return size if self.bucket is None else min(self.bucket, size)

    def encode(self, numbers: Tensor, keys: Sequence[Key]) -> Tensor:
        """Return the norms, then codes of sign times level, each moved up by `levels`."""
        size = numbers.shape[1]
        width = self._bucket(size)
        norms = torch.stack([_norms(row, width) for row in numbers])  # each row by itself: see rows.py
        check_finite(norms, "norm")
        scale = norms.double().repeat_interleave(width, 1)[:, :size]
        steps = numbers.double().abs() / torch.where(scale > 0, scale, 1.0) * self.levels
        floor = steps.floor()
        draws = _uniform(size, keys).to(numbers.device)
        level = (floor + (draws < steps - floor)).clamp_(max=self.levels)
        codes = (level * numbers.sign().double() + self.levels).to(torch.int32)
        return torch.cat([as_bytes(norms), pack_bits(codes, (2 * self.levels).bit_length())], 1)

    def decode(self, rows: Tensor, schema: Coded) -> Tensor:
        """Return norm * sign * level / levels."""
        dtype, size = schema.origin.dtype, schema.origin.num_elements
        width = self._bucket(size)
        cut = -(-size // width) * dtype.itemsize
        codes = unpack_bits(rows[:, cut:], (2 * self.levels).bit_length(), size)
        scale = from_bytes(rows[:, :cut], dtype).double().repeat_interleave(width, 1)[:, :size]
        return (scale * (codes - self.levels).double() / self.levels).to(dtype)


def _norms(row: Tensor, width: int) -> Tensor:
    padded = torch.nn.functional.pad(row.double(), (0, -len(row) % width)).view(-1, width)
    return padded.square().sum(1).sqrt().to(row.dtype)


def _uniform(size: int, keys: Sequence[Key]) -> Tensor:
    draws, generator = torch.empty(len(keys), size, dtype=torch.float64), torch.Generator()
    for row, key in zip(draws, keys, strict=True):
        row.uniform_(generator=key.generator(generator))
    return draws


@dataclass(frozen=True)
class Signs:
    """One bit a number: +1 where it is zero or more, else -1."""

    conflict: ClassVar[str] = SCALES

    @property
    def title(self) -> str:
        """As `explain` names it."""
        return "sign"

    def encode(self, numbers: Tensor, keys: Sequence[Key]) -> Tensor:
        """Return the bits."""
        return pack_bits((numbers >= 0).to(torch.int32), 1)

    def decode(self, rows: Tensor, schema: Coded) -> Tensor:
        """Return +1 and -1."""
        return (2 * unpack_bits(rows, 1, schema.origin.num_elements) - 1).to(schema.origin.dtype)


@dataclass(frozen=True)
class ScaledSigns:
    """The signs times the mean magnitude of the row."""

    conflict: ClassVar[str] = SCALES

    @property
    def title(self) -> str:
        """As `explain` names it."""
        return "scaled_sign"

    def encode(self, numbers: Tensor, keys: Sequence[Key]) -> Tensor:
        """Return the mean magnitude, then the bits."""
        means = torch.stack([row.double().abs().mean() for row in numbers]).to(numbers.dtype).view(-1, 1)
        check_finite(means, "mean magnitude")
        return torch.cat([as_bytes(means), Signs().encode(numbers, keys)], 1)

    def decode(self, rows: Tensor, schema: Coded) -> Tensor:
        """Return the mean magnitude with the signs."""
        cut = schema.origin.dtype.itemsize
        return from_bytes(rows[:, :cut], schema.origin.dtype) * Signs().decode(rows[:, cut:], schema)


@dataclass(frozen=True)
class Picks:
    """Numbers at coordinates that every site draws alike in a round; decoding is linear, so they add up.

    `stream` names the draw: (run seed, round, label). An unbiased pick sends n / k times the number.
    """

    fraction: float
    is_unbiased: bool
    stream: Key
    conflict: ClassVar[str] = ""

    @property
    def title(self) -> str:
        """As `explain` names it."""
        return f"randk({self.fraction:g})"

    def places(self, size: int) -> Tensor:
        """Return the coordinates of the round, in order."""
        order = torch.randperm(size, generator=self.stream.generator())
        return order[: share_of(self.fraction, size)].sort().values

    def encode(self, numbers: Tensor, keys: Sequence[Key]) -> Tensor:
        """Return the numbers at the round's coordinates."""
        size = numbers.shape[1]
        picked = numbers[:, self.places(size).to(numbers.device)]
        return picked * (size / picked.shape[1]) if self.is_unbiased else picked

    def decode(self, rows: Tensor, schema: Coded) -> Tensor:
        """Return them at their places, zero elsewhere."""
        size = schema.origin.num_elements
        found = torch.zeros(rows.shape[0], size, dtype=rows.dtype, device=rows.device)
        return found.index_copy_(1, self.places(size).to(rows.device), rows)
