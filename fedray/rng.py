"""Random keys that depend on names alone: (run seed, round, site, label).

The derivation is fixed for ever: the first 8 bytes, big-endian, of the SHA-256 of the UTF-8 text
`fedray|<seed>|<round>|<site>|<label>`. A key is a plain number, so it travels, compares and hashes;
`generator()` opens a `torch.Generator` on it. Nothing here touches a global generator.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch

SERVER = ""  # the site part of a key that belongs to the server


def derive(seed: int, round: int, site: str, label: str = "") -> int:
    """Return the 64-bit number for these names; equal on every machine and in every version."""
    digest = hashlib.sha256(f"fedray|{seed}|{round}|{site}|{label}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


@dataclass(frozen=True, slots=True)
class Key:
    """An independent stream of random numbers, named by (seed, round, site, label)."""

    seed: int
    round: int
    site: str
    label: str = ""

    @property
    def value(self) -> int:
        """The 64-bit seed of this stream."""
        return derive(self.seed, self.round, self.site, self.label)

    def generator(self, into: torch.Generator | None = None) -> torch.Generator:
        """Open a CPU generator at the start of this stream, re-using `into` when one is given (cheaper)."""
        generator = torch.Generator() if into is None else into
        # torch takes a signed or unsigned 64-bit seed; negative numbers are mapped by two's complement
        return generator.manual_seed(self.value)

    def child(self, label: str) -> "Key":
        """Return the stream of the same owner under another label."""
        return Key(self.seed, self.round, self.site, label)


@dataclass(frozen=True, slots=True)
class Keys(Sequence[Key]):
    """One key for each of several sites, made when it is asked for."""

    seed: int
    round: int
    sites: tuple[str, ...]
    label: str = ""

    def __len__(self) -> int:
        return len(self.sites)

    @overload
    def __getitem__(self, index: int) -> Key: ...

    @overload
    def __getitem__(self, index: slice) -> "Keys": ...

    def __getitem__(self, index: int | slice) -> "Key | Keys":
        if isinstance(index, slice):
            return Keys(self.seed, self.round, self.sites[index], self.label)
        return Key(self.seed, self.round, self.sites[index], self.label)
