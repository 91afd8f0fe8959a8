"""Learning rates as functions of the round: plain, picklable, printable."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class constant:  # noqa: N801 (a factory: it is called like a function)
    """The same rate in every round."""

    lr: float

    def __call__(self, round: int) -> float:
        """Return the rate of a round."""
        return self.lr


@dataclass(frozen=True)
class step:  # noqa: N801
    """Multiply by `factor` after every `every` rounds."""

    lr: float
    every: int
    factor: float = 0.1

    def __call__(self, round: int) -> float:
        """Return the rate of a round."""
        return self.lr * self.factor ** (round // self.every)


@dataclass(frozen=True)
class cosine:  # noqa: N801
    """Fall along half a cosine from `lr` to `end` in `rounds` rounds, then stay."""

    lr: float
    rounds: int
    end: float = 0.0

    def __call__(self, round: int) -> float:
        """Return the rate of a round."""
        share = min(1.0, round / max(1, self.rounds))
        return self.end + (self.lr - self.end) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class warmup:  # noqa: N801
    """Rise linearly to `lr` in `rounds` rounds; `after` (a schedule of the rounds that follow) takes over then."""

    lr: float
    rounds: int
    after: constant | step | cosine | None = None

    def __call__(self, round: int) -> float:
        """Return the rate of a round."""
        if round < self.rounds:
            return self.lr * (round + 1) / self.rounds
        return self.after(round - self.rounds) if self.after else self.lr
