"""Any module over stacked sites, by `torch.func.vmap` and autograd: the last resort, chosen by name only.

The whole module is one layer of a chain (`chain.py`): its forward maps the module over the sites' weights,
its backward is autograd's. What the mapped operations do with a row may depend on how many sites are mapped,
so rows are not promised to be invariant. Padding rows have weight zero, which is right only where a row of
the output is a function of the same row of the input: batch statistics are refused, and `width_of` tries it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedray.learn import dropout
from fedray.learn.chain import Chain
from fedray.learn.layers import Frame
from fedray.learn.planes import Matrices

if TYPE_CHECKING:
    from fedray.learn.local import LocalTraining
    from fedray.learn.models import Model

HOW = "by vmap (rows are not promised to be invariant)"
MIXED = 1e-3  # a row of the output that moves by more, relative to its size, depends on another row


@dataclass
class Mapped:
    """A module whose weights are those of each site; x is (sites, rows, *shape)."""

    module: nn.Module
    shapes: Mapping[str, torch.Size]
    matrices: tuple[str, ...]

    def bind(self, frame: Frame, active: int) -> None:
        """Take views for so many sites, and leaves of autograd that share their memory."""
        self.frame = frame
        self.weights = {
            name: frame.weights.view(name, active).view(active, *shape) for name, shape in self.shapes.items()
        }
        self.leaves = {name: weight.detach().requires_grad_() for name, weight in self.weights.items()}

    def forward(self, x: Tensor) -> Tensor:
        """Return (sites, rows, outputs)."""
        if not self.module.training:
            self.module.train()
        with torch.enable_grad():
            found = torch.func.vmap(self._call)(self.leaves, x)
            self.out = found.unsqueeze(2) if found.dim() == 2 else found
        return self.out.detach()

    def _call(self, weights: Mapping[str, Tensor], rows: Tensor) -> Any:
        return torch.func.functional_call(self.module, dict(weights), (rows,))

    def backward(self, g: Tensor, needs_input: bool) -> Tensor | None:
        """Find the gradient of every leaf; there is no layer before this one."""
        found = torch.autograd.grad(self.out, list(self.leaves.values()), g, materialize_grads=True)
        self.found = dict(zip(self.leaves, found, strict=True))
        del self.out
        return None

    def norms(self, same: Tensor | None) -> None:
        """Refused for record-level clipping."""

    def learn(self) -> None:
        """Move matrices, or collect their gradient; collect that of vectors."""
        frame = self.frame
        for name, found in self.found.items():
            weight = self.weights[name]
            if name in self.matrices and frame.gradients is None:
                if (keep := frame.kept(name)) != 1.0:
                    weight.mul_(keep)
                weight.add_(found, alpha=frame.move)
                if (fixed := frame.fixed_of(name, len(found))) is not None:
                    weight.add_(fixed.view(-1, *weight.shape[1:]))
                continue
            place = frame.vector_gradients if name not in self.matrices else frame.gradients
            assert place is not None
            frame.add_vector(place.view(name, len(found)).view(found.shape), found)
        self.found = {}


def mapped_chain(local: "LocalTraining") -> Chain | str:
    """Return the model as a chain of one mapped layer, or why it is none."""
    module = local.model.module  # type: ignore[union-attr]
    if local.record_clip is not None:
        return "record-level clipping is not done by vmap"
    if dropout.layers(module):
        return "dropout is not done by vmap"
    if any(True for _ in module.buffers()):
        return "the model has buffers"
    if any(isinstance(layer, nn.modules.batchnorm._NormBase) for layer in module.modules()):
        return "the model has batch statistics"
    if any(isinstance(layer, nn.RNNBase) for layer in module.modules()):
        return "recurrent layers cannot be mapped by torch"
    shapes = {name: value.shape for name, value in module.named_parameters()}
    if not shapes or any(not value.requires_grad for value in module.parameters()):
        return "the model has frozen parameters or none"
    matrices = tuple(name for name, shape in shapes.items() if len(shape) >= 2)
    return Chain((lambda: Mapped(module, shapes, matrices),), Matrices(matrices), 0, 0, 0, HOW)


@torch.no_grad()
def width_of(model: "Model", params: Mapping[str, Tensor], row: Tensor) -> int:
    """Return how many outputs a row has, from one row (1, *shape).

    Raises ValueError where the outputs do not fit the task, or where a row's output depends on other rows.
    """
    alone = model.functional(params, (row,))
    other = row * 0.5 + 1 if row.is_floating_point() else torch.zeros_like(row)
    beside = model.functional(params, (torch.cat([row, other]),))
    if alone.dim() not in (1, 2) or len(beside) != 2:
        raise ValueError(f"form='vmap' needs one row of outputs a row; one row gave {tuple(alone.shape)}")
    if float((beside[0] - alone[0]).abs().max()) > MIXED * (1 + float(alone.abs().max())):
        raise ValueError("form='vmap' needs a model whose rows do not depend on each other: use form='loop'")
    width = alone.shape[1] if alone.dim() == 2 else 1
    if model.task == "binary" and width != 1:
        raise ValueError(f"form='vmap': {width} outputs for a binary outcome, which has one")
    return int(width)
