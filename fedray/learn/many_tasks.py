"""Label spaces that differ from site to site: a common trunk, a linear head a site, sparse labels.

`ManyTasks` is what `private_heads` trains where the trunk is one of the models of this package. Labels are a
table (rows, tasks of the site) of 0, 1 and `MISSING`; loss and measures are over the labels that are there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedray.learn import dropout
from fedray.learn.batches import Batch
from fedray.learn.models import Model
from fedray.learn.objectives import Features
from fedray.learn.parts import Part, batch_norms, last_layer
from fedray.rng import Key
from fedray.tree import Flat

MISSING = -1.0


@dataclass(frozen=True)
class ManyTasks:
    """The layers of `whole` but the last, and a head of a logit a task, its leaves under `head`.

    It is the loss function of local training and the model of an evaluation. Raises ValueError on a model of
    one layer, with dropout or with batch statistics: the trunk is computed in evaluation mode.
    """

    whole: Model
    task: ClassVar = "binary"
    target: ClassVar = "y"

    def __post_init__(self) -> None:
        Part(last_layer(self.whole)).check(self.whole.functional.start(), "many tasks")
        if dropout.layers(self.whole.module) or _has_batch_norms(self.whole):
            raise ValueError("many tasks: the trunk has no dropout and no batch statistics: set both to none")

    def __getstate__(self) -> dict[str, Any]:
        return {"whole": self.whole}  # not what was derived from it

    @cached_property
    def _trunk(self) -> Features:
        return Features(self.whole)

    def init(self, seed: int = 0) -> Flat:
        """Return the first parameters of the trunk."""
        return Part(last_layer(self.whole)).rest(self.whole.init(seed))

    def make_head(self, data: Any, rng: Key) -> dict[str, Tensor]:
        """Return a first head for a site's tasks, drawn as torch draws a linear layer; biases are zero."""
        (name,) = last_layer(self.whole)
        last = self.whole.module.get_submodule(name).weight
        assert isinstance(last, Tensor)
        width, tasks = last.shape[1], data.train[self.target].shape[1]
        weight = torch.empty(tasks, width, dtype=last.dtype)
        bound = width**-0.5
        return {
            "weight": weight.uniform_(-bound, bound, generator=rng.generator()),
            "bias": weight.new_zeros(tasks),
        }

    def predict(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return a logit for each row and task: (rows, tasks)."""
        trunk = {name: params[name] for name in params if not name.startswith("head.")}
        return self._trunk(trunk, batch) @ params["head.weight"].T + params["head.bias"]

    def labelled(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and labels where there is a label, as two lists."""
        there = target != MISSING
        return output[there], target[there]

    def loss_of(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the labels that are there, 0 without any."""
        target = batch[self.target].to(output.dtype)
        there = target != MISSING
        found = F.binary_cross_entropy_with_logits(output, target.clamp_min(0), reduction="none")
        return (found * there).sum() / there.sum().clamp_min(1)

    def __call__(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the loss: what local training minimises."""
        return self.loss_of(self.predict(params, batch), batch)


def _has_batch_norms(model: Model) -> bool:
    try:
        return bool(batch_norms(model))
    except ValueError:
        return False
