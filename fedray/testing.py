"""For tests of your own: is a twin row invariant, and equal to its plain form?

`check_rows(fn, sites)` runs the twin of a mapped function for one site, for some and for all, in several
orders
and beside other sites, and compares bits; then it compares with the plain form.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fedray import rows, tree
from fedray.rows import Group, Ragged, Rows, Same

COUNTS = (2, 3, 7, 25)


def check_rows(
    fn: Callable[..., Any],
    sites: Sequence[Sequence[Any]],
    *,
    shared: Sequence[Any] = (),
    named: Mapping[str, Sequence[Any]] | None = None,
    tolerance: float | None = 1e-4,
    seed: int = 0,
) -> float:
    """Check the twin `fn.rows`; return the largest difference from the plain form.

    `shared` are the first arguments, the same for every site (what a broadcast gives); `sites[i]` are the
    further arguments of site i, `named[name][i]` its keyword arguments. `tolerance=None` leaves out the
    comparison with the plain form. Raises AssertionError where a row's bits depend on who is beside it.
    """
    if getattr(fn, "rows", None) is None:
        raise ValueError(f"{fn!r} has no twin: tie one to it with fedray.rows.rows_of")
    if not sites:
        raise ValueError("check_rows: give the arguments of at least one site")
    given = {name: list(column) for name, column in (named or {}).items()}
    alone = [_run(fn, sites, given, shared, [i])[0] for i in range(len(sites))]
    order = random.Random(seed)
    for count in (*(count for count in COUNTS if count < len(sites)), len(sites), len(sites)):
        chosen = order.sample(range(len(sites)), count)
        for place, result in zip(chosen, _run(fn, sites, given, shared, chosen), strict=True):
            assert tree.equal(result, alone[place]), (
                f"site {place} has other bits among {count} sites ({chosen}) than alone: "
                f"{_first_difference(result, alone[place])}"
            )
    if tolerance is None:
        return 0.0
    worst = 0.0
    for i, site in enumerate(sites):
        plain = fn(*shared, *site, **{name: column[i] for name, column in given.items()})
        worst = max(worst, difference(plain, alone[i]))
    assert worst <= tolerance, f"the twin is {worst:.3g} from the plain form, more than {tolerance:.3g}"
    return worst


def _run(
    fn: Any, sites: Sequence[Sequence[Any]], named: Mapping[str, list[Any]], shared: Sequence[Any], chosen:
    list[int]
) -> list[Any]:
    group = Group([f"site{i}" for i in chosen])
    columns = [_tagged([sites[i][place] for i in chosen]) for place in range(len(sites[0]))]
    extras = {name: _tagged([column[i] for i in chosen]) for name, column in named.items()}
    found = Rows(fn.rows(group, *(Same(value) for value in shared), *columns, **extras))  # type: ignore[attr-defined]
    return [tree.clone(rows.row(found, place)) for place in range(len(chosen))]


def _tagged(values: list[Any]) -> Rows:
    """Stack what a pack would stack: parameters and numbers; data and keys stay as they are."""
    first = values[0]
    is_value = isinstance(first, (tree.Flat, torch.Tensor)) or tree.is_number(first)
    return rows.stack(values) if is_value else Rows(Ragged(values))


def difference(a: Any, b: Any) -> float:
    """Return the largest difference between two structures of numbers."""
    worst = 0.0
    left_paths, right_paths = ([path for path, _ in tree.leaves(value)] for value in (a, b))
    assert left_paths == right_paths, f"structures differ: {left_paths} beside {right_paths}"
    for (_, x), (_, y) in zip(tree.leaves(a), tree.leaves(b), strict=True):
        left, right = (leaf.buffer if isinstance(leaf, tree.Flat) else leaf for leaf in (x, y))
        if isinstance(left, torch.Tensor):
            assert left.shape == right.shape, f"shapes differ: {tuple(left.shape)} and {tuple(right.shape)}"
            gap = (left.double() - right.double()).abs()
            apart = torch.where(left == right, 0.0, gap).nan_to_num(math.inf)
            worst = max(worst, float(apart.max()) if apart.numel() else 0.0)
        elif tree.is_number(left):
            worst = max(worst, abs(float(left) - float(right)))
    return worst


def _first_difference(a: Any, b: Any) -> str:
    for (path, x), (_, y) in zip(tree.leaves(a), tree.leaves(b), strict=True):
        if not tree.equal(x, y):
            return f"{path or 'the value'} by {difference(x, y):.3g}"
    return "other structures"
