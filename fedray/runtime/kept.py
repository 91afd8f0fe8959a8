"""What hosts have already is not sent to them again: the server's `Sender` and the hosts' `Kept`.

Of a broadcast the frozen leaves (`tree.Schema.moving`) are put once, by the hash of their bits. Later
messages name the hash, also where another program broadcasts the same numbers in a leaf of the same name; a
host opens the box of what it does not hold, so one that was started again gets it again. A `Followed` value
goes as the change of the one before; a host that does not have that one opens the box of the whole.

Counted are the bytes of a message for every host below the aggregator, 32 for each hash in it, and of a box
for every host that opened it.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from fedray import tree
from fedray.frozen import Followed, moved
from fedray.runtime.hashes import sha256_of
from fedray.tree import Flat, Leaf

HASH_BYTES = 32
Put = Callable[[Any], Any]
Place = tuple[str, int, int]  # plan, node, number of the leaf


class Boxed:
    """A value that was put for hosts that lack it, its bytes, and the hash of each leaf in it."""

    __slots__ = ("box", "hashes", "nbytes")

    def __init__(self, value: Any, put: Put, hashes: Mapping[str, str]) -> None:
        self.box, self.nbytes, self.hashes = put(value), tree.nbytes(value), dict(hashes)

    def open(self) -> Any:
        """Read the value."""
        with tree.sharing():
            return self.box.open() if hasattr(self.box, "open") else self.box


class Thinned:
    """A flat value as it is sent: some leaves, and the others by (name, hash, box)."""

    __slots__ = ("held", "schema", "sent")

    def __init__(
        self, schema: tree.Schema, sent: Flat | None, held: Collection[tuple[str, str, Boxed]]
    ) -> None:
        self.schema, self.sent, self.held = schema, sent, tuple(held)


class Change:
    """A followed value as it is sent: the coded change, the hashes before and after it, the box of the
    whole.
    """

    __slots__ = ("after", "before", "boxed", "change")

    def __init__(self, change: Any, before: str, after: str, boxed: Boxed) -> None:
        self.change, self.before, self.after, self.boxed = change, before, after, boxed


def sent_bytes(message: Any) -> int:
    """Return the bytes of what is sent for a value."""
    total = 0
    for _, leaf in tree.leaves(message):
        if isinstance(leaf, Thinned):
            total += HASH_BYTES * len(leaf.held) + tree.nbytes(leaf.sent)
        elif isinstance(leaf, Change):
            total += 2 * HASH_BYTES + tree.nbytes(leaf.change)
        else:
            total += tree.nbytes(leaf)
    return total


def boxed_bytes(message: Any) -> int:
    """Return the bytes that a host without anything reads besides."""
    boxes: dict[int, Boxed] = {}
    for _, leaf in tree.leaves(message):
        if isinstance(leaf, Thinned):
            boxes |= {id(boxed): boxed for _, _, boxed in leaf.held}
        elif isinstance(leaf, Change):
            boxes[id(leaf.boxed)] = leaf.boxed
    return sum(boxed.nbytes for boxed in boxes.values())


class Sender:
    """What the server has given to hosts: boxes by hash, and what they hold."""

    def __init__(self) -> None:
        self._boxes: dict[str, tuple[Boxed, Tensor]] = {}  # hash -> its box, and the bits
        self._names: dict[str, str] = {}  # name of a leaf -> hash that it had last
        self._used: dict[tuple[str, int], set[str]] = {}
        self._followed: dict[Place, list[tuple[Any, str, Boxed]]] = {}  # the last two: value, hash, box

    def message(self, plan: str, index: int, value: Any, put: Put) -> Any:
        """Return a broadcast value as it is sent."""
        leaves = [leaf for _, leaf in tree.leaves(value)]
        used: set[str] = set()
        new = [self._of((plan, index, number), leaf, used, put) for number, leaf in enumerate(leaves)]
        if used or (plan, index) in self._used:
            self._used[plan, index] = used
            live = set().union(*self._used.values())
            self._boxes = {key: entry for key, entry in self._boxes.items() if key in live}
            self._names = {name: key for name, key in self._names.items() if key in live}
        is_same = all(a is b for a, b in zip(leaves, new, strict=True))
        return value if is_same else tree.replace_leaves(value, new)

    def _of(self, place: Place, leaf: Any, used: set[str], put: Put) -> Any:
        if isinstance(leaf, Followed):
            return self._change(place, leaf, put)
        if not isinstance(leaf, Flat) or len(leaf.buffer) != 1 or not leaf.schema.leaves:
            return leaf
        if leaf.schema.leaves[-1].offset < leaf.schema.moving and not self._names:
            return leaf
        return self._thinned(leaf, used, put)

    def _thinned(self, flat: Flat, used: set[str], put: Put) -> Any:
        hashes, fresh = {}, {}
        for leaf in flat.schema.leaves:
            numbers = _numbers(flat, leaf)
            found = self._known(leaf.name, numbers)
            if found is None and leaf.offset >= flat.schema.moving:
                found = sha256_of(numbers)
                if found not in self._boxes:
                    fresh[leaf.name] = found
            if found is not None:
                hashes[leaf.name] = found
        if not hashes:
            return flat
        if fresh:
            copied = tree.flatten({name: flat[name] for name in fresh})
            boxed = Boxed(copied, put, fresh)
            for leaf in copied.schema.leaves:
                self._boxes[fresh[leaf.name]] = (boxed, _numbers(copied, leaf))
        self._names |= hashes
        used |= set(hashes.values())
        rest = {name: flat[name] for name in flat if name not in hashes}
        held = [(name, key, self._boxes[key][0]) for name, key in hashes.items()]
        return Thinned(flat.schema, tree.flatten(rest) if rest else None, held)

    def _known(self, name: str, numbers: Tensor) -> str | None:
        """Return the hash of a leaf whose bits are those that it had under this name last time."""
        key = self._names.get(name, "")
        if key not in self._boxes:
            return None
        bits = self._boxes[key][1]
        if bits.dtype != numbers.dtype or bits.shape != numbers.shape:
            return None
        return key if torch.equal(bits.view(torch.uint8), numbers.cpu().view(torch.uint8)) else None

    def _change(self, place: Place, leaf: Followed, put: Put) -> Change:
        known = self._followed.get(place, [])

        def hash_of(value: Any) -> str:
            return next((key for held, key, _ in known if held is value), "") or sha256_of(value)

        before = "" if leaf.change is None else hash_of(leaf.before)
        after = hash_of(leaf.whole)
        boxed = next((boxed for _, key, boxed in known if key == after), None) or Boxed(leaf.whole, put, {})
        self._followed[place] = [*known, (leaf.whole, after, boxed)][-2:]
        return Change(leaf.change, before, after, boxed)


class Kept:
    """What a host holds of what it was sent."""

    def __init__(self) -> None:
        self._leaves: dict[str, tuple[Flat, Leaf]] = {}  # hash -> where it lies
        self._used: dict[tuple[str, int], set[str]] = {}
        self._followed: dict[Place, tuple[str, Any]] = {}
        self._opened = 0

    def take_opened(self) -> int:
        """Return the bytes of the boxes that were opened since the last time."""
        found, self._opened = self._opened, 0
        return found

    def forget(self) -> None:
        """Hold nothing: another run begins."""
        self._leaves, self._used, self._followed = {}, {}, {}

    def whole(self, plan: str, index: int, message: Any) -> Any:
        """Return the broadcast value that a message stands for."""
        leaves = [leaf for _, leaf in tree.leaves(message)]
        is_plain = not any(isinstance(leaf, (Thinned, Change)) for leaf in leaves)
        if is_plain and (plan, index) not in self._used:
            return message
        used: set[str] = set()
        new = [self._of((plan, index, number), leaf, used) for number, leaf in enumerate(leaves)]
        self._used[plan, index] = used
        live = set().union(*self._used.values())
        self._leaves = {key: entry for key, entry in self._leaves.items() if key in live}
        return tree.replace_leaves(message, new)

    def _of(self, place: Place, leaf: Any, used: set[str]) -> Any:
        if isinstance(leaf, Thinned):
            used |= {key for _, key, _ in leaf.held}
            return self._filled(leaf)
        return self._moved(place, leaf) if isinstance(leaf, Change) else leaf

    def _open(self, boxed: Boxed) -> Any:
        self._opened += boxed.nbytes
        return boxed.open()

    def _filled(self, thin: Thinned) -> Flat:
        for _, key, boxed in thin.held:
            if key not in self._leaves:
                box = self._open(boxed)
                for leaf in box.schema.leaves:
                    self._leaves.setdefault(boxed.hashes[leaf.name], (box, leaf))
        first = self._leaves[thin.held[0][1]][0]
        is_one_box = all(self._leaves[key][0] is first for _, key, _ in thin.held)
        if thin.sent is None and is_one_box and first.schema.leaves == thin.schema.leaves:
            return Flat(first.buffer, thin.schema)
        found = Flat(torch.zeros(1, thin.schema.stride, dtype=thin.schema.dtype), thin.schema)
        sent = {} if thin.sent is None else {leaf.name: (thin.sent, leaf) for leaf in thin.sent.schema.leaves}
        sources = sent | {name: self._leaves[key] for name, key, _ in thin.held}
        for leaf in thin.schema.leaves:
            _numbers(found, leaf).copy_(_numbers(*sources[leaf.name]))
        return found

    def _moved(self, place: Place, sent: Change) -> Any:
        key, value = self._followed.get(place, ("", None))
        if key != sent.after:
            is_follower = bool(key) and key == sent.before
            value = moved(value, sent.change) if is_follower else self._open(sent.boxed)
            self._followed[place] = (sent.after, value)
        return value


def _numbers(flat: Flat, leaf: Leaf) -> Tensor:
    return flat.buffer[0, leaf.offset : leaf.offset + leaf.size]
