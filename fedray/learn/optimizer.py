"""Server optimizers: how the mean update moves the global model. The paper's form, nothing applied twice.

Source: Reddi et al., Adaptive federated optimization, ICLR 2021, Algorithm 2 (Adagrad, Adam, Yogi: no bias
correction, v starts at tau^2); momentum: Hsu, Qi, Brown, Measuring the effects of non-identical data
distribution, 2019 (v starts at 0, the first round included). D, the mean of local - global, is ADDED.
Only trainable leaves are stepped by the rule; BatchNorm statistics become params + delta. Option: `v0`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray import tree
from fedray.learn.schedules import Schedule, at
from fedray.tree import Flat


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
        v = d.buffer
        if self.beta:
            v = self.beta * state["v"].buffer + v
        kept = {"v": _trainable_only(v, x)} if self.beta else {}
        return ServerStep(_moved(x, d, at(self.lr, round) * v), kept)


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
        m = self.beta1 * state["m"].buffer + (1 - self.beta1) * d.buffer
        v = self._second(state["v"].buffer, d.buffer.square())
        move = at(self.lr, round) * m / (v.sqrt() + self.tau)
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
    """Return x + move on trainable elements and x + delta on the others, in the dtype of x."""
    cut = x.schema.trainable
    whole = torch.cat([move[:, :cut], d.buffer[:, cut:]], dim=1)
    return Flat(x.buffer + whole.to(x.buffer.dtype), x.schema)


def _trainable_only(buffer: Tensor, like: Flat) -> Flat:
    """Return the buffer as a value whose padding and other leaves are zero."""
    kept = Flat(torch.zeros_like(buffer), like.schema)
    for leaf in like.schema.leaves:
        if leaf.offset < like.schema.trainable:
            here = slice(leaf.offset, leaf.offset + leaf.size)
            kept.buffer[:, here] = buffer[:, here]
    return kept


def _optimizer(rule: Momentum | Adaptive) -> ServerOptimizer:
    if not callable(rule.lr) and rule.lr < 0:
        raise ValueError(f"server optimizer: lr={rule.lr} must be 0 or more")
    betas = [rule.beta] if isinstance(rule, Momentum) else [rule.beta1, rule.beta2]
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"server optimizer: {betas} must lie in [0, 1)")
    if isinstance(rule, Adaptive) and (rule.tau <= 0 or (rule.v0 is not None and rule.v0 < 0)):
        raise ValueError(f"server optimizer: tau={rule.tau} must be above 0 and v0={rule.v0} 0 or more")
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
