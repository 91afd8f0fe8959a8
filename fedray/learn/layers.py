"""Layers over stacked rows, by hand: x is (sites, rows, features), each site with its own weights.

No product has a dimension of one (`thin.py` has the width-one layers), and outputs go into reused buffers.
A layer's `backward` gives the gradient of its input; `learn` then moves or collects its parameters' gradient,
apart from it so that rows can be rescaled in between (record-level clipping).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray.learn.dropout import hash32
from fedray.learn.ghost import table_norms
from fedray.learn.planes import Planes, Space

aten = torch.ops.aten


@dataclass(slots=True)
class Frame:
    """What the layers of one training share. `gradients` is None where matrices are moved in place."""

    weights: Planes
    vector_gradients: Planes
    gradients: Planes | None
    space: Space
    dtype: torch.dtype
    device: torch.device
    rows: int  # of parameters: sites, times the lanes of each
    width: int  # rows of a block
    move: float = 0.0  # -lr: fused
    keep: dict[str, float] | None = None  # 1 - lr * decay of each matrix: fused
    fixed: Planes | None = None  # added to the weights in every step, of one row or of all: fused
    words: Tensor | None = None  # (steps, sites, dropout layers, 2)
    step: int = 0
    block: int = 0  # of the step; the first one starts its gradient

    def kept(self, matrix: str) -> float:
        """Return what a fused step multiplies a matrix by."""
        return self.keep.get(matrix, 1.0) if self.keep else 1.0

    def fixed_of(self, matrix: str, active: int) -> Tensor | None:
        """Return what is added to a matrix in every fused step."""
        return None if self.fixed is None else self.fixed.stored(matrix, active)

    def buffer(self, name: Any, active: int, *shape: int) -> Tensor:
        """Return a reused buffer (active, width, *shape)."""
        return self.space.take(name, (self.rows, self.width, *shape), self.dtype, self.device)[:active]

    def add_vector(self, target: Tensor, found: Tensor) -> None:
        """Write or add the gradient of a vector."""
        if self.block == 0:
            target.copy_(found)
        else:
            target.add_(found)

    def sum_rows(self, gradient: Tensor, target: Tensor) -> None:
        """Write or add the sum over the rows of each site."""
        if self.block == 0:
            torch.sum(gradient, 1, out=target)
        else:
            target.add_(gradient.sum(1))


def row_norms(x: Tensor, g: Tensor, has_bias: bool, same: Tensor | None) -> Tensor:
    """Return the squared norm of each row's own gradient of a linear layer, whose input is x: |x|^2 |g|^2.

    With `same` (sites, rows, rows), 1 where two rows are of one unit: the row's part of its unit's.
    """
    if same is None:
        return (x.square().sum(2) + (1 if has_bias else 0)) * g.square().sum(2)
    pairs = torch.bmm(x, x.mT)
    return ((pairs + 1 if has_bias else pairs) * torch.bmm(g, g.mT) * same).sum(2)


def unit_norms(rows: Tensor, same: Tensor | None) -> Tensor:
    """Return the squared norm of each row, or its part of that of the sum of its unit's rows."""
    return rows.square().sum(2) if same is None else (torch.bmm(rows, rows.mT) * same).sum(2)


@dataclass
class Linear:
    """y = x W' + b, with both dimensions of W above one."""

    name: str
    inputs: int
    width: int
    has_bias: bool

    @property
    def matrices(self) -> tuple[str, ...]:
        """Leaves that get a plane of their own."""
        return (f"{self.name}weight",)

    def bind(self, frame: Frame, active: int) -> None:
        """Take views for so many sites."""
        weight = f"{self.name}weight"
        self.frame, self.w = frame, frame.weights.view(weight, active)
        self.wt, self.is_flipped = self.w.transpose(1, 2), frame.weights.is_flipped(weight)
        self.stored, self.fixed = frame.weights.stored(weight, active), frame.fixed_of(weight, active)
        self.y = frame.buffer((self.name, "y"), active, self.width)
        self.gx = frame.buffer((self.name, "gx"), active, self.inputs)
        if self.has_bias:
            self.b = frame.weights.view(f"{self.name}bias", active).unsqueeze(1)
            self.gb = frame.vector_gradients.view(f"{self.name}bias", active)
        if frame.gradients is not None:
            self.gw = frame.gradients.stored(weight, active)

    def forward(self, x: Tensor) -> Tensor:
        """Return y."""
        self.x = x
        if self.has_bias:
            return torch.baddbmm(self.b, x, self.wt, out=self.y)
        return torch.bmm(x, self.wt, out=self.y)

    def backward(self, g: Tensor, needs_input: bool) -> Tensor | None:
        """Return the gradient of x."""
        self.g = g
        return torch.bmm(g, self.w, out=self.gx) if needs_input else None

    def norms(self, same: Tensor | None) -> Tensor:
        """Return the squared norm of each row's own gradient, or its part of its unit's, (active, width)."""
        return row_norms(self.x, self.g, self.has_bias, same)

    def learn(self) -> None:
        """Move W, or collect its gradient."""
        if self.is_flipped:
            learn_matrix(self, self.x.transpose(1, 2), self.g)
        else:
            learn_matrix(self, self.g.transpose(1, 2), self.x)
        if self.has_bias:
            self.frame.sum_rows(self.g, self.gb)


def learn_matrix(layer: Any, left: Tensor, right: Tensor) -> None:
    """Move the matrix of a layer where it is stored, or collect its gradient, which is left times right."""
    frame = layer.frame
    if frame.gradients is None:
        layer.stored.baddbmm_(left, right, beta=frame.kept(layer.matrices[0]), alpha=frame.move)
        if layer.fixed is not None:
            layer.stored.add_(layer.fixed)  # here, where the cache still holds the matrix
    elif frame.block == 0:
        torch.bmm(left, right, out=layer.gw)
    else:
        layer.gw.baddbmm_(left, right)


@dataclass
class Activation:
    """An elementwise function. `derivative(g, saved, out)` is aten's own; `keeps` says what it needs."""

    width: int
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor] | None
    keeps: str = "output"
    matrices: tuple[str, ...] = ()

    def bind(self, frame: Frame, active: int) -> None:
        """Nothing is kept between steps."""

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x)."""
        if self.derivative is None:
            self.saved = x.detach().requires_grad_()
            with torch.enable_grad():
                self.out = self.function(self.saved)
            return self.out.detach()
        y = self.function(x)
        self.saved = y if self.keeps == "output" else x
        return y

    def backward(self, g: Tensor, needs_input: bool) -> Tensor | None:
        """Return g f'(x)."""
        if not needs_input:
            return None
        if self.derivative is None:
            return torch.autograd.grad(self.out, self.saved, g)[0]
        return self.derivative(g, self.saved)

    def norms(self, same: Tensor | None) -> None:
        """Nothing is learnt here."""

    def learn(self) -> None:
        """Nothing is learnt here."""


@dataclass
class LayerNorm:
    """Normalise each row over its features, then scale and shift by the site's own leaves."""

    name: str
    width: int
    eps: float
    has_scale: bool
    has_bias: bool
    matrices: tuple[str, ...] = ()

    def bind(self, frame: Frame, active: int) -> None:
        """Take views for so many sites."""
        self.frame = frame
        for has, kind in ((self.has_scale, "weight"), (self.has_bias, "bias")):
            if has:
                setattr(self, kind, frame.weights.view(f"{self.name}{kind}", active).unsqueeze(1))
                setattr(self, f"g_{kind}", frame.vector_gradients.view(f"{self.name}{kind}", active))

    weight: Any = None
    bias: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """Return y."""
        self.x = x
        self.plain, self.mean, self.scale = torch.native_layer_norm(x, [self.width], None, None, self.eps)
        y = self.plain * self.weight if self.has_scale else self.plain
        return y + self.bias if self.has_bias else y

    def backward(self, g: Tensor, needs_input: bool) -> Tensor | None:
        """Return the gradient of x."""
        self.g = g
        if not needs_input:
            return None
        inner = g * self.weight if self.has_scale else g
        return aten.native_layer_norm_backward(
            inner.contiguous(), self.x, [self.width], self.mean, self.scale, None, None, [True, False, False]
        )[0]

    def norms(self, same: Tensor | None) -> Tensor | None:
        """Return the squared norm of each row's own gradient, or its part of its unit's, (active, width)."""
        if not self.has_scale:
            return None
        found = unit_norms(self.g * self.plain, same)
        return found + unit_norms(self.g, same) if self.has_bias else found

    def learn(self) -> None:
        """Collect the gradient."""
        if self.has_scale:
            self.frame.sum_rows(self.g * self.plain, self.g_weight)
        if self.has_bias:
            self.frame.sum_rows(self.g, self.g_bias)


@dataclass
class Dropout:
    """The counter-hash dropout of `dropout.py`, each site under its own words."""

    width: int
    p: float
    number: int
    matrices: tuple[str, ...] = ()

    def bind(self, frame: Frame, active: int) -> None:
        """Take the element numbers of a batch."""
        self.frame, self.active = frame, active
        count = frame.width * self.width
        self.index = torch.arange(count, dtype=torch.int32, device=frame.device).view(
            1, frame.width, self.width
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x with dropped elements."""
        assert self.frame.words is not None
        words = self.frame.words[self.frame.step, : self.active, self.number]
        first, second = (words[:, i].view(-1, 1, 1) for i in (0, 1))
        index = self.index + self.frame.block * self.index.numel() if self.frame.block else self.index
        kept = hash32(index, first, second) >= round(self.p * 2**32) - 2**31
        self.mask = kept.to(x.dtype).mul_(1 / (1 - self.p))
        return x * self.mask

    def backward(self, g: Tensor, needs_input: bool) -> Tensor | None:
        """Return the gradient of x."""
        return g * self.mask if needs_input else None

    def norms(self, same: Tensor | None) -> None:
        """Nothing is learnt here."""

    def learn(self) -> None:
        """Nothing is learnt here."""


@dataclass
class Bag:
    """Mean or sum of word vectors (`EmbeddingBag` without offsets); `padding` is no word. x is (sites, rows,
    words) of int64.
    """

    name: str
    width: int
    vocabulary: int
    padding: int | None
    mode: str

    @property
    def matrices(self) -> tuple[str, ...]:
        """Leaves that get a plane of their own."""
        return (f"{self.name}weight",)

    def bind(self, frame: Frame, active: int) -> None:
        """Take views for so many sites."""
        self.frame, self.active = frame, active
        self.w = frame.weights.view(f"{self.name}weight", active)
        self.fixed = frame.fixed_of(f"{self.name}weight", active)
        if frame.gradients is not None:
            self.gw = frame.gradients.view(f"{self.name}weight", active)
        self.first = torch.arange(active, device=frame.device).view(-1, 1, 1) * self.vocabulary

    def forward(self, x: Tensor) -> Tensor:
        """Return one vector a row."""
        if not x.is_meta and bool(((x < 0) | (x >= self.vocabulary)).any()):
            raise IndexError(f"a word outside the vocabulary of {self.vocabulary}")
        self.at = (x + self.first).reshape(-1)
        is_word = torch.ones_like(x, dtype=torch.bool) if self.padding is None else x != self.padding
        self.share = is_word.to(self.frame.dtype)
        if self.mode == "mean":
            self.share /= self.share.sum(2, keepdim=True).clamp_min(1)
        table = self.w.reshape(self.active * self.vocabulary, self.width)
        found = table.index_select(0, self.at).view(*x.shape, self.width)
        return (found * self.share.unsqueeze(3)).sum(2)

    def backward(self, g: Tensor, needs_input: bool) -> Tensor | None:
        """Words have no gradient."""
        self.g = g
        return None

    def norms(self, same: Tensor | None) -> Tensor:
        """Return the squared norm of each row's own gradient, or its part of its unit's, (active, width).

        A unit's vectors for one word are summed first.
        """
        active, width, _ = self.share.shape
        rows = torch.arange(active * width, device=self.g.device).view(active, width)
        if same is not None:
            rows = rows[:, :1] + same.argmax(2)  # the first row of the unit stands for it
        unit = rows.unsqueeze(2).expand_as(self.share).reshape(-1)
        spread = (self.g.unsqueeze(2) * self.share.unsqueeze(3)).view(-1, self.width)
        return table_norms(unit, active * width, self.at, spread).view(active, width)

    def learn(self) -> None:
        """Move the vectors, or collect their gradient."""
        spread = (self.g.unsqueeze(2) * self.share.unsqueeze(3)).view(-1, self.width)
        found = aten.embedding_dense_backward(spread, self.at, self.active * self.vocabulary, -1, False)
        found = found.view(self.active, self.vocabulary, self.width)
        frame = self.frame
        if frame.gradients is None:
            if (keep := frame.kept(self.matrices[0])) != 1.0:
                self.w.mul_(keep)
            self.w.add_(found, alpha=frame.move)
            if self.fixed is not None:
                self.w.add_(self.fixed)
        else:
            frame.add_vector(self.gw, found)
