"""Small sites and a small local update, shared by the tests of the runtime. The update is written out by
hand."""

from dataclasses import dataclass
from typing import Any

import torch

import fedray as fr
from fedray import tree
from fedray.data.site import SiteData

NUM_FEATURES = 5
INIT = {"w": torch.zeros(NUM_FEATURES), "b": torch.zeros(())}


@dataclass(frozen=True)
class ToyUpdate:
    delta: Any
    num_examples: int
    num_steps: int
    metrics: Any


@dataclass(frozen=True)
class Open:
    number: int
    empty: bool = False

    def __call__(self):
        generator = torch.Generator().manual_seed(self.number)
        rows = 0 if self.empty else 8 + 3 * self.number
        x = torch.randn(rows, NUM_FEATURES, generator=generator)
        y = (torch.rand(rows, generator=generator) < torch.sigmoid(x[:, 0])).float()
        return SiteData({"x": x, "y": y})


def sites(count=12):
    return {f"h{number:02d}": Open(number) for number in range(count)}


@dataclass(frozen=True)
class ToyLocal:
    """Three steps of logistic regression on random halves of the rows."""

    lr: float = 0.1
    steps: int = 3

    def __call__(self, params, data, rng, *, correction=None, anchor=None, prox=0.0):
        x, y = data.train["x"], data.train["y"]
        weight, bias = params["w"].clone(), params["b"].clone()
        generator = rng.generator()
        loss = 0.0
        for _ in range(self.steps if len(y) else 0):
            rows = torch.randperm(len(y), generator=generator)[: max(1, len(y) // 2)]
            probability = torch.sigmoid(x[rows] @ weight + bias)
            error = (probability - y[rows]) / len(rows)
            slope, offset = x[rows].T @ error, error.sum()
            if correction is not None:
                slope, offset = slope + correction["w"], offset + correction["b"]
            if anchor is not None:
                slope, offset = slope + prox * (weight - anchor["w"]), offset + prox * (bias - anchor["b"])
            weight, bias = weight - self.lr * slope, bias - self.lr * offset
            loss = float((probability - y[rows]).square().mean())
        delta = tree.sub(tree.flatten({"w": weight, "b": bias}), params)
        return ToyUpdate(delta, len(y), self.steps if len(y) else 0, {"loss": loss})


@dataclass(frozen=True)
class Breaks:
    """A local update that misbehaves at named sites, in one round, before or after training."""

    inner: ToyLocal
    at: tuple[str, ...]
    in_round: int
    how: str

    @property
    def lr(self):
        return self.inner.lr

    def __call__(self, params, data, rng, **extra):
        update = self.inner(params, data, rng, **extra)
        if rng.site in self.at and rng.round == self.in_round:
            if self.how == "raise":
                raise RuntimeError("a patient's name could stand here")
            if self.how == "nan":
                return ToyUpdate(
                    tree.scale(update.delta, float("nan")),
                    update.num_examples,
                    update.num_steps,
                    update.metrics,
                )
        return update


def train(
    algorithm, data=None, rounds=5, schedule=None, seed=0, passes=(), checkpoint=None, resume=False, **layout
):
    with fr.simulate(data or sites(), **layout) as federation:
        return fr.fit(
            algorithm,
            federation,
            init=INIT,
            rounds=rounds,
            seed=seed,
            passes=passes,
            schedule=schedule or fr.synchronous(),
            checkpoint=checkpoint,
            resume=resume,
        )
