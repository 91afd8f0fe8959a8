"""Local training: SGD or AdamW over a flat buffer, for a `Model` or for a plain `loss(params, batch)`.

One loop for all: gradients land in one buffer, and what an algorithm adds (a correction, a proximal pull), clipping,
weight decay and the step are one operation each over that buffer. Optimizer state is made anew in every round unless
`keep` is asked of the algorithm by other means; parameters that are given are never written to.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedray import tree
from fedray.learn.update import Update
from fedray.rng import Key
from fedray.tree import Flat

Rate = float | Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much local work: epochs or steps, and the batches."""

    epochs: int | None = 1
    steps: int | None = None
    batch_size: int | None = None

    def batches(self, rows: int, generator: torch.Generator) -> Iterator[Tensor | None]:
        """Yield row numbers of one batch after the other; None is the full batch. The last partial batch is kept."""
        taken = 0
        limit = self.steps if self.steps is not None else float("inf")
        epochs = float("inf") if self.steps is not None else (self.epochs or 0)
        epoch = 0
        while rows and taken < limit and epoch < epochs:
            if self.batch_size is None or self.batch_size >= rows:
                parts: tuple[Tensor | None, ...] = (None,)
            else:
                parts = torch.randperm(rows, generator=generator).split(self.batch_size)
            for part in parts:
                if taken >= limit:
                    return
                taken += 1
                yield part
            epoch += 1


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """A local update, callable as (params, data, rng). `rule` is "sgd" or "adamw"; see `sgd` and `adamw`."""

    model: Any
    lr: Rate
    plan: Plan
    rule: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    l2: float = 0.0
    clip_norm: float | None = None
    pos_weight: float | None = None
    prox: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amp: bool = False
    frozen: tuple[str, ...] = field(default=())

    def __call__(self, params: Flat, data: Any, rng: Key, *, correction: Flat | None = None,
                 anchor: Flat | None = None, prox: float | None = None) -> Update:
        """Train from `params` on the training rows and return what changed.

        `correction` is added to every gradient; `prox / 2 ||y - anchor||^2` to the loss, the anchor being the
        parameters received unless another is given.
        """
        rows = data.train if hasattr(data, "train") else data
        num_rows = rows.num_rows if hasattr(rows, "num_rows") else len(next(iter(rows.values())))
        params = tree.flatten(params)
        work = _Work(self, params, rng, correction, anchor or params, self.prox if prox is None else prox)
        losses, steps = 0.0, 0
        for part in self.plan.batches(num_rows, rng.generator()):
            batch = rows if part is None else {name: rows[name][part] for name in rows}
            losses += float(work.step(batch, steps))
            steps += 1
        delta = Flat(work.flat.buffer - params.buffer, params.schema)
        return Update(delta, num_rows, steps, {"loss": losses / max(1, steps)})


class _Work:
    """The buffers of one local training."""

    def __init__(self, how: LocalTraining, params: Flat, rng: Key, correction: Flat | None, anchor: Flat,
                 prox: float) -> None:
        self.how, self.correction, self.anchor, self.prox = how, correction, anchor, prox
        self.flat = params.clone()
        self.key = rng.child("dropout").value
        self.lr = how.lr(rng.round) if callable(how.lr) else how.lr
        self.grad = Flat(torch.zeros_like(self.flat.buffer), params.schema)
        names = [leaf.name for leaf in params.schema.leaves if leaf.offset < params.schema.trainable]
        self.leaves = {name: self.flat[name].detach().requires_grad_() for name in names if name not in how.frozen}
        self.statistics = {name: self.flat[name] for name in params if name not in self.leaves}
        self.weights = _is_weight(params) if how.l2 else None
        self.first: Tensor | None = None
        self.second: Tensor | None = None

    def step(self, batch: Mapping[str, Tensor], number: int) -> Tensor:
        loss = self._loss(batch, number)
        found = torch.autograd.grad(loss, list(self.leaves.values()), allow_unused=True)
        for name, value in zip(self.leaves, found, strict=True):
            if value is not None:
                self.grad[name].copy_(value)
        with torch.no_grad():
            self._move(number)
        return loss.detach()

    def _loss(self, batch: Mapping[str, Tensor], number: int) -> Tensor:
        params = {**self.leaves, **self.statistics}
        loss_of = getattr(self.how.model, "loss", None)
        if loss_of is None:
            found: Tensor = self.how.model(params, batch)
            return found
        device = next(iter(batch.values())).device.type
        with torch.autocast(device, enabled=self.how.amp and device != "cpu"):
            loss: Tensor = loss_of(params, batch, key=self.key, step=number, pos_weight=self.how.pos_weight)
        return loss

    def _move(self, number: int) -> None:
        how, cut = self.how, self.flat.schema.trainable
        x, grad = self.flat.buffer[:, :cut], self.grad.buffer[:, :cut]
        if self.weights is not None:
            grad.addcmul_(self.weights[:, :cut], x, value=how.l2)
        if self.prox:
            grad.add_(x - self.anchor.buffer[:, :cut], alpha=self.prox)
        if self.correction is not None:
            grad.add_(self.correction.buffer[:, :cut])
        if how.clip_norm is not None:
            norm = float(grad.double().norm())
            if norm > how.clip_norm:
                grad.mul_(how.clip_norm / norm)
        if how.rule == "adamw":
            self._adamw(x, grad, number + 1)
            return
        if how.weight_decay:
            grad.add_(x, alpha=how.weight_decay)
        if how.momentum:
            self.first = grad.clone() if self.first is None else self.first.mul_(how.momentum).add_(grad)
            grad = self.first
        x.add_(grad, alpha=-self.lr)

    def _adamw(self, x: Tensor, grad: Tensor, step: int) -> None:
        beta1, beta2 = self.how.betas
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(grad), torch.zeros_like(grad)
        x.mul_(1 - self.lr * self.how.weight_decay)
        self.first.mul_(beta1).add_(grad, alpha=1 - beta1)
        self.second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (self.second / (1 - beta2**step)).sqrt_().add_(self.how.eps)
        x.addcdiv_(self.first, root, value=-self.lr / (1 - beta1**step))


def _is_weight(params: Flat) -> Tensor:
    """Return ones where a leaf is a weight, zeros where it is an intercept (its name ends in "bias")."""
    mask = Flat(torch.zeros_like(params.buffer), params.schema)
    for name in params:
        if not name.endswith("bias"):
            mask[name].fill_(1.0)
    return mask.buffer


def _plan(epochs: int | None, steps: int | None, batch_size: int | None) -> Plan:
    if steps is None and (epochs is None or epochs < 1):
        raise ValueError(f"epochs={epochs}: give at least 1 epoch, or steps")
    if (steps is not None and steps < 1) or (batch_size is not None and batch_size < 1):
        raise ValueError(f"steps={steps}, batch_size={batch_size}: give 1 or more, or none")
    return Plan(epochs=epochs, steps=steps, batch_size=batch_size)


def sgd(model: Any, lr: Rate, *, epochs: int | None = 1, steps: int | None = None, batch_size: int | None = None,
        momentum: float = 0.0, weight_decay: float = 0.0, l2: float = 0.0, clip_norm: float | None = None,
        pos_weight: float | None = None, prox: float = 0.0, amp: bool = False) -> LocalTraining:
    """Return local SGD. `model` is a `Model` or a function loss(params, batch) -> scalar.

    `batch_size=None` is the full batch; `steps` counts batches and replaces `epochs`. `l2` adds l2/2 ||w||^2 without
    intercepts, `weight_decay` adds weight_decay times every parameter. Momentum starts at zero in every round.
    """
    return LocalTraining(model=model, lr=lr, plan=_plan(epochs, steps, batch_size), momentum=momentum,
                         weight_decay=weight_decay, l2=l2, clip_norm=clip_norm, pos_weight=pos_weight, prox=prox, amp=amp)


def adamw(model: Any, lr: Rate, *, epochs: int | None = 1, steps: int | None = None, batch_size: int | None = None,
          weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, l2: float = 0.0,
          clip_norm: float | None = None, pos_weight: float | None = None, prox: float = 0.0,
          amp: bool = False) -> LocalTraining:
    """Return local AdamW (Loshchilov and Hutter, ICLR 2019), its moments started anew in every round."""
    return LocalTraining(model=model, lr=lr, plan=_plan(epochs, steps, batch_size), rule="adamw",
                         weight_decay=weight_decay, betas=betas, eps=eps, l2=l2, clip_norm=clip_norm,
                         pos_weight=pos_weight, prox=prox, amp=amp)
