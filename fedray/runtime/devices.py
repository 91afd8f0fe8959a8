"""Devices: where a pack computes. Models go there once a stage, tables once; what leaves comes from memory.

Row numbers are drawn in memory and moved, sums are folded in memory, and site state is kept there. A stage is
placed on the device only where it receives a model: programs that read data alone stay where the data lie.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedray import tree
from fedray.errors import ConfigError
from fedray.rows import Column, Group, Ragged, Rows, Same, Tagged

CPU = "cpu"
GROUP_BYTES = 2**30  # parameters of a group on a GPU: a small part of any card's memory; not measured
_NAMES = re.compile(r"cpu|cuda(:\d+)?")


def check(name: str) -> str:
    """Return the name of a device. Raises ConfigError on another text."""
    if not _NAMES.fullmatch(name):
        raise ConfigError(f"device={name!r}: choose cpu, cuda, or cuda:0 for the first of several GPUs")
    return name


def available(name: str) -> torch.device:
    """Return the device. Raises ConfigError where this machine does not have it."""
    device = torch.device(check(name))
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"device={name!r}: torch finds no CUDA device on this machine. Fix: runtime.device=cpu"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"device={name!r}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0"
            )
    return device


def has_model(downlink: Mapping[int, Any]) -> bool:
    """Tell whether a flat value is among what a stage receives."""
    leaves = (leaf for value in downlink.values() for _, leaf in tree.leaves(value))
    return any(isinstance(leaf, tree.Flat) for leaf in leaves)


def _each(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    def on_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Column):
            return Column(move(leaf.numbers), leaf.is_whole)
        if isinstance(leaf, Ragged):
            return Ragged([_each(item, move) for item in leaf.items])
        return move(leaf) if isinstance(leaf, Tensor) else leaf

    return tree.map(on_leaf, value)


def placed(value: Any, device: torch.device) -> Any:
    """Return a value with its tensors on the device; columns of numbers stay in memory."""
    return tree.map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)


class Fetched:
    """Copies in memory of a group's values: one for each tensor, however many names it leaves under."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, tagged: Tagged) -> Tagged:
        """Return the value in memory."""
        value = _each(tagged.value, self._fetch)
        return Same(value) if isinstance(tagged, Same) else Rows(value)

    def _fetch(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor
        if id(tensor) not in self._copies:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copy.copy_(tensor.detach())
            self._copies[id(tensor)] = tensor, copy  # the tensor is kept, and so its id
            known = self.group.largest.get(id(tensor))
            if known is not None and known[0] is tensor:
                self.group.largest[id(copy)] = copy, known[1].cpu()
        return self._copies[id(tensor)][1]


class Tables:
    """The sites' data on a device, moved once; those that come together lie in one table."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._placed: dict[str, Any] = {}

    @cached_property
    def device(self) -> torch.device:
        """The device. Raises ConfigError where this machine does not have it."""
        return available(self.name)

    def clear(self) -> None:
        """Forget everything: the data have changed."""
        self._placed = {}

    def of(self, site: str, data: Any, kept: Mapping[str, Any], lay: Callable[[Sequence[Any]], None]) -> Any:
        """Return a site's data there. All `kept` in memory are moved with it, data in files alone."""
        if not hasattr(data, "to"):
            return data
        if site not in kept:
            return data.to(self.device)
        if site not in self._placed:
            fresh = {name: held.to(self.device) for name, held in kept.items() if name not in self._placed}
            lay(list(fresh.values()))
            self._placed |= fresh
        return self._placed[site]
