"""The first layer of trials that train together: they see the same batches, so one product serves them
all.
"""

import torch
from torch import Tensor

from fedray.learn.layers import Frame, Linear, row_norms
from fedray.learn.thin import Single, Thin


class Shared:
    """A first linear layer whose batches serve several rows of parameters, the lanes of a site.

    x is (sites, rows, features), y (sites x lanes, rows, outputs).
    """

    def __init__(self, inner: Linear | Single | Thin, lanes: int) -> None:
        self.inner, self.lanes = inner, lanes

    def bind(self, frame: Frame, active: int) -> None:
        """Take views for so many rows of parameters."""
        inner, self.frame, self.active = self.inner, frame, active
        inner.bind(frame, active)
        self.sites = active // self.lanes
        weight = f"{inner.name}weight"
        self.weight = frame.weights.view(weight, active) if isinstance(inner, Thin) else inner.w
        height = self.weight.shape[1]  # of a `Single` one more than its width
        self.w = self.weight.reshape(self.sites, self.lanes * height, inner.inputs)
        self.is_view = self.w.data_ptr() == self.weight.data_ptr()
        self.is_moved_in_place = self.is_view and bool(inner.matrices)
        sides = (self.lanes, height, frame.width)
        name = ("shared", inner.name)
        self.wide = frame.space.take(name, (frame.rows // self.lanes, *sides), frame.dtype, frame.device)
        self.wide = self.wide[: self.sites].flatten(1, 2)
        columns = self.wide.view(self.sites, *sides).transpose(2, 3).flatten(0, 1)  # the same memory
        self.columns = columns[:, :, : inner.width]
        self.y = frame.buffer((inner.name, "y"), active, inner.width)

    def _wide(self) -> Tensor:
        """Return the weights of a site's lanes below each other."""
        return self.w if self.is_view else self.weight.reshape(self.w.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return y."""
        self.x = x
        torch.bmm(self._wide(), x.transpose(1, 2), out=self.wide)
        if self.inner.has_bias:
            return torch.add(self.columns, self.inner.b, out=self.y)
        return self.y.copy_(self.columns)  # what follows is faster row by row

    def backward(self, g: Tensor, needs_input: bool) -> Tensor | None:
        """Keep the gradient of y; the first layer's input has none."""
        self.g = g
        return None

    def norms(self, same: Tensor | None) -> Tensor:
        """Return the squared norm of each row's own gradient, or its part of its unit's, (active, width)."""
        return row_norms(self.x.repeat_interleave(self.lanes, 0), self.g, self.inner.has_bias, same)

    def learn(self) -> None:
        """Move W, or collect its gradient."""
        inner, frame, wide = self.inner, self.frame, self._wide_gradient()
        if frame.gradients is None and self.is_moved_in_place:
            self.w.baddbmm_(wide, self.x, beta=frame.kept(inner.matrices[0]), alpha=frame.move)
        else:
            self._move(torch.bmm(wide, self.x).view(self.active, -1, inner.inputs))
        if not isinstance(inner, Thin) and inner.fixed is not None:
            self.weight.add_(inner.fixed)
        if inner.has_bias:
            frame.sum_rows(self.g, inner.gb)

    def _wide_gradient(self) -> Tensor:
        """Return the gradients of a site's lanes below each other, (sites, lanes x outputs, rows)."""
        inner = self.inner
        if isinstance(inner, Single):
            inner.g = self.g
            return inner.gradient_columns().view(self.wide.shape)
        g = self.g.view(self.sites, self.lanes, -1, inner.width).transpose(1, 2)
        return g.reshape(self.sites, -1, self.lanes * inner.width).transpose(1, 2)

    def _move(self, found: Tensor) -> None:
        """Take a gradient that could not be written in place."""
        inner, frame = self.inner, self.frame
        if inner.matrices and frame.gradients is None:
            if (keep := frame.kept(inner.matrices[0])) != 1.0:
                self.weight.mul_(keep)
            self.weight.add_(found, alpha=frame.move)
        else:
            frame.add_vector(inner.gw.view(found.shape), found)
