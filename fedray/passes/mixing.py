"""Mixing: what `mix` comes to at the server, one product of the matrix with the rows of the sites.

The sites that delivered are rows of one buffer, in the order of their ids, whichever pack they came from; so
the product is the same operation on the same operands in every layout, and its bits are too. It is computed
in float64 and rounded once to the leaf's own dtype, block by block, so that no second copy of all models in
float64 is made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray import rows, tree
from fedray.core.graph import MADE_UP
from fedray.rows import Column, Rows

Matrix = Mapping[str, Mapping[str, float]]
BLOCK = 2**15  # columns of a product


def among(matrix: Matrix, sites: Sequence[str], keep: str = "rows") -> Tensor:
    """Return the weights among the sites that are there; those of absent ones go to sites themselves.

    `keep` says what sums stay: of "rows", where a site adds up its neighbours, or of "columns", where its own
    value is dealt out. Raises ValueError where the matrix does not name a site.
    """
    place = {site: i for i, site in enumerate(sites)}
    found = np.zeros((len(sites), len(sites)))
    for site in sites:
        if site not in matrix and site not in MADE_UP:
            raise ValueError(f"mix: the matrix has no row for site {site!r}: give it the ids of all sites")
    for site, row in matrix.items():
        for other, weight in row.items():
            if site in place and other in place:
                found[place[site], place[other]] += weight
            elif keep == "rows" and site in place:
                found[place[site], place[site]] += weight
            elif keep == "columns" and other in place:
                found[place[other], place[other]] += weight
    for site in sites:
        if site not in matrix:
            found[place[site], place[site]] = 1.0
    return torch.from_numpy(found)


def product(weights: Tensor, numbers: Tensor) -> Tensor:
    """Return weights @ numbers, over the first dimension; whole numbers come out in float64."""
    dtype = numbers.dtype if numbers.is_floating_point() else torch.float64
    flat = numbers.reshape(len(numbers), -1)
    found = torch.empty(flat.shape, dtype=dtype)
    for start in range(0, flat.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        found[:, block] = weights @ flat[:, block].to("cpu", torch.float64)
    return found.reshape(numbers.shape)


@dataclass(frozen=True)
class Mix:
    """{site: sum_j matrix[site][j] value_j} over the sites that are there."""

    keep: str = "rows"

    def __call__(self, values: Mapping[str, Any], matrix: Matrix) -> dict[str, Any]:
        """Return each site's own sum. Raises ValueError where sites sent different structures."""
        sites = sorted(values)
        weights = among(matrix, sites, self.keep)
        stacked = rows.stack([values[site] for site in sites]).value

        def mixed(leaf: Any) -> Any:
            if isinstance(leaf, Column):
                return Column(product(weights, leaf.numbers), is_whole=False)
            return product(weights, leaf)

        if any(isinstance(leaf, rows.Ragged) for _, leaf in tree.leaves(stacked)):
            raise ValueError("mix: sites sent different structures, which have no weighted sum")
        with rows.one_thread():
            found = Rows(tree.map(mixed, stacked))
        return {site: rows.row(found, i) for i, site in enumerate(sites)}
