"""Relay: what a regional aggregator was sent is put again on its own node, once, for the hosts below it.

A host reads a downlink from where it lies. Were the aggregator's box handed on, every node of a region would
fetch the model over the slow link; so the region fetches it, and its hosts fetch it from there. Leaves that
hosts hold already stay away: a box of them is relayed when it comes for the first time, since nobody below
has it then; a host that was started again later opens the aggregator's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ray

from fedray import tree
from fedray.runtime.host import Contribution
from fedray.runtime.kept import Boxed, Change, Thinned

KEPT_BOXES = 16  # of frozen leaves, and the like


class Relay:
    """The boxes of one region."""

    def __init__(self) -> None:
        self._last: tuple[str, Any] = ("", None)  # of a stage that is asked again: id of its box, and ours
        self._boxes: dict[tuple[str, ...], Boxed] = {}  # hashes in a box of frozen leaves -> ours
        self._opened = 0

    def box(self, downlink: Any, opened: Mapping[int, Any], make: Callable[[Any], Any]) -> Any:
        """Return a box on this node with what was opened."""
        key = downlink.reference.hex()
        if self._last[0] != key:
            own = {index: self._own(value, make) for index, value in opened.items()}
            self._last = (key, make(ray.put(own)))
        return self._last[1]

    def counted(self, answer: Contribution) -> Contribution:
        """Add the bytes of the boxes that were opened here; those below are opened inside the region."""
        opened, self._opened = self._opened, 0
        return replace(answer, opened_bytes=answer.opened_bytes + opened)

    def _own(self, message: Any, make: Callable[[Any], Any]) -> Any:
        leaves = [leaf for _, leaf in tree.leaves(message)]
        if not any(isinstance(leaf, (Thinned, Change)) for leaf in leaves):
            return message
        return tree.replace_leaves(message, [self._leaf(leaf, make) for leaf in leaves])

    def _leaf(self, leaf: Any, make: Callable[[Any], Any]) -> Any:
        if isinstance(leaf, Thinned):
            held = [(name, key, self._boxed(boxed, make)) for name, key, boxed in leaf.held]
            return Thinned(leaf.schema, leaf.sent, held)
        if isinstance(leaf, Change) and leaf.change is None:  # the first of its kind: all open the box
            return Change(None, leaf.before, leaf.after, self._boxed(leaf.boxed, make, (leaf.after,)))
        return leaf

    def _boxed(self, boxed: Boxed, make: Callable[[Any], Any], hashes: tuple[str, ...] = ()) -> Boxed:
        key = hashes or tuple(sorted(boxed.hashes.values()))
        if key not in self._boxes:
            self._opened += boxed.nbytes
            ours = Boxed(boxed.open(), lambda value: make(ray.put(value)), boxed.hashes)
            ours.nbytes = 0  # it does not cross the link again
            self._boxes[key] = ours
            if len(self._boxes) > KEPT_BOXES:
                self._boxes.pop(next(iter(self._boxes)))
        return self._boxes[key]
