"""Server optimizers: how the mean update moves the global model. The paper's form, nothing applied twice.

Source: Reddi et al., Adaptive federated optimization, ICLR 2021, Algorithm 2 (Adagrad, Adam, Yogi: no bias
correction, v starts at tau^2); momentum: Hsu, Qi, Brown, Measuring the effects of non-identical data
distribution, 2019 (v starts at 0, the first round included). D, the mean of local - global, is ADDED.
Only trainable leaves are stepped by the rule; BatchNorm statistics become params + delta. Option: `v0`.
A step writes to none of its inputs and makes one buffer for each result; what it needs in between is a block.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray import tree
from fedray.learn.schedules import Schedule, at
from fedray.settings import check_numbers, check_rates
from fedray.tree import Flat

BLOCK = 2**16  # elements of a step that stay in the cache


@dataclass(frozen=True, slots=True)
class ServerStep:
    """The next global parameters and the next optimizer state."""

    params: Flat
    state: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """Hold `init(params) -> state` and `step(params, state, delta, round=0) -> ServerStep`, both pure."""

    init: Callable[[Flat], dict[str, Any]]
    step: Callable[..., ServerStep]


@dataclass(frozen=True)
class Momentum:
    """v <- beta v + D; x <- x + lr v. With beta = 0: x <- x + lr D, and no state."""

    lr: float | Schedule
    beta: float = 0.0

    def init(self, params: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the state before the first round."""
        return {"v": tree.zeros_like(tree.flatten(params))} if self.beta else {}

    def step(self, params: Any, state: Mapping[str, Any], delta: Any, round: int = 0) -> ServerStep:
        """Return parameters and state after a round."""
        x, d = _flat_pair(params, delta)
        if not self.beta:
            return ServerStep(_moved(x, d, d.buffer * at(self.lr, round)), {})
        v = (state["v"].buffer * self.beta).add_(d.buffer)
        return ServerStep(_moved(x, d, v * at(self.lr, round)), {"v": _trainable_only(v, x)})


@dataclass(frozen=True)
class Adaptive:
    """m <- b1 m + (1-b1) D; v by `kind`; x <- x + lr m / (sqrt v + tau)."""

    kind: str
    lr: float | Schedule
    beta1: float
    beta2: float
    tau: float
    v0: float | None

    def init(self, params: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the state before the first round: m = 0, v = v0 (tau^2 unless given)."""
        m = tree.zeros_like(tree.flatten(params))
        v = torch.full_like(m.buffer, self.tau**2 if self.v0 is None else self.v0)
        return {"m": m, "v": _trainable_only(v, m)}

    def step(self, params: Any, state: Mapping[str, Any], delta: Any, round: int = 0) -> ServerStep:
        """Return parameters and state after a round."""
        x, d = _flat_pair(params, delta)
        before, rate = (state["m"].buffer, state["v"].buffer), at(self.lr, round)
        m, v, move = (torch.empty_like(x.buffer) for _ in range(3))
        for start in range(0, x.buffer.shape[1], BLOCK):
            here = (slice(None), slice(start, start + BLOCK))
            delta_here = d.buffer[here]
            m[here] = self.beta1 * before[0][here] + (1 - self.beta1) * delta_here
            v[here] = self._second(before[1][here], delta_here.square())
            move[here] = rate * m[here] / (v[here].sqrt() + self.tau)
        return ServerStep(_moved(x, d, move), {"m": _trainable_only(m, x), "v": _trainable_only(v, x)})

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        if self.kind == "adagrad":
            return v + square
        if self.kind == "adam":
            return self.beta2 * v + (1 - self.beta2) * square
        return v - (1 - self.beta2) * square * torch.sign(v - square)


def _flat_pair(params: Any, delta: Any) -> tuple[Flat, Flat]:
    x = tree.flatten(params)
    return x, Flat(tree.flatten(delta, x.schema).buffer.to(x.buffer), x.schema)


def _moved(x: Flat, d: Flat, move: Tensor) -> Flat:
    """Return x + move on trainable elements and x + delta on the others, in the memory of `move`."""
    cut = x.schema.trainable
    move[:, cut:] = d.buffer[:, cut:]
    return Flat(move.add_(x.buffer), x.schema)


def _trainable_only(buffer: Tensor, like: Flat) -> Flat:
    """Set padding and other leaves to zero, in place, and return the buffer as a value."""
    end = 0
    for leaf in sorted(like.schema.leaves, key=lambda leaf: leaf.offset):
        if leaf.offset < like.schema.trainable:
            buffer[:, end : leaf.offset] = 0.0
            end = leaf.offset + leaf.size
    buffer[:, end:] = 0.0
    return Flat(buffer, like.schema)


def _optimizer(rule: Momentum | Adaptive) -> ServerOptimizer:
    who = "server optimizer"
    check_rates(who, lr=rule.lr)
    if isinstance(rule, Momentum):
        check_numbers(who, least=0, below=1, beta=rule.beta)
    else:
        check_numbers(who, least=0, below=1, beta1=rule.beta1, beta2=rule.beta2)
        check_numbers(who, above=0, tau=rule.tau)
        check_numbers(who, least=0, or_none=True, v0=rule.v0)
    return ServerOptimizer(rule.init, rule.step)


def sgd(lr: float | Schedule = 1.0) -> ServerOptimizer:
    """Step by x <- x + lr D: plain averaging with lr = 1 (FedAvg)."""
    return _optimizer(Momentum(lr))


def momentum(lr: float | Schedule = 1.0, beta: float = 0.9) -> ServerOptimizer:
    """Server momentum (FedAvgM)."""
    return _optimizer(Momentum(lr, beta))


def adagrad(
    lr: float | Schedule = 0.1, beta1: float = 0.0, tau: float = 1e-3, v0: float | None = None
) -> ServerOptimizer:
    """Step with v <- v + D^2 (FedAdagrad)."""
    return _optimizer(Adaptive("adagrad", lr, beta1, 0.0, tau, v0))


def adam(
    lr: float | Schedule = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    v0: float | None = None,
) -> ServerOptimizer:
    """Step with v <- b2 v + (1-b2) D^2, without bias correction (FedAdam)."""
    return _optimizer(Adaptive("adam", lr, beta1, beta2, tau, v0))


def yogi(
    lr: float | Schedule = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    v0: float | None = None,
) -> ServerOptimizer:
    """Step with v <- v - (1-b2) D^2 sign(v - D^2) (FedYogi)."""
    return _optimizer(Adaptive("yogi", lr, beta1, beta2, tau, v0))
