"""Learnt: what made-up rows said of plans, kept for the runs that follow where a plan comes again.

A rehearsal depends on the plans (their digests: graph, functions, numbers), on the shapes of state and
columns and on the device, and on nothing else; so the trials of a sweep, whose plans are often equal, share
what the first of them found.
"""

from collections.abc import Callable
from contextvars import Context
from typing import Any

from torch import Tensor

from fedray import tree
from fedray.runtime.rehearsal import Rehearsal, ToRehearse


class Learnt:
    """Rehearsals by plans and shapes. One serves one run, or all trials of a sweep on the same data."""

    def __init__(self) -> None:
        self._found: dict[Any, Rehearsal] = {}

    def of(self, asked: ToRehearse, blank: Any, rehearse: Callable[[], Rehearsal]) -> Rehearsal:
        """Return what was found before, or let it be found; what went wrong is tried again.

        In a context of its own: made-up rows wait for no other trial that trains beside this one.
        """
        key = _key(asked, blank)
        if key in self._found:
            return self._found[key]
        found: Rehearsal = Context().run(rehearse)
        if not found.why:
            self._found[key] = found
        return found


def _key(asked: ToRehearse, blank: Any) -> Any:
    programs = tuple((split, program.digest) for split, program in asked.programs.items())
    columns = type(blank), _shapes(dict(blank))
    return asked.plan.digest, programs, _shapes(asked.state), columns, asked.device


def _shapes(value: Any) -> tuple[Any, ...]:
    """Return what a value is without its numbers."""
    return tuple((path, _shape(leaf)) for path, leaf in tree.leaves(value))


def _shape(leaf: Any) -> Any:
    if isinstance(leaf, tree.Flat):
        return leaf.schema, len(leaf.buffer)
    return (leaf.dtype, tuple(leaf.shape)) if isinstance(leaf, Tensor) else type(leaf)
