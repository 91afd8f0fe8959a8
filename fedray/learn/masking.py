"""Self-supervision of tables: which entries were masked, and what stood there. An objective, see
`objectives.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedray.learn.batches import Batch
from fedray.learn.objectives import Loss, Params
from fedray.learn.parts import under

WORD = "vime"  # the two estimators lie beside the model under this word


@dataclass(frozen=True, kw_only=True)
class MaskedRows:
    """Estimate from corrupted rows which entries were masked, and the rows as they were.

    A masked entry is replaced by that of another row of the batch, drawn anew at every step and for each
    column by itself. `features(params, batch)` is the encoder, (rows, width); the column `x` is (rows,
    columns).
    """

    features: Callable[[Params, Batch], Tensor]
    share: float
    weight: float
    generator: torch.Generator | None = None

    def own(self, params: Params) -> dict[str, Tensor]:
        """Return the model, without the estimators."""
        return {name: value for name, value in params.items() if not name.startswith(f"{WORD}.")}

    def __call__(self, loss: Loss, params: Params, batch: Batch) -> Tensor:
        """Return the objective."""
        x, heads = batch["x"], under(params, WORD)
        if x.dim() != 2:
            raise ValueError(f"masked rows are those of a table (rows, columns), got {x.dim()} dimensions")
        mask, other = self._draw(x)
        corrupted = torch.where(mask, other, x)
        z = self.features(self.own(params), {**batch, "x": corrupted})
        masked = F.binary_cross_entropy_with_logits(_linear(z, heads, "mask"), mask.to(z))
        return masked + self.weight * F.mse_loss(_linear(z, heads, "feature"), x.to(z))

    def _draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mask, and every column in an order of its own."""
        draws = torch.rand((2, *x.shape), generator=self.generator, dtype=torch.float64)
        return (draws[0] < self.share).to(x.device), x.gather(0, draws[1].argsort(0).to(x.device))


def _linear(z: Tensor, heads: Mapping[str, Tensor], name: str) -> Tensor:
    return z @ heads[f"{name}.weight"].T + heads[f"{name}.bias"]


def estimators(columns: int, width: int, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the first parameters of both estimators, drawn as those of `torch.nn.Linear`."""
    bound = 1 / width**0.5

    def drawn(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)

    return {f"{name}.{part}": drawn(*shape) for name in ("mask", "feature")
            for part, shape in (("weight", (columns, width)), ("bias", (columns,)))}  # fmt: skip
