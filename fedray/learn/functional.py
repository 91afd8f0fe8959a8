"""Any torch module as a pure model: (params, batch) -> logits.

Trainable parameters come first in the `Flat`; floating-point buffers (BatchNorm's running mean and variance) follow as
leaves that are averaged but not trained. Integer buffers (BatchNorm's batch counter) never travel: each local training
starts with the values that the module was given with, so with momentum=None the average is over one round.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedray import tree
from fedray.learn.models import Model
from fedray.tree import Flat


@dataclass(frozen=True, eq=False)
class ModuleModel(Model):
    """A model whose forward pass is a module; `init` returns the module's own weights, whatever the seed."""

    module: nn.Module | None = None
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None

    def init(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Flat:
        """Return the weights and floating-point buffers of the module."""
        return tree.flatten({name: value.to(dtype) for name, value in _floats(self._module()).items()},
                            buffers=self.buffers)

    def _module(self) -> nn.Module:
        assert self.module is not None
        return self.module

    def predict(self, params: Mapping[str, Tensor], batch: Mapping[str, Tensor], key: int | None = None,
                step: int = 0) -> Tensor:
        """Return logits; with a key the module is in training mode, and its draws come from that key."""
        module = self._module()
        module.train(key is not None)
        rest = {name: value.clone() for name, value in module.named_buffers() if not value.is_floating_point()}
        with torch.random.fork_rng(enabled=key is not None):
            if key is not None:
                torch.manual_seed((key + step) % 2**63)  # noqa: TID251 (a module's own dropout draws from it)
            out: Tensor = functional_call(module, {**dict(params), **rest}, (batch["x"],))
        return out.squeeze(-1) if self.task != "classes" and out.dim() > 1 else out

    def loss(self, params: Mapping[str, Tensor], batch: Mapping[str, Tensor], key: int | None = None, step: int = 0,
             pos_weight: float | None = None) -> Tensor:
        """Return the module's loss: `loss_fn(output, y)` where one was given, else that of the task."""
        if self.loss_fn is None:
            return super().loss(params, batch, key, step, pos_weight)
        return self.loss_fn(self.predict(params, batch, key, step), batch["y"])


def _floats(module: nn.Module) -> dict[str, Tensor]:
    found = {name: value.detach() for name, value in module.named_parameters()}
    return found | {name: value for name, value in module.named_buffers() if value.is_floating_point()}


def from_module(module: nn.Module, *, task: str = "classes",
                loss: Callable[[Tensor, Tensor], Tensor] | None = None) -> Model:
    """Return any module as a model; `loss(output, y)` replaces the loss of the task."""
    buffers = tuple(name for name, value in module.named_buffers() if value.is_floating_point())
    layout = {name: (tuple(value.shape), 0) for name, value in _floats(module).items()}
    return ModuleModel(kind=type(module).__name__, task=task, layout=layout, forward=_unused, buffers=buffers,
                       module=module, loss_fn=loss)


def _unused(*_: Any) -> Tensor:
    raise TypeError("a module model predicts with its module")
