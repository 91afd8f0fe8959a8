"""Who mixes with whom: graphs over sites, and the weights along their edges. Used by D-PSGD and push-sum.

    matrix = metropolis(ring(sites))               symmetric, doubly stochastic: {site: {site: weight}}
    matrix = dealt(exponential(sites))             column-stochastic, of a directed graph

A graph is {site: the sites that it sends to}. Row i of a matrix says with which weights site i adds up what
it receives, itself included. What cannot reach agreement is refused where it is made: see `check_doubly` and
`check_columns`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedray.rng import SERVER, Key
from fedray.settings import is_number

Graph = Mapping[str, Sequence[str]]
Matrix = Mapping[str, Mapping[str, float]]
TOLERANCE = 1e-9  # of a sum of weights: far above the rounding of thousands, far below a weight that is meant


def ring(sites: Sequence[str]) -> dict[str, list[str]]:
    """Let each site send to the one before and the one after it."""
    return circulant(sites, (1, -1))


def directed_ring(sites: Sequence[str]) -> dict[str, list[str]]:
    """Let each site send to the one after it."""
    return circulant(sites, (1,))


def exponential(sites: Sequence[str]) -> dict[str, list[str]]:
    """Let each site send to those 1, 2, 4, ... places after it (Assran et al. 2019, appendix A)."""
    return circulant(sites, [2**k for k in range(hops(len(sites)))])


def hops(number: int) -> int:
    """Return how many powers of two reach round: floor(log2(n - 1)) + 1, at least one."""
    return int(math.log2(number - 1)) + 1 if number > 1 else 1


def circulant(sites: Sequence[str], steps: Sequence[int]) -> dict[str, list[str]]:
    """Let each site send to those so many places after it."""
    names, found = _named(sites), {}
    for i, site in enumerate(names):
        reached = dict.fromkeys(names[(i + step) % len(names)] for step in steps)
        found[site] = [other for other in reached if other != site]
    return found


def torus(sites: Sequence[str]) -> dict[str, list[str]]:
    """Lay the sites out in rows and columns, as square as their number allows, and join the edges round.

    Raises ValueError where their number is a prime, which has one row only.
    """
    names = _named(sites)
    height = next((h for h in range(math.isqrt(len(names)), 1, -1) if len(names) % h == 0), 1)
    if height == 1:
        raise ValueError(f"torus: {len(names)} sites do not fill a rectangle of two rows or more: use ring")
    width, found = len(names) // height, {}
    for place, site in enumerate(names):
        row, column = divmod(place, width)
        near = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        others = (names[(r % height) * width + c % width] for r, c in near)
        found[site] = [other for other in dict.fromkeys(others) if other != site]
    return found


def complete(sites: Sequence[str]) -> dict[str, list[str]]:
    """Let each site send to all others."""
    names = _named(sites)
    return {site: [other for other in names if other != site] for site in names}


def star(sites: Sequence[str]) -> dict[str, list[str]]:
    """Let the first site exchange with each other one."""
    hub, *rest = _named(sites)
    return {hub: rest, **{site: [hub] for site in rest}}


def erdos_renyi(sites: Sequence[str], chance: float, seed: int) -> dict[str, list[str]]:
    """Join each pair of sites with probability `chance`, by a lot that depends on `seed` alone.

    Raises ValueError where `chance` is no probability.
    """
    if not 0 < chance <= 1:
        raise ValueError(f"erdos_renyi: edge_probability={chance} must be above 0 and at most 1")
    names = _named(sites)
    generator = Key(seed, 0, SERVER, "erdos_renyi").generator()
    draws = torch.rand(len(names), len(names), generator=generator, dtype=torch.float64)
    is_joined = torch.triu(draws < chance, 1)
    is_joined |= is_joined.T.clone()
    places = [row.nonzero().flatten().tolist() for row in is_joined]
    return {site: [names[j] for j in near] for site, near in zip(names, places, strict=True)}


def metropolis(graph: Graph) -> dict[str, dict[str, float]]:
    """Return the Metropolis weights of an undirected graph: 1 / (1 + max(deg_i, deg_j)) along an edge, and
    what is missing to 1 for the site itself.

    Source: Xiao, Boyd, Kim, Distributed average consensus with least-mean-square deviation, JPDC 2007, (5).
    """
    found = {}
    for site, others in graph.items():
        row = {other: 1.0 / (1 + max(len(others), len(graph[other]))) for other in others}
        found[site] = {site: 1.0 - math.fsum(row.values()), **row}
    return found


def dealt(graph: Graph) -> dict[str, dict[str, float]]:
    """Return the column-stochastic weights of a directed graph: a site deals its value out in equal parts, to
    those that it sends to and to itself.
    """
    found: dict[str, dict[str, float]] = {site: {} for site in graph}
    for site, others in graph.items():
        for receiver in (site, *others):
            found[receiver][site] = 1.0 / (1 + len(others))
    return found


@dataclass(frozen=True)
class OnePeer:
    """The matrices of the one-peer exponential graph: in round t each site keeps a half and sends a half to
    the site 2^(t mod hops) places after it.
    """

    sites: tuple[str, ...]

    def __call__(self, round: int) -> dict[str, dict[str, float]]:
        """Return the matrix of a round."""
        return dealt(circulant(self.sites, (2 ** (round % hops(len(self.sites))),)))


def dense(matrix: Matrix) -> np.ndarray:
    """Return the matrix as numbers, rows and columns in the order of the sites' ids."""
    names = sorted(matrix)
    return np.array([[matrix[site].get(other, 0.0) for other in names] for site in names])


def second_eigenvalue(matrix: Matrix) -> float:
    """Return the second largest modulus of an eigenvalue: by how much the distance from agreement shrinks in
    a round, in the long run.
    """
    return float(np.sort(np.abs(np.linalg.eigvals(dense(matrix))))[-2]) if len(matrix) > 1 else 0.0


def check_doubly(matrix: Matrix, sites: Sequence[str], who: str) -> Matrix:
    """Return the matrix. Raises ValueError where it is not symmetric and doubly stochastic over the sites, or
    where some sites never hear of others.
    """
    weights = _checked(matrix, sites, who)
    if not np.allclose(weights, weights.T, rtol=0, atol=TOLERANCE):
        i, j = np.unravel_index(np.abs(weights - weights.T).argmax(), weights.shape)
        names = sorted(matrix)
        raise ValueError(
            f"{who}: the matrix is not symmetric: {names[i]} takes {weights[i, j]:.6g} of {names[j]}, and "
            f"{names[j]} {weights[j, i]:.6g} of {names[i]}: use push_sum for a directed graph"
        )
    return _summing(matrix, weights, 1, "row", who)


def check_columns(matrix: Matrix, sites: Sequence[str], who: str) -> Matrix:
    """Return the matrix. Raises ValueError where it is not column-stochastic over the sites, where a site
    keeps nothing of its own value, or where some sites never hear of others.
    """
    weights = _checked(matrix, sites, who)
    if (np.diagonal(weights) <= 0).any():
        site = sorted(matrix)[int(np.diagonal(weights).argmin())]
        raise ValueError(f"{who}: {site} keeps nothing of its own value: give it a weight above 0 on itself")
    return _summing(matrix, weights, 0, "column", who)


def _checked(matrix: Matrix, sites: Sequence[str], who: str) -> np.ndarray:
    named = {*matrix, *(other for row in matrix.values() for other in row)}
    if wrong := sorted(named.symmetric_difference(_named(sites))):
        raise ValueError(
            f"{who}: the matrix and the sites do not name the same ones ({', '.join(wrong[:5])}): give it a "
            "row for every site, and no other"
        )
    if len(matrix) != len(named):
        raise ValueError(f"{who}: no row of the matrix for {', '.join(sorted(named - set(matrix))[:5])}")
    if not all(is_number(weight) for row in matrix.values() for weight in row.values()):
        raise ValueError(f"{who}: a weight of the matrix is no finite number")
    weights = dense(matrix)
    if not (weights >= 0).all():
        raise ValueError(f"{who}: a weight of the matrix is below 0")
    return weights


def _summing(matrix: Matrix, weights: np.ndarray, axis: int, line: str, who: str) -> Matrix:
    names, sums = sorted(matrix), weights.sum(axis=axis)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > TOLERANCE:
        raise ValueError(f"{who}: the {line} of {names[worst]} adds up to {sums[worst]:.9g}, not to 1")
    if alone := _unheard(weights):
        raise ValueError(
            f"{who}: {names[alone[1]]} never hears of {names[alone[0]]}, so that sites cannot agree: add "
            "edges (another graph, seed or edge_probability)"
        )
    return matrix


def _unheard(weights: np.ndarray) -> tuple[int, int] | None:
    """Return (sender, receiver) of a pair without a path, None where there is one between all: where all hear
    of the first site, and it of all.
    """
    sends = weights.T > 0  # from the row's site to the column's
    if len(lost := _not_reached(sends)):
        return 0, int(lost[0])
    return (int(lost[0]), 0) if len(lost := _not_reached(sends.T)) else None


def _not_reached(sends: np.ndarray) -> np.ndarray:
    """Return the places without a path from the first one."""
    reached = np.arange(len(sends)) == 0
    fresh = reached
    while fresh.any():
        fresh = sends[fresh].any(axis=0) & ~reached
        reached = reached | fresh
    return np.flatnonzero(~reached)


def _named(sites: Sequence[str]) -> list[str]:
    """Return the sites. Raises ValueError where there is none, or one twice."""
    names = list(sites)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"topology: {len(names)} sites are named: give the id of every site, each once")
    return names


UNDIRECTED: Mapping[str, Callable[..., Any]] = {
    "ring": ring, "torus": torus, "complete": complete, "star": star, "erdos_renyi": erdos_renyi,
}  # fmt: skip
DIRECTED: Mapping[str, Callable[..., Any]] = {
    "directed_ring": directed_ring, "exponential": exponential, "one_peer": OnePeer,
}  # fmt: skip


def symmetric(
    graph: str | Matrix, sites: Sequence[str], edge_probability: float, seed: int, who: str
) -> Matrix:
    """Return the matrix of a named graph with Metropolis weights, or a given one, checked.

    Raises ValueError on another name, or a matrix that `check_doubly` refuses.
    """
    if isinstance(graph, Mapping):
        return check_doubly(graph, sites, who)
    if graph not in UNDIRECTED:
        raise ValueError(f"{who}: graph={graph!r}: choose one of {', '.join(UNDIRECTED)}, or give a matrix")
    extra = (edge_probability, seed) if graph == "erdos_renyi" else ()
    return check_doubly(metropolis(UNDIRECTED[graph](sites, *extra)), sites, who)


def directed(graph: str | Matrix, sites: Sequence[str], who: str) -> Matrix | OnePeer:
    """Return the matrix of a named directed graph whose sites deal out equal parts, or a given one, checked;
    of `one_peer` the matrices by round.

    Raises ValueError on another name, or a matrix that `check_columns` refuses.
    """
    if isinstance(graph, Mapping):
        return check_columns(graph, sites, who)
    if graph == "one_peer":
        return OnePeer(tuple(_named(sites)))
    if graph not in DIRECTED:
        raise ValueError(f"{who}: graph={graph!r}: choose one of {', '.join(DIRECTED)}, or give a matrix")
    return check_columns(dealt(DIRECTED[graph](sites)), sites, who)
