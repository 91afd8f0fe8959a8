"""Distillation: a model is trained on what others predict. Objectives, see `objectives.py`.

What a teacher predicts of a row are logits in the column `teacher`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedray.learn.batches import Batch
from fedray.learn.models import Model
from fedray.learn.objectives import Loss, Params
from fedray.learn.parts import under
from fedray.learn.supervision import Logits, log_probabilities


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student) of the softmax of logits over a temperature, the mean over rows."""
    told, said = log_probabilities(teacher / temperature), log_probabilities(student / temperature)
    return (told.exp() * (told - said)).sum(1).mean()


@dataclass(frozen=True)
class Distil:
    """Follow the teacher alone; no label is read."""

    logits: Logits

    def __call__(self, loss: Loss, params: Params, batch: Batch) -> Tensor:
        """Return the divergence."""
        return divergence(batch["teacher"], self.logits(params, batch))


@dataclass(frozen=True)
class Taught:
    """The loss, and `weight` times the divergence from the teacher; the loss alone where there is none."""

    logits: Logits
    weight: float = 1.0
    temperature: float = 1.0

    def __call__(self, loss: Loss, params: Params, batch: Batch) -> Tensor:
        """Return the objective."""
        found = loss(params, batch)
        if "teacher" not in batch:
            return found
        return found + self.weight * divergence(
            batch["teacher"], self.logits(params, batch), self.temperature
        )


@dataclass(frozen=True)
class Ensemble:
    """A model record whose parameters are several models beside each other, under 0, 1, ...

    What it predicts are the logits of the mean of their probabilities.
    """

    model: Model

    @property
    def task(self) -> str:
        """The task of its models."""
        return self.model.task

    @property
    def target(self) -> str:
        """The column of the labels."""
        return self.model.target

    def predict(self, params: Params, batch: Batch) -> Tensor:
        """Return log-odds (rows,) of a binary outcome, log-probabilities (rows, classes) else."""
        words = dict.fromkeys(name.partition(".")[0] for name in params)
        models = [under(params, word) for word in words]
        with torch.no_grad():
            said = torch.stack([log_probabilities(self.model.output(one, batch)) for one in models])
            mean = torch.logsumexp(said, 0) - torch.log(torch.tensor(float(len(models))))
        return mean[:, 1] - mean[:, 0] if self.task == "binary" else mean

    def loss_of(self, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean loss of a prediction."""
        return self.model.loss_of(output, batch)
