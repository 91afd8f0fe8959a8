"""Linear layers from or to one feature: a product of width one is not row invariant.

`Single` makes it one of width two, whose second row of weights is zero and stays zero; `Thin` multiplies and
sums, which reads the rows twice as often.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedray.learn.layers import Frame, learn_matrix, row_norms
from fedray.learn.planes import LINE, PAIR


@dataclass
class Thin:
    """A linear layer from or to one feature: multiply and sum, because a product of width one is not row
    invariant.
    """

    name: str
    inputs: int
    width: int
    has_bias: bool
    matrices: tuple[str, ...] = ()

    def bind(self, frame: Frame, active: int) -> None:
        """Take views for so many sites."""
        wide = max(self.inputs, self.width)
        self.frame = frame
        self.w = frame.weights.view(f"{self.name}weight", active).reshape(active, 1, wide)
        self.gw = frame.vector_gradients.view(f"{self.name}weight", active).view(active, wide)
        self.product = frame.buffer((self.name, "product"), active, wide)
        self.y = frame.buffer((self.name, "y"), active, self.width)
        self.gx = frame.buffer((self.name, "gx"), active, self.inputs)
        if self.has_bias:
            self.b = frame.weights.view(f"{self.name}bias", active).unsqueeze(1)
            self.gb = frame.vector_gradients.view(f"{self.name}bias", active)

    def forward(self, x: Tensor) -> Tensor:
        """Return y."""
        self.x = x
        if self.width == 1:
            torch.mul(x, self.w, out=self.product)
            torch.sum(self.product, 2, keepdim=True, out=self.y)
        else:
            torch.mul(x, self.w, out=self.y)
        return self.y.add_(self.b) if self.has_bias else self.y

    def backward(self, g: Tensor, needs_input: bool) -> Tensor | None:
        """Return the gradient of x."""
        self.g = g
        if not needs_input:
            return None
        if self.width == 1:
            return torch.mul(g, self.w, out=self.gx)
        torch.mul(g, self.w, out=self.product)
        return torch.sum(self.product, 2, keepdim=True, out=self.gx)

    def norms(self, same: Tensor | None) -> Tensor:
        """Return the squared norm of each row's own gradient, or its part of its unit's, (active, width)."""
        return row_norms(self.x, self.g, self.has_bias, same)

    def learn(self) -> None:
        """Collect the gradient."""
        torch.mul(self.g, self.x, out=self.product)
        self.frame.sum_rows(self.product, self.gw)
        if self.has_bias:
            self.frame.sum_rows(self.g, self.gb)


@dataclass
class Single:
    """A layer to one feature, of so many inputs that two rows of weights fill whole lines (`fits`)."""

    name: str
    inputs: int
    width: int
    has_bias: bool

    @staticmethod
    def fits(inputs: int) -> bool:
        """Tell whether two rows need no padding: only then does the product move them where they lie."""
        return inputs % (LINE // PAIR) == 0

    @property
    def matrices(self) -> tuple[str, ...]:
        """Leaves that get a plane of their own."""
        return (f"{self.name}weight",)

    def bind(self, frame: Frame, active: int) -> None:
        """Take views for so many sites."""
        weight = f"{self.name}weight"
        self.frame, self.w = frame, frame.weights.stored(weight, active)
        self.stored, self.fixed = self.w, frame.fixed_of(weight, active)
        self.first = self.w[:, :1]
        self.yt, self.gt = (self._columns(frame, kind)[:active] for kind in ("yt", "gt"))
        self.first_yt, self.first_gt = self.yt[:, 0].unsqueeze(2), self.gt[:, 0]
        self.y = frame.buffer((self.name, "y"), active, 1)  # the bits of some functions depend on strides
        self.gt.zero_()
        self.gx = frame.buffer((self.name, "gx"), active, self.inputs)
        if self.has_bias:
            self.b = frame.weights.view(f"{self.name}bias", active).unsqueeze(1)
            self.gb = frame.vector_gradients.view(f"{self.name}bias", active)
        if frame.gradients is not None:
            self.gw = frame.gradients.stored(weight, active)

    def _columns(self, frame: Frame, kind: str) -> Tensor:
        sides = (frame.rows, self.w.shape[1], frame.width)
        return frame.space.take((self.name, kind), sides, frame.dtype, frame.device)

    def forward(self, x: Tensor) -> Tensor:
        """Return y."""
        self.x = x
        torch.bmm(self.w, x.transpose(1, 2), out=self.yt)
        if self.has_bias:
            return torch.add(self.first_yt, self.b, out=self.y)
        return self.y.copy_(self.first_yt)

    def backward(self, g: Tensor, needs_input: bool) -> Tensor | None:
        """Return the gradient of x."""
        self.g = g
        return torch.mul(g, self.first, out=self.gx) if needs_input else None

    def norms(self, same: Tensor | None) -> Tensor:
        """Return the squared norm of each row's own gradient, or its part of its unit's, (active, width)."""
        return row_norms(self.x, self.g, self.has_bias, same)

    def gradient_columns(self) -> Tensor:
        """Return the gradient of y as columns, (active, 2, rows); the second is zero."""
        self.first_gt.copy_(self.g.squeeze(2))
        return self.gt

    def learn(self) -> None:
        """Move W, or collect its gradient."""
        learn_matrix(self, self.gradient_columns(), self.x)
        if self.has_bias:
            self.frame.sum_rows(self.g, self.gb)
