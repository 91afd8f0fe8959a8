"""Parts of a model by name: what stays at a site, what is shared, and what is held still while the rest
trains.

A part is named by the words that a leaf's name is, or begins with up to a dot: `4` is `4.weight` and
`4.bias`, never `40.weight`. Every function here copies leaves from flat values into another layout, and works
alike on one row and on k: that is its twin. What lies behind a layout's `trainable` elements is not stepped
by local training, and what lies behind its `moving` elements is frozen: `Still` moves leaves there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedray import tree
from fedray.learn.models import Model
from fedray.rows import Group, Tagged, expand, rows_of
from fedray.tree import Flat, Leaf, Schema

TRAINED, AVERAGED, FROZEN = range(3)  # kinds of leaves


class _Placed(NamedTuple):
    """One leaf on its way into another layout."""

    name: str
    source: Flat
    leaf: Leaf
    kind: int


@lru_cache(maxsize=256)
def _schema(leaves: tuple[tuple[str, tuple[int, ...], int], ...], dtype: torch.dtype) -> Schema:
    shapes = {name: torch.zeros((), dtype=dtype).expand(shape) for name, shape, _ in leaves}
    averaged, frozen = ([name for name, _, kind in leaves if kind == one] for one in (AVERAGED, FROZEN))
    return tree.schema_of(shapes, averaged, frozen)


def _laid(placed: Sequence[_Placed]) -> Flat:
    """Copy leaves into one buffer of as many rows as the tallest source."""
    first = placed[0].source
    schema = _schema(tuple((p.name, p.leaf.shape, p.kind) for p in placed), first.schema.dtype)
    rows = max(p.source.buffer.shape[0] for p in placed)
    buffer = torch.zeros(rows, schema.stride, dtype=schema.dtype, device=first.buffer.device)
    places = {leaf.name: leaf for leaf in schema.leaves}
    for name, source, leaf, _ in placed:
        to = places[name].offset
        found = source.buffer[:, leaf.offset : leaf.offset + leaf.size]
        buffer[:, to : to + leaf.size] = found.detach()
    return Flat(buffer, schema)


def _leaves(params: Any, prefix: str = "") -> Iterable[_Placed]:
    flat = tree.flatten(params)
    for leaf in flat.schema.leaves:
        kind = (leaf.offset >= flat.schema.trainable) + (leaf.offset >= flat.schema.moving)
        yield _Placed(prefix + leaf.name, flat, leaf, kind)


@dataclass(frozen=True)
class Part:
    """Take the leaves of a model that lie under some words; `is_rest` takes the others."""

    words: tuple[str, ...]
    is_rest: bool = False

    @property
    def rest(self) -> "Part":
        """The other leaves."""
        return Part(self.words, not self.is_rest)

    def holds(self, name: str) -> bool:
        """Tell whether a leaf belongs to this part."""
        return any(_lies_under(name, word) for word in self.words) != self.is_rest

    def __call__(self, params: Any) -> Flat:
        """Return the leaves of this part."""
        return _laid([placed for placed in _leaves(params) if self.holds(placed.name)])

    def rows(self, group: Group, params: Tagged) -> Flat:
        """Return the leaves of this part, for a group."""
        return self(expand(params, group.k))

    def check(self, params: Mapping[str, Tensor], title: str) -> None:
        """Raise ValueError where a word names no leaf, or where the part is all leaves or none."""
        names = list(params)
        unknown = [word for word in self.words if not any(_lies_under(name, word) for name in names)]
        held = [name for name in names if self.holds(name)]
        if unknown or not held or len(held) == len(names):
            what = f"{unknown} names no parameter" if unknown else "that is all parameters or none"
            raise ValueError(
                f"{title}: {what}: name a part of {names} with the names of parameters or of their layers "
                "(a model of one layer has no part to share but single parameters)"
            )


    def keep_free(self, params: Any, title: str) -> Flat:
        """Return the model flat. Raises ValueError where a parameter lies under a word that is needed."""
        taken = [name for name in params if any(_lies_under(name, word) for word in self.words)]
        if taken:
            raise ValueError(f"{title}: {taken} stand for something else here: name the parameters otherwise")
        return tree.flatten(params)


def _lies_under(name: str, word: str) -> bool:
    return name == word or name.startswith(word + ".")


@dataclass(frozen=True)
class Still:
    """Lay parameters out so that local training leaves one part as it is and steps the rest.

    Statistics of batches stay what they are: every step changes them.
    """

    part: Part

    def __call__(self, params: Any) -> Flat:
        """Return the same leaves in another layout."""

        def kind(p: _Placed) -> int:
            return FROZEN if p.kind == TRAINED and self.part.holds(p.name) else p.kind

        return _laid([p._replace(kind=kind(p)) for p in _leaves(params)])

    def rows(self, group: Group, params: Tagged) -> Flat:
        """Return the same leaves in another layout, for a group."""
        return self(expand(params, group.k))


def join(*parts: Any) -> Flat:
    """Return one flat value with the leaves of all parts; where a name comes again, the last one counts."""
    found = {placed.name: placed for part in parts for placed in _leaves(part)}
    return _laid(list(found.values()))


@rows_of(join)
def _join_rows(group: Group, *parts: Tagged) -> Flat:
    return join(*(expand(part, group.k) for part in parts))


def put(params: Any, part: Any) -> Flat:
    """Return parameters in their own layout, with the leaves of a part of them replaced."""
    found = {placed.name: placed for placed in _leaves(part)}

    def chosen(old: _Placed) -> _Placed:
        return found.get(old.name, old)._replace(kind=old.kind)

    return _laid([chosen(old) for old in _leaves(params)])


@rows_of(put)
def _put_rows(group: Group, params: Tagged, part: Tagged) -> Flat:
    return put(expand(params, group.k), expand(part, group.k))


def beside(params: Any, **others: Any) -> Flat:
    """Return a model with others beside it in one flat value: leaves of those under the name of each."""
    added = [placed for name, other in others.items() for placed in _leaves(other, f"{name}.")]
    return _laid([*_leaves(params), *added])


def prefixed(params: Any, word: str) -> Flat:
    """Return the leaves of a model under a word."""
    return _laid(list(_leaves(params, f"{word}.")))


def under(params: Mapping[str, Any], word: str) -> dict[str, Any]:
    """Return the tensors below a word, by the rest of their names."""
    return {name[len(word) + 1 :]: params[name] for name in params if name.startswith(word + ".")}


def trained(params: Any) -> Flat:
    """Return the leaves that local training steps."""
    return _laid([placed for placed in _leaves(params) if placed.kind == TRAINED])


def last_layer(model: Any, option: str = "personal") -> tuple[str, ...]:
    """Return the name of a model's last layer with parameters: its head.

    Raises ValueError, which names the `option` to be used, where the model is a function or a single layer.
    """
    names = [name for name, layer in _layers(model) if list(layer.parameters(recurse=False))]
    if not names or names == [""]:
        raise ValueError(
            f"which parameters are the head is not known of this model: name them, e.g. {option}=['bias']"
        )
    return (names[-1],)


def batch_norms(model: Any, option: str = "personal") -> tuple[str, ...]:
    """Return the names of a model's BatchNorm layers. Raises ValueError where it has none."""
    kind = nn.modules.batchnorm._BatchNorm
    names = tuple(name for name, layer in _layers(model) if isinstance(layer, kind))
    if not names:
        raise ValueError(
            "the model has no BatchNorm layer to keep at the sites: use one that has (mlp and cnn: "
            f"norm=batch), or name parameters with {option}="
        )
    return names


def _layers(model: Any) -> list[tuple[str, nn.Module]]:
    return list(model.module.named_modules()) if isinstance(model, Model) else []


def part_of(
    names: Sequence[str] | None,
    local: Any,
    find: Callable[[Any, str], tuple[str, ...]],
    option: str = "personal",
) -> Part:
    """Return the part named by `option`, or the one that `find` sees in the model of a local update."""
    return named(names, option) if names is not None else Part(find(getattr(local, "model", None), option))


def named(names: Sequence[str], option: str) -> Part:
    """Return the part of these names. Raises ValueError on a single text, which would be taken apart."""
    if isinstance(names, str):
        raise ValueError(f"{option}={names!r}: give a list of names, [{names!r}]")
    return Part(tuple(names))
