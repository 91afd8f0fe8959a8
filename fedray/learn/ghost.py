"""Book-keeping ("ghost") clipping: the gradients of single units are never formed. `clipping.py` uses it.

One backward pass to the outputs of the layers is enough: a unit's norm follows from each layer's input and
the gradient at its output, and so does the clipped sum. For Linear (of rows and of series), Embedding and
EmbeddingBag (a unit may hold a word twice) and LayerNorm. A unit is a row, or all rows of one patient. The
stacked form does the same by its own layers (`layers.py`).

Source: Lee and Kifer, Scaling up differentially private deep learning with fast per-example gradient
clipping, PoPETs 2021 (norms); Bu et al., Differentially private optimization on large model at small cost,
ICML 2023 (book-keeping, and the choice for series).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6; kept so that all forms clip alike


@dataclass(frozen=True, slots=True)
class Units:
    """Which unit each row of a batch belongs to: numbers 0 to count - 1, (rows,)."""

    of_row: Tensor
    count: int

    @staticmethod
    def alone(rows: int, device: torch.device) -> "Units":
        """Return every row as a unit of its own."""
        return Units(torch.arange(rows, device=device), rows)

    @property
    def is_alone(self) -> bool:
        """Tell whether every unit has one row, in order."""
        return self.count == len(self.of_row)

    def to(self, device: torch.device) -> "Units":
        """Return the same on a device."""
        return Units(self.of_row.to(device), self.count)

    def sum(self, rows: Tensor) -> Tensor:
        """Return the sum over each unit's rows, (units, ...)."""
        if self.is_alone:
            return rows
        return rows.new_zeros(self.count, *rows.shape[1:]).index_add_(0, self.of_row, rows)

    def stack(self, rows: Tensor) -> Tensor:
        """Bring (rows, steps, features) to one series a unit, (units, longest, features), zeros behind it."""
        if self.is_alone:
            return rows
        order = torch.argsort(self.of_row, stable=True)
        unit = self.of_row[order]
        sizes = torch.bincount(unit, minlength=self.count)
        place = torch.arange(len(order), device=rows.device) - (sizes.cumsum(0) - sizes)[unit]
        found = rows.new_zeros(self.count, int(sizes.max()), *rows.shape[1:])
        found[unit, place] = rows[order]
        return found.flatten(1, 2)


def clip_factors(norms: Tensor, bound: float) -> Tensor:
    """Return what each unit's gradient is multiplied by, so that its norm is `bound` at most."""
    return torch.clamp(bound / (norms + CLIP_EPS), max=1.0)


def linear_norms(x: Tensor, g: Tensor, has_bias: bool) -> Tensor:
    """Return the squared norm of each series' gradient; x is (series, steps, in), g (series, steps, out).

    Of one step: (|x|^2 + 1) |g|^2. Of several: the sum over pairs of steps of (x.x' + 1) (g.g'), or the norm
    of the gradient itself where that is smaller than the pairs.
    """
    steps = x.shape[1]
    if steps == 1:
        return (x.square().sum((1, 2)) + has_bias) * g.square().sum((1, 2))
    if steps * steps <= x.shape[2] * g.shape[2]:
        return ((torch.bmm(x, x.mT) + float(has_bias)) * torch.bmm(g, g.mT)).sum((1, 2))
    found = torch.bmm(g.mT, x).square().sum((1, 2))
    return found + g.sum(1).square().sum(1) if has_bias else found


def table_norms(unit: Tensor, count: int, word: Tensor, g: Tensor) -> Tensor:
    """Return the squared norm of each unit's gradient of a table, (count,).

    Entry i of `g` (entries, features) is added to row `word[i]` of the table by unit `unit[i]`: a unit's
    entries for one word are summed before they are squared.
    """
    if not len(g):
        return g.new_zeros(count)
    words = int(word.max()) + 1
    place, inverse = torch.unique(unit * words + word, return_inverse=True)
    sums = torch.ops.aten.embedding_dense_backward(g, inverse, len(place), -1, False)
    return g.new_zeros(count).index_add_(0, place // words, sums.square().sum(1))


@dataclass(slots=True)
class Seen:
    """What one layer saw in one forward pass."""

    layer: nn.Module
    inputs: Tensor
    output: Tensor
    versions: tuple[int, int]

    @property
    def is_untouched(self) -> bool:
        """Tell whether nobody has written into the tensors since."""
        return (self.inputs._version, self.output._version) == self.versions


class _Linear:
    """Clipped gradient of y = x W' + b, for rows or series of rows."""

    @staticmethod
    def norms(seen: Seen, g: Tensor, units: Units) -> Tensor:
        x, g = _series(seen.inputs), _series(g)
        return linear_norms(units.stack(x), units.stack(g), seen.layer.bias is not None)

    @staticmethod
    def learn(seen: Seen, g: Tensor, factors: Tensor) -> dict[str, Tensor]:
        g = _series(g).mul(factors.view(-1, 1, 1)).flatten(0, 1)
        found = {"weight": g.T @ seen.inputs.reshape(len(g), -1)}
        return found if seen.layer.bias is None else {**found, "bias": g.sum(0)}


class _LayerNorm:
    """Clipped gradient of scale and shift: rows' gradients are as small as the rows, and are formed."""

    @staticmethod
    def _rows(seen: Seen, g: Tensor) -> dict[str, Tensor]:
        layer: Any = seen.layer
        size = layer.weight.numel()
        plain = F.layer_norm(seen.inputs, layer.normalized_shape, eps=layer.eps)
        found = {"weight": (g * plain).reshape(len(g), -1, size).sum(1)}
        return found if layer.bias is None else {**found, "bias": g.reshape(len(g), -1, size).sum(1)}

    @staticmethod
    def norms(seen: Seen, g: Tensor, units: Units) -> Tensor:
        return torch.stack([units.sum(r).square().sum(1) for r in _LayerNorm._rows(seen, g).values()]).sum(0)

    @staticmethod
    def learn(seen: Seen, g: Tensor, factors: Tensor) -> dict[str, Tensor]:
        layer: Any = seen.layer
        rows = _LayerNorm._rows(seen, g)
        return {name: (factors @ found).view(layer.normalized_shape) for name, found in rows.items()}


class _Embedding:
    """Clipped gradient of a table of vectors, looked up or summed in bags."""

    @staticmethod
    def _entries(seen: Seen, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return words (rows, words) and what is added to each, (rows, words, features); padding adds 0."""
        layer: Any = seen.layer
        word = seen.inputs.reshape(len(seen.inputs), -1)
        padding = layer.padding_idx
        share = (word != (-1 if padding is None else padding)).to(g.dtype).unsqueeze(2)
        if isinstance(layer, nn.EmbeddingBag):
            if layer.mode == "mean":
                share = share / share.sum(1, keepdim=True).clamp_min(1)
            return word, g.unsqueeze(1) * share
        return word, g.reshape(*word.shape, -1) * share

    @staticmethod
    def norms(seen: Seen, g: Tensor, units: Units) -> Tensor:
        word, added = _Embedding._entries(seen, g)
        unit = units.of_row.unsqueeze(1).expand_as(word)
        return table_norms(unit.flatten(), units.count, word.flatten(), added.flatten(0, 1))

    @staticmethod
    def learn(seen: Seen, g: Tensor, factors: Tensor) -> dict[str, Tensor]:
        layer: Any = seen.layer
        word, added = _Embedding._entries(seen, g)
        added = added.mul(factors.view(-1, 1, 1)).flatten(0, 1)
        found = torch.ops.aten.embedding_dense_backward(
            added, word.flatten(), layer.num_embeddings, -1, False
        )
        return {"weight": found}


KINDS: dict[type[nn.Module], Any] = {
    nn.Linear: _Linear,
    nn.LayerNorm: _LayerNorm,
    nn.Embedding: _Embedding,
    nn.EmbeddingBag: _Embedding,
}


def _series(rows: Tensor) -> Tensor:
    """Bring (rows, ..., features) to (rows, steps, features)."""
    return rows.reshape(len(rows), -1, rows.shape[-1])


@contextmanager
def watched(layers: Mapping[str, nn.Module], calls: dict[str, list[Seen]]) -> Iterator[None]:
    """Note what goes through the layers."""

    def hook_of(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
            x = inputs[0]
            calls.setdefault(name, []).append(Seen(layer, x.detach(), output, (x._version, output._version)))

        return hook

    handles = [layer.register_forward_hook(hook_of(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layers_of(module: nn.Module) -> dict[str, nn.Module] | str:
    """Return the layers by the prefix of their leaves, or why units are not clipped by book-keeping."""
    layers: dict[str, nn.Module] = {}
    owned: set[str] = set()
    for name, layer in module.named_modules():
        own = [f"{name}.{kind}" if name else kind for kind, _ in layer.named_parameters(recurse=False)]
        if not own:
            continue
        if type(layer) not in KINDS or _is_special(layer):
            return f"{type(layer).__name__} has no book-keeping form"
        layers[f"{name}." if name else ""] = layer
        owned.update(own)
    named = dict(module.named_parameters(remove_duplicate=False))
    if len(named) != len(dict(module.named_parameters())) or set(named) != owned:
        return "one parameter is in two places"
    if any(not value.requires_grad for value in named.values()):
        return "some parameters are frozen"
    return layers if layers else "there are no parameters"


def _is_special(layer: Any) -> bool:
    if isinstance(layer, nn.EmbeddingBag) and (layer.mode == "max" or layer.include_last_offset):
        return True
    is_table = isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
    return is_table and (layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse)


def unlike(
    once: Mapping[str, Seen], calls: Mapping[str, Any], layers: Mapping[str, nn.Module], rows: int
) -> str:
    """Return why a forward pass was not of the kind that book-keeping takes, empty where it was."""
    if len(once) != len(layers):
        return "a layer is not called once" if calls else "no layer is called"
    for seen in once.values():
        is_flat_bag = isinstance(seen.layer, nn.EmbeddingBag) and seen.inputs.dim() != 2
        if is_flat_bag or len(seen.inputs) != rows or len(seen.output) != rows:
            return f"{type(seen.layer).__name__} is not called with the rows first"
        if not seen.is_untouched:
            return f"what {type(seen.layer).__name__} gave or took is written over"
    return ""
