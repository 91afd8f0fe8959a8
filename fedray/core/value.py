"""Values: handles on what will be computed, and how a structure that holds them becomes a node.

Used by `trace.py`, which is the file to read first.
"""

import builtins
import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import FrameType
from typing import Any, NoReturn

from fedray.core.graph import Node, Op, Placement
from fedray.errors import PlacementError, TraceError

ANY = Placement.ANY
_CORE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_RUNTIME = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "runtime") + os.sep
_GENERATED = "<string>"  # the methods that dataclasses write
_TREE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tree.py")


def caller() -> str:
    """Return `file.py:line` of the innermost frame outside the tracer."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def _is_ours(frame: FrameType) -> bool:
    filename = frame.f_code.co_filename
    is_generated = filename == _GENERATED and frame.f_code.co_name.startswith("__")
    return filename.startswith((_CORE, _RUNTIME)) or filename == _TREE or is_generated


class Value:
    """A handle on what will be computed at the server or at the sites. It never holds data."""

    __slots__ = ("node",)
    node: Node

    def __init__(self, node: Node) -> None:
        object.__setattr__(self, "node", node)

    def __getattr__(self, name: str) -> "Value":
        if name.startswith("__"):
            raise AttributeError(name)
        return _get(self, name, is_attribute=True)

    def __getitem__(self, key: Any) -> "Value":
        return _get(self, key, is_attribute=False)

    def _refuse(self, what: str) -> NoReturn:
        raise TraceError(
            f"{caller()}: {what} of {self!r} is not known while a round is traced; "
            "do it inside the mapped or applied function, where the value is ordinary Python"
        )

    def __bool__(self) -> bool:  # noqa: PLE0304 (raises)
        self._refuse("the truth value")

    def __iter__(self) -> Any:
        self._refuse("the length")

    def __len__(self) -> int:  # noqa: PLE0303 (raises)
        self._refuse("the length")

    def __float__(self) -> float:
        self._refuse("the number")

    def __int__(self) -> int:
        self._refuse("the number")

    def __setattr__(self, name: str, value: Any) -> None:
        raise TraceError(f"{caller()}: a value cannot be changed; compute a new one and return it in Outputs")

    def __repr__(self) -> str:
        label = self.node.name or (
            self.node.params.get("slot") or self.node.params.get("key") or self.node.op
        )
        return f"<{label} at {self.node.placement}>"

    def _compare(self, other: Any) -> NoReturn:
        self._refuse("a comparison")

    __lt__ = __le__ = __gt__ = __ge__ = _compare

    def __add__(self, other: Any) -> "Value":
        return _arithmetic(operator.add, self, other)

    def __radd__(self, other: Any) -> "Value":
        return _arithmetic(operator.add, other, self)

    def __sub__(self, other: Any) -> "Value":
        return _arithmetic(operator.sub, self, other)

    def __rsub__(self, other: Any) -> "Value":
        return _arithmetic(operator.sub, other, self)

    def __mul__(self, other: Any) -> "Value":
        return _arithmetic(operator.mul, self, other)

    def __rmul__(self, other: Any) -> "Value":
        return _arithmetic(operator.mul, other, self)

    def __truediv__(self, other: Any) -> "Value":
        return _arithmetic(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> "Value":
        return _arithmetic(operator.truediv, other, self)

    def __neg__(self) -> "Value":
        return _arithmetic(operator.mul, self, -1)


def _get(value: Value, key: Any, is_attribute: bool) -> Value:
    node = value.node
    if node.op is Op.INPUT and node.params["slot"] in ("data", "id", "rng") and is_attribute:
        raise TraceError(f"{caller()}: read {key!r} of site.{node.params['slot']} inside the mapped function")
    return Value(
        Node(
            Op.GET,
            node.placement,
            (node,),
            params={"key": key, "attribute": is_attribute},
            name=str(key),
            where=caller(),
        )
    )


def contains_value(thing: Any) -> bool:
    """Tell whether a structure holds a traced value."""
    if isinstance(thing, Value):
        return True
    if isinstance(thing, Mapping):
        return builtins.any(contains_value(child) for child in thing.values())
    if isinstance(thing, (list, tuple)):
        return builtins.any(contains_value(child) for child in thing)
    if is_dataclass(thing) and not isinstance(thing, type):
        return builtins.any(contains_value(getattr(thing, item.name)) for item in fields(thing))
    return False


def constant(thing: Any) -> Node:
    """Return the node of a constant."""
    return Node(Op.CONST, ANY, params={"value": thing}, where=caller())


@dataclass(frozen=True)
class Record:
    """Rebuild a structure from its parts: a hole of the template takes the next argument."""

    template: Any

    def __call__(self, *parts: Any) -> Any:
        """Return the structure with its holes filled in order."""
        return _filled(self.template, iter(parts))


def _filled(thing: Any, source: Iterator[Any]) -> Any:
    """Fill the holes. Not a closure that calls itself: it would hold the parts until a garbage collection."""
    if thing is HOLE:
        return next(source)
    if isinstance(thing, Mapping):
        return {key: _filled(child, source) for key, child in thing.items()}
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return type(thing)(*(_filled(child, source) for child in thing))
    if isinstance(thing, (list, tuple)):
        return type(thing)(_filled(child, source) for child in thing)
    if isinstance(thing, _Shape):
        return thing.kind(**{name: _filled(child, source) for name, child in thing.fields.items()})
    return thing


class _Hole:
    def __repr__(self) -> str:
        return "_"

    def __reduce__(self) -> str:
        return "HOLE"  # unpickles to the one object below, so that `is` goes on working


HOLE = _Hole()


@dataclass(frozen=True)
class _Shape:
    kind: type
    fields: Mapping[str, Any]


def lift(thing: Any) -> Node:
    """Return the node of a value, of a structure that holds values, or of a constant."""
    if isinstance(thing, Value):
        return thing.node
    if not contains_value(thing):
        return constant(thing)
    parts: list[Node] = []

    def cut(child: Any) -> Any:
        if isinstance(child, Value):
            parts.append(child.node)
            return HOLE
        if not contains_value(child):
            return child
        if isinstance(child, Mapping):
            return {key: cut(item) for key, item in child.items()}
        if isinstance(child, tuple) and hasattr(child, "_fields"):
            return type(child)(*(cut(item) for item in child))
        if isinstance(child, (list, tuple)):
            return type(child)(cut(item) for item in child)
        return _Shape(type(child), {item.name: cut(getattr(child, item.name)) for item in fields(child)})

    template = cut(thing)
    placement = _common(parts, "a structure")
    return Node(Op.CALL, placement, tuple(parts), Record(template), {"lift": "record"}, where=caller())


def _common(nodes: Iterable[Node], what: str) -> Placement:
    found = {node.placement for node in nodes} - {ANY}
    if len(found) > 1:
        raise PlacementError(
            f"{caller()}: {what} mixes a value at the server with a value at the sites; "
            "send the server's value with broadcast(), or reduce the sites' value with sum() or mean()"
        )
    return found.pop() if found else ANY


def _arithmetic(fn: Callable[..., Any], *operands: Any) -> Value:
    nodes = tuple(lift(operand) for operand in operands)
    return Value(Node(Op.CALL, _common(nodes, "arithmetic"), nodes, fn, {"lift": "leafwise"}, where=caller()))


def needed(thing: Any, placement: Placement, verb: str, remedy: str) -> Node:
    """Return the node of a verb's argument. Raises PlacementError where it lives at the other side."""
    node = lift(thing)
    if node.placement not in (placement, ANY):
        raise PlacementError(
            f"{caller()}: {verb}() takes a value at the {placement}, got one at the "
            f"{node.placement}: {remedy}"
        )
    return node
