"""PowerSGD as a pass: updates of matrices leave as two thin factors, in two messages of a round.

A matrix M (n, m) of a site's update becomes P = M Q with the Q of the round before, the mean of P is made
orthonormal at the server and sent back, and the sites send Q = M' P. Both are means of small matrices: they
are what `egress` lists, they add up exactly, and they may be masked. The graph gains a site stage.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedray import coded, rows, tree
from fedray.core import trace as fr
from fedray.core.rewrite import Pass, on_reduce
from fedray.core.trace import Site
from fedray.core.value import Value
from fedray.passes.compression import Names
from fedray.rng import SERVER, Key
from fedray.rows import Group, Same, Tagged

Factor = Mapping[str, tree.Flat]  # number of a leaf -> the factors of its matrices, by name


@dataclass(frozen=True)
class Factors:
    """What rows of factors are: nothing that can be decoded without the other factor."""

    rank: int
    conflict: ClassVar[str] = ""

    @property
    def title(self) -> str:
        """As `explain` names it."""
        return f"powersgd({self.rank})"

    def shapes(self, schema: tree.Schema) -> Iterator[tuple[tree.Leaf, tuple[int, int, int]]]:
        """Yield each tensor and the (n, m, rank) of its matrix; rank 0 where factors are not smaller."""
        for leaf in schema.leaves:
            n = leaf.shape[0] if len(leaf.shape) > 1 and leaf.size else 1
            m = leaf.size // n
            rank = min(self.rank, n, m)
            yield leaf, (n, m, rank if rank * (n + m) < n * m else 0)


def _parts(numbers: Tensor, schema: tree.Schema) -> list[Tensor]:
    """Return the tensors of one row, each in memory of its own: products depend on where it starts."""
    sizes = [leaf.size for leaf in schema.leaves]
    return [part.clone() for part in torch.split(numbers, sizes)]


def _stripped(flat: tree.Flat) -> tree.Flat:
    """Return factors without what they stand for, as they are broadcast and kept."""
    schema = flat.schema
    ends = schema.stride, schema.trainable, schema.moving
    return tree.Flat(flat.buffer, tree.Schema(schema.leaves, schema.dtype, *ends))


@dataclass(frozen=True)
class Left:
    """P = M Q, where Q is what the server kept, or drawn alike at every site in the first round."""

    factors: Factors
    label: str

    def __call__(self, x: Any, kept: Factor | None, key: Key) -> Any:
        """Return the left factors of one site."""
        return coded.alone(self.rows, x, Same(kept), key)

    def rows(self, group: Group, x: Tagged, kept: Tagged, key: Tagged) -> dict[str, tree.Flat]:
        """Return the left factors of a group."""
        seed = key.value.items[0].seed
        found: dict[str, tree.Flat] = {}

        def one(leaf: Any, number: int) -> Any:
            origin = coded.plain(leaf)
            shapes = {leaf.name: sizes for leaf, sizes in self.factors.shapes(origin.schema) if sizes[2]}
            if shapes:
                memory = (kept.value or {}).get(str(number))
                start = Key(seed, 0, SERVER, f"{self.label}.{number}").generator()
                rights = {name: _right(memory, name, sizes, start, leaf) for name, sizes in shapes.items()}
                made = [_left(row, origin.schema, shapes, rights) for row in origin.numbers]
                leaves = {name: (n, rank) for name, (n, _, rank) in shapes.items()}
                schema = coded.layout(leaves, origin.numbers.dtype, origin, self.factors)
                found[str(number)] = tree.Flat(torch.stack(made), schema)
            return leaf

        coded.on_leaves(one, rows.expand(x, group.k))
        if not found:
            raise ValueError("powersgd: the update holds no matrix that two thin factors make smaller")
        return found


def _right(memory: Any, name: str, sizes: tuple[int, int, int], start: torch.Generator, like: Any) -> Tensor:
    _, m, rank = sizes
    numbers = like.buffer if isinstance(like, tree.Flat) else like
    drawn = torch.randn(m, rank, generator=start, dtype=torch.float64).to(numbers)
    if memory is None:
        return drawn
    return torch.where(memory[name].abs().amax(0) > 0, memory[name], drawn)  # zero would stay zero for ever


def _left(
    row: Tensor, schema: tree.Schema, shapes: Mapping[str, tuple[int, int, int]], rights: Mapping[str, Tensor]
) -> Tensor:
    parts = zip(schema.leaves, _parts(row, schema), strict=True)
    made = [
        part.view(shapes[leaf.name][:2]) @ rights[leaf.name] for leaf, part in parts if leaf.name in shapes
    ]
    return torch.cat([factor.flatten() for factor in made])


def orthonormal(means: Factor) -> dict[str, tree.Flat]:
    """Return left factors with orthonormal columns, by Gram-Schmidt in float64; a zero column stays zero."""
    found = {}
    for number, flat in means.items():
        made = _stripped(flat.clone())
        for name in made:
            made[name].copy_(torch.from_numpy(_gram_schmidt(made[name].double().numpy())))
        found[number] = made
    return found


def _gram_schmidt(matrix: np.ndarray) -> np.ndarray:
    made = matrix.copy()  # sums of numpy, not products: their bits do not depend on the number of threads
    for column in range(made.shape[1]):
        for before in range(column):
            made[:, column] -= (made[:, before] * made[:, column]).sum() * made[:, before]
        norm = np.sqrt(np.square(made[:, column]).sum())
        made[:, column] /= norm if norm > 0 else 1.0
    return made


@dataclass(frozen=True)
class Right:
    """Q = M' P, and what is no matrix as it is."""

    factors: Factors

    def __call__(self, x: Any, left: Factor) -> Any:
        """Return the right factors of one site."""
        return coded.alone(self.rows, x, Same(left))

    def rows(self, group: Group, x: Tagged, left: Tagged) -> Any:
        """Return the right factors of a group."""

        def one(leaf: Any, number: int) -> tree.Flat:
            origin = coded.plain(leaf)
            shapes = list(self.factors.shapes(origin.schema))
            leaves = {leaf.name: (m, rank) if rank else leaf.shape for leaf, (_, m, rank) in shapes}
            made = []
            for row in origin.numbers:
                parts = zip(shapes, _parts(row, origin.schema), strict=True)
                factors = [
                    (part.view(n, m).t() @ left.value[str(number)][leaf.name]).flatten() if rank else part
                    for (leaf, (n, m, rank)), part in parts
                ]
                made.append(torch.cat(factors))
            schema = coded.layout(leaves, origin.numbers.dtype, origin, self.factors)
            return tree.Flat(torch.stack(made), schema)

        return coded.on_leaves(one, rows.expand(x, group.k))


@dataclass(frozen=True)
class Product:
    """P Q', and what is no matrix as it is, in the form of the update."""

    factors: Factors

    def __call__(self, right: Any, left: Factor) -> Any:
        """Return the product at the server."""
        return coded.alone(self.rows, right, Same(left))

    def rows(self, group: Group, right: Tagged, left: Tagged) -> Any:
        """Return the products of a group."""

        def one(leaf: Any, number: int) -> Any:
            if not coded.is_coded(leaf):
                return leaf
            schema, parts = leaf.schema, []
            for target, (_, m, rank) in self.factors.shapes(schema.origin):
                own = leaf.stacked(target.name)
                if rank:
                    own = _product(left.value[str(number)][target.name], own.view(-1, m, rank))
                parts.append(own.reshape(len(leaf.buffer), target.size))
            return coded.restored(torch.cat(parts, 1), schema)

        return coded.on_leaves(one, rows.expand(right, group.k))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left right' of factors (n, r) and (k, m, r), by products and sums of numbers."""
    columns = [left[:, j].view(1, -1, 1) * right[:, :, j].unsqueeze(1) for j in range(left.shape[1])]
    total = columns[0]
    for column in columns[1:]:
        total = total + column
    return total


def kept_of(right: Any) -> dict[str, tree.Flat]:
    """Return what the next round's left factors start from."""
    leaves = enumerate(leaf for _, leaf in tree.leaves(right))
    return {str(number): _stripped(leaf) for number, leaf in leaves if coded.is_coded(leaf)}


def powersgd(rank: int = 2, only: Names = ("delta",)) -> Pass:
    """Send the matrices of each update as two factors of `rank` columns, and add the error to the next one.

    M = update + memory; P = orthonormal(mean of M Q); Q_i = M_i' P; the update becomes P (mean of Q_i)', and
    memory = M_i - P Q_i'. The Q of a round is where the next one starts (warm start), kept at the server, so
    a site that missed rounds has the same; the first is normal, from the run's seed. A tensor of more than
    two dimensions is a matrix of its first against the others; vectors, and matrices that factors would not
    make smaller, go as they are. With weights both means are weighted. Source: Vogels, Karimireddy, Jaggi,
    PowerSGD, NeurIPS 2019, Algorithms 1 and 2, without momentum. Deviation: the memory holds what a site's
    own factors miss (decompress(C(M_i)) of Algorithm 2), not the mean's.
    """
    if rank < 1:
        raise ValueError(f"powersgd: rank={rank} is not at least 1, say 2")
    factors = Factors(rank)

    def approximated(x: Value, weight: Value | None, name: str, site: Site) -> Value:
        slot = f"powersgd.{name}"
        owed = x + site.slot(slot, like=x)
        kept = fr.broadcast(site.server.slot(slot))
        left = fr.map(Left(factors, slot), owed, kept, site.stream(slot))
        basis = fr.apply(orthonormal, fr.mean(left, weight=weight, name=f"{name}.left"))
        down = fr.broadcast(basis)
        right = fr.map(Right(factors), owed, down)
        site.store(slot, owed - fr.map(Product(factors), right, down))
        mean = fr.mean(right, weight=weight, name=name)
        site.server.store(slot, fr.apply(kept_of, mean))
        return fr.apply(Product(factors), mean, basis)

    return on_reduce("mean", only, factors.title)(approximated)
