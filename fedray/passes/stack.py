"""The sites' values as rows of one matrix that is never formed: what every robust rule reads.

A value is a vector of all its numbers, leaf after leaf, and a site is a row. Rules see blocks of columns: a
`Stack` copies one block of all rows into a buffer that it uses again, so beside what was gathered it holds
num_sites x BLOCK numbers. `gram` and `distances_to` are sums over columns: where a model is split over
servers, those of the parts add up. A `mixing` matrix says that the rows are weighted sums of the sites' (of
buckets, of neighbours).

Rows are in the order of the sites' ids, so neither who answered first nor which pack a site is in can matter.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedray import coded, tree
from fedray.errors import QuorumError

Array = NDArray[np.float64]
Vectors = list[Tensor]  # the numbers of a value, one vector for each leaf
BLOCK = 2**13  # columns: 200 rows of them are 6.5 MB; 2**16 made the Gram matrix a twelfth slower
LARGEST_SQUARE = 1e36  # of a norm: sums of a few such squares still fit into float32
CENTRES = 8  # each is seven digits nearer than the one before, and a row has 18 before its point
LOST = 100.0  # squared norms over squared distances, from where float32 leaves less than five digits


class Stack:
    """Rows of numbers, `names[i]` being the site of `rows[i]`, one vector for each leaf."""

    def __init__(self, names: Sequence[str], rows: Sequence[Vectors], mixing: Array | None = None) -> None:
        self.names, self.rows, self.mixing = tuple(names), list(rows), mixing
        self._gram: Array | None = None

    @property
    def num_rows(self) -> int:
        """How many rows a rule sees: sites, or what they were mixed to."""
        return len(self.names) if self.mixing is None else len(self.mixing)

    @property
    def tolerance(self) -> float:
        """Scores that differ by less than this share of themselves are equal, and the first site is taken."""
        is_double = all(leaf.dtype == torch.float64 for leaf in self.rows[0])
        return 1e-9 if is_double else 1e-5

    def mixed(self, mixing: Array) -> "Stack":
        """Return the stack whose rows are `mixing @ rows`."""
        found = Stack(self.names, self.rows, mixing if self.mixing is None else product(mixing, self.mixing))
        if self._gram is not None:
            found._gram = product(product(mixing, self._gram), mixing.T)
        return found

    def of(self, sites: Sequence[int]) -> "Stack":
        """Return the stack of some sites, not mixed."""
        return Stack([self.names[i] for i in sites], [self.rows[i] for i in sites])

    def chosen(self, rows: Sequence[int]) -> "Stack":
        """Return the stack of some rows."""
        return self.of(rows) if self.mixing is None else Stack(self.names, self.rows, self.mixing[rows])

    def of_sites(self, weights: Array) -> Array:
        """Return weights of rows as weights of sites."""
        return weights if self.mixing is None else product(weights, self.mixing)

    def blocks(self) -> Iterator[tuple[int, slice, Tensor]]:
        """Yield (leaf, columns, numbers of all rows), in a buffer that is used again for the next one."""
        for leaf in range(len(self.rows[0])):
            for columns, block in self._of_leaf(leaf):
                if self.mixing is None:
                    yield leaf, columns, block
                else:
                    yield leaf, columns, torch.from_numpy(self.mixing).to(block) @ block

    def _of_leaf(self, leaf: int) -> Iterator[tuple[slice, Tensor]]:
        vectors = [row[leaf] for row in self.rows]
        size = len(vectors[0])
        buffer = vectors[0].new_empty(len(vectors) * min(BLOCK, size))
        for start in range(0, size, BLOCK):
            columns = slice(start, min(start + BLOCK, size))
            block = buffer[: len(vectors) * (columns.stop - start)].view(len(vectors), -1)
            torch.stack([vector[columns] for vector in vectors], out=block)
            yield columns, block

    @property
    def gram(self) -> Array:
        """The inner products of the rows after a common point is subtracted, float64 (rows, rows).

        The point is the mean of the rows, and where far ones drag it away from the others, that of the half
        that lie together: what is left of a distance between two large numbers of float32 is noise. Beside a
        row that lies farther still, one that is far looks near: then a half is chosen again.
        """
        if self._gram is None:
            chosen, centred = list(range(len(self.names))), self._centred(range(len(self.names)))
            for _ in range(CENTRES):
                apart = squared_distances(centred)
                typical = np.median(apart, axis=1)  # of most rows it is the distance to another honest one
                middle = int(np.argmin(typical))
                half = sorted(np.argsort(apart[middle], kind="stable")[: len(self.names) // 2 + 1].tolist())
                if np.median(np.diagonal(centred)) <= LOST * np.median(typical) or half == chosen:
                    break
                chosen, centred = half, self._centred(half)
            mixing = self.mixing
            self._gram = centred if mixing is None else product(product(mixing, centred), mixing.T)
        return self._gram

    def _centred(self, chosen: Sequence[int]) -> Array:
        is_all = len(chosen) == len(self.names)
        return self._products(lambda block: block.mean(0) if is_all else block[list(chosen)].mean(0))

    @property
    def inner(self) -> Array:
        """The inner products of the sites' rows as they are, float64."""
        return self._products(None)

    def _products(self, centre: Callable[[Tensor], Tensor] | None) -> Array:
        total = np.zeros((len(self.names), len(self.names)))
        for leaf in range(len(self.rows[0])):
            for _, block in self._of_leaf(leaf):
                near = block if centre is None else block.sub_(centre(block))
                total += (near @ near.t()).double().numpy()
        return total

    def distances_to(self, point: Vectors | None = None) -> Array:
        """Return the distance of each row from a point, by default from zero."""
        total = np.zeros(self.num_rows)
        for leaf, columns, block in self.blocks():
            apart = block if point is None else block - point[leaf][columns]
            total += (apart * apart).sum(1).double().numpy()
        return np.sqrt(total)

    def products_with(self, point: Vectors) -> Array:
        """Return the inner product of each row with a point."""
        total = np.zeros(self.num_rows)
        for leaf, columns, block in self.blocks():
            total += (block @ point[leaf][columns].to(block)).double().numpy()
        return total

    def combined(self, weights: Array) -> Vectors:
        """Return the sum of the rows, each times its weight. Rows of weight 0 are not read."""
        own = self.of_sites(weights)
        kept = np.flatnonzero(own)
        if not len(kept):
            return [torch.zeros_like(leaf) for leaf in self.rows[0]]
        some, numbers = self.of(kept.tolist()), torch.from_numpy(own[kept])
        return some.by_column(lambda block: numbers.to(block) @ block)

    def by_column(self, fn: Callable[[Tensor], Tensor]) -> Vectors:
        """Return what `fn` makes of each block: (rows, columns) -> (columns,)."""
        found = [torch.empty_like(leaf) for leaf in self.rows[0]]
        for leaf, columns, block in self.blocks():
            found[leaf][columns] = fn(block)
        return found


def product(a: Array, b: Array) -> Array:
    """Return a @ b on the threads of torch, which the server keeps at one: those of numpy are its own."""
    return np.asarray((torch.from_numpy(a) @ torch.from_numpy(b)).numpy())


def squared_distances(gram: Array) -> Array:
    """Return the squared distance of each two rows from their inner products."""
    squares = np.diagonal(gram)
    found = np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
    np.fill_diagonal(found, 0.0)
    return np.asarray(found)


def stacked(values: Mapping[str, Any]) -> tuple[Stack, Any, tuple[str, ...]]:
    """Return the rows of {site: value}, one of the values, and the sites whose value is no such row.

    Those sent other shapes than most, or numbers that are not finite, or so large that their squares are
    not. Raises QuorumError where no row is left.
    """
    arrived = {name: coded.arrived(values[name]) for name in sorted(values)}
    kinds = {name: _kind(value) for name, value in arrived.items()}
    usual = Counter(kinds.values()).most_common(1)[0][0]
    rows = {name: vectors_of(arrived[name]) for name, kind in kinds.items() if kind == usual}
    sound = {name: row for name, row in rows.items() if _is_sound(row)}
    broken = tuple(name for name in arrived if name not in sound)
    if not sound:
        raise QuorumError(f"none of {len(arrived)} sites sent finite numbers: the server state is unchanged")
    return Stack(list(sound), list(sound.values())), arrived[next(iter(sound))], broken


def _kind(value: Any) -> Any:
    return tuple(
        (path, leaf.schema if isinstance(leaf, tree.Flat) else (leaf.dtype, tuple(leaf.shape)))
        if isinstance(leaf, tree.Flat | Tensor)
        else (path, tree.is_number(leaf))
        for path, leaf in tree.leaves(value)
    )


def vectors_of(value: Any) -> Vectors:
    """Return the numbers of a value as a row has them: floats of 4 bytes or 8."""
    found = []
    for _, leaf in tree.leaves(value):
        if isinstance(leaf, tree.Flat | Tensor):
            numbers = (leaf.buffer if isinstance(leaf, tree.Flat) else leaf).detach().reshape(-1)
            is_usual = numbers.dtype in (torch.float32, torch.float64)
            found.append(numbers if is_usual else numbers.to(_wide(numbers)))
        elif tree.is_number(leaf):
            found.append(torch.tensor([float(leaf)], dtype=torch.float64))
    return found


def _wide(numbers: Tensor) -> torch.dtype:
    return torch.float32 if numbers.is_floating_point() else torch.float64


def _is_sound(row: Vectors) -> bool:
    squares = sum(float(torch.dot(leaf, leaf)) for leaf in row)
    return squares <= LARGEST_SQUARE  # not so where a number is not finite


def restored(like: Any, vectors: Vectors) -> Any:
    """Return vectors in the form of a value; floats keep their dtype, whole numbers become float64."""
    source = iter(vectors)

    def one(leaf: Any) -> Any:
        if isinstance(leaf, tree.Flat):
            return tree.Flat(next(source).to(leaf.buffer.dtype).view(leaf.buffer.shape), leaf.schema)
        if isinstance(leaf, Tensor):
            found = next(source).view(leaf.shape)
            return found.to(leaf.dtype) if leaf.is_floating_point() else found
        return float(next(source)) if tree.is_number(leaf) else leaf

    return tree.replace_leaves(like, [one(leaf) for _, leaf in tree.leaves(like)])
