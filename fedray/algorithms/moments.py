"""Federated count, mean and centred second moment of each column: two site stages, equal to the pooled
answer.

The second stage centres at the pooled mean before it squares, so no digits are lost where a mean is large.
Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
"""

from collections.abc import Callable
from typing import Any

import fedray as fr


def moments(
    first: Callable[[Any], Any],
    means: Callable[[Any], Any],
    second: Callable[[Any, Any], Any],
    finish: Callable[[Any, Any], Any],
) -> fr.Algorithm:
    """Sum `first(data)` over the sites, broadcast `means(total)`, sum `second(data, means)`, and return
    `finish`.

    Use it for standardisation: see `fedray.data.prepare` for functions that fit it.
    """

    def round(server: Any, site: Any) -> fr.Outputs:
        total = fr.sum(fr.map(first, site.data), name="moments")
        squares = fr.sum(fr.map(second, site.data, fr.broadcast(fr.apply(means, total))), name="squares")
        return fr.Outputs(server=server, metrics=fr.apply(finish, total, squares))

    return fr.Algorithm(lambda state: state, round, name="moments")
