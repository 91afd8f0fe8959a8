"""Dropout from a counter hash of (key, layer, step, index): the same mask in the plain loop and in stacked training.

No generator is opened per site and step, which would cost several times the training step. The hash is the 32-bit
finaliser of MurmurHash3 (Austin Appleby, public domain), applied to the counter, in int64 so that no bit is lost.
"""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    x = x & _MASK
    x = (x ^ (x >> 16)) * 0x85EBCA6B & _MASK
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & _MASK
    return x ^ (x >> 16)


def keep_mask(key: int, layer: int, step: int, shape: torch.Size, rate: float, like: Tensor) -> Tensor:
    """Return a mask of zeros and 1 / (1 - rate), a pure function of its arguments."""
    low, high = key & _MASK, (key >> 32) & _MASK
    start = (low * 0x9E3779B1 ^ high * 0x85EBCA77 ^ layer * 0xC2B2AE3D ^ step * 0x27D4EB2F) & _MASK
    index = torch.arange(shape.numel(), dtype=torch.int64, device=like.device)
    bits = _mix(_mix(index + start) ^ high)
    kept = bits >= int(rate * 2**32)
    return (kept.to(like.dtype) / (1.0 - rate)).view(shape)


def dropout(x: Tensor, rate: float, key: int | None, layer: int, step: int) -> Tensor:
    """Drop entries with probability `rate` and scale the rest; without a key (evaluation) return x."""
    if key is None or rate == 0.0:
        return x
    return x * keep_mask(key, layer, step, x.shape, rate, x)
