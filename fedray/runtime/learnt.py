"""Learnt: what made-up rows say of a plan before any site is asked, learnt once where the plan comes again.

A rehearsal gives the bytes of each name, a probe whether rows are invariant. Both depend on the plan (its
digest: graph, functions, numbers), on the shapes of state and columns and on the device, and on nothing else;
so the trials of a sweep, whose plans are often equal, share what the first of them found.
"""

from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any

from torch import Tensor

from fedray import tree
from fedray.runtime.plan import Plan, Size
from fedray.runtime.probe import row_invariant
from fedray.runtime.sizes import rehearse


class Learnt:
    """Findings by plan and shapes. One serves one run, or all trials of a sweep on the same data."""

    def __init__(self) -> None:
        self._sizes: dict[Any, Mapping[str, Size]] = {}
        self._is_invariant: dict[Any, bool | None] = {}

    def sizes(self, plan: Plan, state: Any, blank: Any) -> tuple[Plan, str]:
        """Return the plan with the size of each name, as `rehearse` does; what went wrong is tried again."""
        key = _key(plan, state, blank)
        if key in self._sizes:
            return plan.with_sizes(self._sizes[key]), ""
        found, why = _alone(rehearse, plan, state, blank)
        if not why:
            self._sizes[key] = found.sizes
        return found, why

    def row_invariant(self, plan: Plan, state: Any, blank: Any, device: str) -> bool | None:
        """Tell whether sites have the same bits alone and beside others, as the probe does."""
        key = (_key(plan, state, blank), device)
        if key not in self._is_invariant:
            self._is_invariant[key] = _alone(row_invariant, plan, state, blank, device)
        return self._is_invariant[key]


def _alone(fn: Callable[..., Any], *args: Any) -> Any:
    """Call in a context of its own: made-up rows wait for no other trial that trains beside this one."""
    return Context().run(fn, *args)


def _key(plan: Plan, state: Any, blank: Any) -> Any:
    return plan.digest, _shapes(state), type(blank), _shapes(dict(blank))


def _shapes(value: Any) -> tuple[Any, ...]:
    """Return what a value is without its numbers."""
    return tuple((path, _shape(leaf)) for path, leaf in tree.leaves(value))


def _shape(leaf: Any) -> Any:
    if isinstance(leaf, tree.Flat):
        return leaf.schema, len(leaf.buffer)
    return (leaf.dtype, tuple(leaf.shape)) if isinstance(leaf, Tensor) else type(leaf)
