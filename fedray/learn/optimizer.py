"""Server optimizers: how the server steps along the mean delta, exactly as in the papers.

With D the mean of the sites' deltas and x the parameters (Reddi et al., Adaptive federated optimization, ICLR 2021,
Algorithm 2; Hsu et al., Measuring the effects of non-identical data distribution, 2019, for momentum):

    sgd       x <- x + lr D
    momentum  v <- beta v + D                              x <- x + lr v        (v = 0 at first, round 1 included)
    adagrad   m <- b1 m + (1-b1) D,  v <- v + D^2           x <- x + lr m / (sqrt v + tau)
    adam      same m,  v <- b2 v + (1-b2) D^2               same step, NO bias correction
    yogi      same m,  v <- v - (1-b2) D^2 sign(v - D^2)    same step

v starts at tau^2 unless `v0` is given. Statistics of BatchNorm (not trainable) move by D itself under every rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray import tree
from fedray.tree import Flat

Rate = float | Callable[[int], float]


@dataclass(frozen=True)
class ServerStep:
    """The next parameters and the optimizer's next state."""

    params: Any
    state: Any


@dataclass(frozen=True)
class ServerOptimizer:
    """A rule: `init(params)` makes its state, `step(params, state, delta, round)` applies it."""

    init: Callable[[Any], Any]
    step: Callable[..., ServerStep]


@dataclass(frozen=True)
class Moments:
    """First and second moment of the mean delta."""

    m: Any
    v: Any


def rate(lr: Rate, round: int) -> float:
    """Return the learning rate of a round: a number, or a schedule of the round."""
    return lr(round) if callable(lr) else lr


def _stepped(params: Any, direction: Any, delta: Any, lr: float) -> Any:
    """Return params + lr direction for trainable elements, params + delta for the rest."""
    def one(x: Tensor, d: Tensor, plain: Tensor) -> Tensor:
        moved = x + lr * d
        if isinstance(params, Flat) and params.schema.trainable < params.schema.stride:
            cut = params.schema.trainable
            moved = torch.cat([moved[:, :cut], x[:, cut:] + plain[:, cut:]], dim=1)
        return moved
    return tree.map(one, params, direction, delta)


@dataclass(frozen=True)
class _Sgd:
    lr: Rate

    def __call__(self, params: Any, state: Any, delta: Any, round: int = 0) -> ServerStep:
        return ServerStep(_stepped(params, delta, delta, rate(self.lr, round)), state)


@dataclass(frozen=True)
class _Momentum:
    lr: Rate
    beta: float

    def __call__(self, params: Any, state: Any, delta: Any, round: int = 0) -> ServerStep:
        velocity = tree.map(lambda v, d: self.beta * v + d, state, delta)
        return ServerStep(_stepped(params, velocity, delta, rate(self.lr, round)), velocity)


@dataclass(frozen=True)
class _Adaptive:
    lr: Rate
    beta1: float
    beta2: float
    tau: float
    rule: str

    def __call__(self, params: Any, state: Moments, delta: Any, round: int = 0) -> ServerStep:
        m = tree.map(lambda m, d: self.beta1 * m + (1 - self.beta1) * d, state.m, delta)
        v = tree.map(self._second, state.v, delta)
        direction = tree.map(lambda m, v: m / (v.sqrt() + self.tau), m, v)
        return ServerStep(_stepped(params, direction, delta, rate(self.lr, round)), Moments(m, v))

    def _second(self, v: Tensor, d: Tensor) -> Tensor:
        square = d * d
        if self.rule == "adagrad":
            return v + square
        if self.rule == "adam":
            return self.beta2 * v + (1 - self.beta2) * square
        return v - (1 - self.beta2) * square * torch.sign(v - square)


@dataclass(frozen=True)
class _StartMoments:
    v0: float

    def __call__(self, params: Any) -> Moments:
        return Moments(tree.zeros_like(params), tree.map(lambda leaf: torch.full_like(leaf, self.v0), params))


def _nothing(params: Any) -> tuple[()]:
    return ()


def sgd(lr: Rate = 1.0) -> ServerOptimizer:
    """Add lr times the mean delta; lr 1 is plain averaging."""
    return ServerOptimizer(_nothing, _Sgd(lr))


def momentum(lr: Rate = 1.0, beta: float = 0.9) -> ServerOptimizer:
    """FedAvgM."""
    return ServerOptimizer(tree.zeros_like, _Momentum(lr, beta))


def _adaptive(rule: str, lr: Rate, beta1: float, beta2: float, tau: float, v0: float | None) -> ServerOptimizer:
    if tau <= 0:
        raise ValueError(f"{rule}: tau={tau} must be above 0, for a coordinate that never moves has v = 0")
    return ServerOptimizer(_StartMoments(tau**2 if v0 is None else v0), _Adaptive(lr, beta1, beta2, tau, rule))


def adagrad(lr: Rate = 0.1, beta1: float = 0.0, tau: float = 1e-3, v0: float | None = None) -> ServerOptimizer:
    """FedAdagrad."""
    return _adaptive("adagrad", lr, beta1, 0.0, tau, v0)


def adam(lr: Rate = 0.1, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3,
         v0: float | None = None) -> ServerOptimizer:
    """FedAdam, without bias correction."""
    return _adaptive("adam", lr, beta1, beta2, tau, v0)


def yogi(lr: Rate = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3,
         v0: float | None = None) -> ServerOptimizer:
    """FedYogi."""
    return _adaptive("yogi", lr, beta1, beta2, tau, v0)
