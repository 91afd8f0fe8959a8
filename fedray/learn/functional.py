"""A torch module as a function of a flat buffer: parameters in, outputs out, nothing kept inside.

What travels is every parameter, then every floating-point buffer of the state dict (BatchNorm statistics) as
leaves that are averaged but not stepped. A frozen parameter (requires_grad=False) goes to a host once and
never comes back (frozen.py). What never travels: integer buffers (BatchNorm's batch counter), which start
fresh in each local training, and buffers outside the state dict.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fedray import tree
from fedray.learn import dropout
from fedray.tree import Flat


@dataclass(slots=True)
class Step:
    """One training step: names its dropout masks by (key, step), and holds the buffers that it updates."""

    key: int
    buffers: dict[str, Tensor]
    step: int = 0


@dataclass(frozen=True)
class Functional:
    """Apply `module` to given parameters. The module is a template and no place for results.

    One thread at a time: torch puts the given tensors into the template for the length of a call.
    """

    module: nn.Module

    @cached_property
    def _kept(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Buffers as (floating-point that travel, integer, floating-point constants)."""
        travelling = set(self.module.state_dict(keep_vars=True))
        named = dict(self.module.named_buffers())
        floats = {name: buffer for name, buffer in named.items() if buffer.is_floating_point()}
        return (
            {name: buffer for name, buffer in floats.items() if name in travelling},
            {name: buffer for name, buffer in named.items() if not buffer.is_floating_point()},
            {name: buffer for name, buffer in floats.items() if name not in travelling},
        )

    @cached_property
    def _dropouts(self) -> list[dropout.Dropout]:
        return dropout.layers(self.module)

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module}  # not what was derived from it

    def start(self) -> Flat:
        """Return the template's own values. Raises ValueError on parameters of several dtypes."""
        named = dict(self.module.named_parameters())
        frozen = [name for name, value in named.items() if not value.requires_grad]
        values = {name: value.detach() for name, value in named.items()}
        dtype = next((value.dtype for value in values.values()), torch.float32)
        values |= {name: buffer.to(dtype) for name, buffer in self._kept[0].items()}
        return tree.flatten(values, buffers=list(self._kept[0]), frozen=frozen)

    def training(self, params: Mapping[str, Tensor], key: int) -> Step:
        """Return the start of a local training: own copies of BatchNorm statistics, fresh integer buffers."""
        floats, integers, _ = self._kept
        device = next((params[name].device for name in params), None)
        buffers = {name: params[name].detach().clone() for name in floats}
        return Step(key, buffers | {name: value.to(device, copy=True) for name, value in integers.items()})

    def __call__(
        self, params: Mapping[str, Tensor], inputs: tuple[Tensor, ...], step: Step | None = None
    ) -> Any:
        """Return the module's output, in training mode with a `step`, whose buffers are then updated."""
        if self.module.training != (step is not None):
            self.module.train(step is not None)
        tensors = dict(params)
        if step is not None:
            tensors |= step.buffers
            for layer in self._dropouts:
                layer.words = dropout.words(step.key, layer.layer, step.step)
        first = next(iter(tensors.values()))
        for name, constant in self._kept[2].items():
            tensors[name] = constant.to(first)
        if step is None:
            tensors |= {name: value.to(first.device) for name, value in self._kept[1].items()}
        return torch.func.functional_call(self.module, tensors, inputs)

    def loaded(self, params: Mapping[str, Tensor]) -> nn.Module:
        """Return a plain module in evaluation mode that holds these parameters, in their dtype."""
        dtype = next((params[name].dtype for name in params), None)
        module = copy.deepcopy(self.module).to(dtype)
        state = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name in params:
                state[name].copy_(params[name])
        return module.eval()


@torch.no_grad()
def draw(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw the weights of every known layer from torch's default distributions, in place.

    Linear and convolution: U(-b, b) with b = 1/sqrt(fan in); recurrent: b = 1/sqrt(hidden); embedding:
    N(0, 1), zero at the padding; normalisation: weight 1, bias 0, mean 0, variance 1. Other parameters stay
    as given. Source: torch.nn's reset_parameters (kaiming_uniform with a = sqrt 5 is that bound), which
    would draw from the global generator.
    """
    for layer in module.modules():
        own = list(layer.parameters(recurse=False))
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            _uniform(own, layer.weight[0].numel(), generator)
        elif isinstance(layer, nn.RNNBase):
            _uniform(own, layer.hidden_size, generator)
        elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            layer.weight.normal_(generator=generator)
            if layer.padding_idx is not None:
                layer.weight[layer.padding_idx] = 0.0
        elif isinstance(layer, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm):
            layer.reset_parameters()
    return module


def _uniform(tensors: Sequence[Tensor], fan_in: int, generator: torch.Generator) -> None:
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    for tensor in tensors:
        tensor.uniform_(-bound, bound, generator=generator)
