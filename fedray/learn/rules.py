"""Local step rules: how a gradient moves the weights. Both work in place on flat vectors of their caller."""

import math
from dataclasses import dataclass

from torch import Tensor

from fedray.settings import check_numbers

WHO = "local training"
State = dict[str, Tensor]


@dataclass(frozen=True)
class SgdRule:
    """Gradient descent, with momentum in torch's form (first step: the gradient itself)."""

    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(WHO, least=0, below=1, momentum=self.momentum)
        check_numbers(WHO, least=0, weight_decay=self.weight_decay)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the vectors that the rule keeps between steps."""
        return ("momentum",) if self.momentum else ()

    def step(self, weights: Tensor, gradient: Tensor, state: State, lr: float | Tensor, count: int) -> None:
        """Move `weights`; `gradient` may be overwritten. `lr` is a number, or one a row of `weights`."""
        if self.weight_decay:
            gradient.add_(weights, alpha=self.weight_decay)
        if self.momentum:
            gradient = state["momentum"].mul_(self.momentum).add_(gradient)
        if isinstance(lr, Tensor):
            weights.sub_(gradient * lr)  # not addcmul_: its vector and scalar loops round differently
        else:
            weights.add_(gradient, alpha=-lr)


@dataclass(frozen=True)
class AdamWRule:
    """AdamW with bias correction and decoupled decay.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization, ICLR 2019, Algorithm 2, in torch's
    form: the decay is lr * weight_decay.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        check_numbers(WHO, least=0, below=1, beta1=self.beta1, beta2=self.beta2)
        check_numbers(WHO, least=0, eps=self.eps, weight_decay=self.weight_decay)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the vectors that the rule keeps between steps."""
        return "first", "second"

    def step(self, weights: Tensor, gradient: Tensor, state: State, lr: float | Tensor, count: int) -> None:
        """Move `weights`; `count` is 1 in the first step. `lr` is a number, or one a row of `weights`."""
        first, second = state["first"], state["second"]
        weights.mul_(1 - lr * self.weight_decay)
        first.lerp_(gradient, 1 - self.beta1)
        second.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        root = second.sqrt().div_(math.sqrt(1 - self.beta2**count)).add_(self.eps)
        if isinstance(lr, Tensor):
            weights.addcdiv_(first * lr, root, value=-1 / (1 - self.beta1**count))
        else:
            weights.addcdiv_(first, root, value=-lr / (1 - self.beta1**count))


Rule = SgdRule | AdamWRule
