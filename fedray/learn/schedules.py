"""Learning rates as functions of the round: plain numbers in, one number out, equal everywhere."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fedray.settings import check_numbers, check_rates, check_whole

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same rate in every round."""

    lr: float

    def __call__(self, round: int) -> float:
        """Return the rate of a round."""
        return self.lr


@dataclass(frozen=True)
class Step:
    """lr * factor^(round // every)."""

    lr: float
    every: int
    factor: float

    def __call__(self, round: int) -> float:
        """Return the rate of a round."""
        return self.lr * self.factor ** (round // self.every)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `lr` in round 0 to `final` in round `rounds`, `final` afterwards.

    Source: Loshchilov and Hutter, SGDR, ICLR 2017, equation 5, without restarts.
    """

    lr: float
    rounds: int
    final: float

    def __call__(self, round: int) -> float:
        """Return the rate of a round."""
        share = min(round, self.rounds) / self.rounds
        return self.final + (self.lr - self.final) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Warmup:
    """A straight line from `start` to `then` over the first `rounds` rounds, then `then` from its round 0."""

    then: float | Schedule
    rounds: int
    start: float

    def __call__(self, round: int) -> float:
        """Return the rate of a round."""
        if round >= self.rounds:
            return self._then(round - self.rounds)
        return self.start + (self._then(0) - self.start) * round / self.rounds

    def _then(self, round: int) -> float:
        return self.then(round) if callable(self.then) else self.then


def constant(lr: float) -> Constant:
    """Keep one rate."""
    check_numbers("constant", least=0, lr=lr)
    return Constant(lr)


def step(lr: float, every: int, factor: float = 0.1) -> Step:
    """Multiply the rate by `factor` every `every` rounds."""
    check_numbers("step", least=0, lr=lr, factor=factor)
    check_whole("step", every=every)
    return Step(lr, every, factor)


def cosine(lr: float, rounds: int, final: float = 0.0) -> Cosine:
    """Let the rate fall from `lr` to `final` over `rounds` rounds."""
    check_numbers("cosine", least=0, lr=lr, final=final)
    check_whole("cosine", rounds=rounds)
    return Cosine(lr, rounds, final)


def warmup(then: float | Schedule, rounds: int, start: float = 0.0) -> Warmup:
    """Raise the rate from `start` for `rounds` rounds, then follow `then`, a number or a schedule."""
    check_rates("warmup", then=then)
    check_numbers("warmup", least=0, start=start)
    check_whole("warmup", rounds=rounds)
    return Warmup(then, rounds, start)


def at(lr: float | Schedule, round: int) -> float:
    """Return the rate of a round of a number or a schedule."""
    return float(lr(round) if callable(lr) else lr)
