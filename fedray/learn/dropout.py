"""Dropout whose zeros are a function of (key, layer, step, index), never of a generator's state.

A counter hash gives the same mask in the plain loop and in a stacked one, whatever else is computed beside
it, and costs less than drawing. `prepare` swaps torch's dropout layers for these.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

WORD = 0xFFFFFFFF
# lowbias32: two rounds of multiply and xorshift, least bias of those searched (C. Wellons, hash-prospector)
FIRST, SECOND = 0x7FEB352D, 0x846CA68B
GOLDEN = 0x9E3779B97F4A7C15  # increment of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)
REFUSED = (nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)
CHANNELWISE = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def _splitmix(number: int) -> int:
    number = (number + GOLDEN) & (2**64 - 1)
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return number ^ (number >> 31)


def words(key: int, layer: int, step: int) -> tuple[int, int]:
    """Return the two signed 32-bit words that name the mask of a layer in a step."""
    mixed = _splitmix(_splitmix(_splitmix(key) ^ layer) ^ step)
    return _signed(mixed >> 32), _signed(mixed & WORD)


def splitmix(number: np.ndarray) -> np.ndarray:
    """Return each uint64 number mixed; products wrap."""
    number = number + np.uint64(GOLDEN)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


def words_of(keys: Sequence[int], layers: int, steps: int) -> Tensor:
    """Return `words` of every step, key and layer: (steps, keys, layers, 2) int32."""
    key = np.array([number % 2**64 for number in keys], dtype=np.uint64).reshape(1, -1, 1)
    layer = np.arange(layers, dtype=np.uint64).reshape(1, 1, -1)
    step = np.arange(steps, dtype=np.uint64).reshape(-1, 1, 1)
    with np.errstate(over="ignore"):  # products wrap, as in `_splitmix`
        mixed = splitmix(splitmix(splitmix(key) ^ layer) ^ step)
    pair = np.stack([mixed >> np.uint64(32), mixed & np.uint64(WORD)], axis=-1)
    return torch.from_numpy(pair.astype(np.uint32).view(np.int32))


def hash32(index: Tensor, first: int | Tensor, second: int | Tensor) -> Tensor:
    """Return a uniform int32 for each int32 index under the two words; products wrap."""
    x = index ^ first
    x = (x ^ ((x >> 16) & 0xFFFF)) * _signed(FIRST)
    x = x ^ second
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _signed(SECOND)
    return x ^ ((x >> 16) & 0xFFFF)


def keep_mask(
    count: int, p: float, first: int | Tensor, second: int | Tensor, device: torch.device
) -> Tensor:
    """Return (count,) booleans, false with probability `p`: element i depends on the words and on i alone."""
    threshold = round(p * 2**32) - 2**31
    return hash32(torch.arange(count, dtype=torch.int32, device=device), first, second) >= threshold


class Dropout(nn.Module):
    """Zero elements (or whole channels) with probability `p` while training, and scale the others up."""

    def __init__(self, p: float, layer: int = 0, channelwise: bool = False) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout: p={p} must be in [0, 1)")
        self.p, self.layer, self.channelwise = p, layer, channelwise
        self.words: tuple[int, int] | None = None

    def extra_repr(self) -> str:
        """Return what tells two layers apart."""
        return f"p={self.p}, layer={self.layer}" + (", channelwise" if self.channelwise else "")

    def forward(self, x: Tensor) -> Tensor:
        """Return x with dropped elements; x itself outside training. Raises RuntimeError without a key."""
        if not self.training or self.p == 0:
            return x
        if self.words is None:
            raise RuntimeError("dropout has no key: train through fedray.learn, or call .eval() first")
        shape = x.shape[:2] + (1,) * (x.dim() - 2) if self.channelwise else x.shape
        mask = keep_mask(shape.numel(), self.p, *self.words, x.device).view(shape)
        return x * mask.to(x.dtype).mul_(1 / (1 - self.p))


def layers(module: nn.Module) -> list[Dropout]:
    """Return the dropout layers in their order."""
    return [layer for layer in module.modules() if isinstance(layer, Dropout)]


def prepare(module: nn.Module) -> nn.Module:
    """Swap torch's dropout layers for counter-hash ones, in place, and number them in order.

    Raises ValueError on a layer that would draw from the global generator and cannot be swapped. A `forward`
    that calls `torch.nn.functional.dropout` itself is not seen: use a layer.
    """
    for name, layer in module.named_modules():
        inner = layer.dropout if isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)) else 0
        if isinstance(layer, REFUSED) or inner:
            raise ValueError(
                f"{name or 'the module'} ({type(layer).__name__}) draws from the global generator while "
                "training: use torch.nn.Dropout layers around it, or set its dropout to 0"
            )
    module = _swap(module)
    for number, layer in enumerate(layers(module)):
        layer.layer = number
    return module


def _swap(module: nn.Module) -> nn.Module:
    if isinstance(module, (nn.Dropout, *CHANNELWISE)):
        return Dropout(module.p, channelwise=isinstance(module, CHANNELWISE))
    for name, child in list(module._modules.items()):  # also a layer that stands in two places
        if child is not None:
            setattr(module, name, _swap(child))
    return module
