"""Nine verbs, and how a plain Python function becomes a graph.

    def round(server, site):
        update = fr.map(local, fr.broadcast(server.params), site.data, site.rng)
        delta = fr.mean(update.delta, weight=update.num_examples)
        return fr.Outputs(server=...)

`trace` calls the function once with `Value`s: handles with a placement that never hold data. What the function
does to them is written down as nodes, each with the `file:line` of the user's code.
"""

import builtins
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NoReturn

from fedray.core.graph import Graph, Key, Node, Op, Placement
from fedray.errors import PlacementError, TraceError

SERVER, SITES, ANY = Placement.SERVER, Placement.SITES, Placement.ANY
_INTERNAL = (os.path.dirname(os.path.abspath(__file__)) + os.sep, os.sep + os.path.join("fedray", "tree.py"))
SITE_INPUTS = ("data", "state", "id", "rng")


def caller() -> str:
    """Return `file.py:line` of the innermost frame outside the tracer."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (frame.f_code.co_filename.startswith(_INTERNAL[0])
                                        or frame.f_code.co_filename.endswith(_INTERNAL[1])
                                        or frame.f_code.co_filename.startswith("<")):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


class Value:
    """A handle on what will be computed at the server or at the sites. It never holds data."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        object.__setattr__(self, "node", node)

    def __getattr__(self, name: str) -> "Value":
        if name.startswith("__"):
            raise AttributeError(name)
        return _get(self, name, is_attribute=True)

    def __getitem__(self, key: Any) -> "Value":
        return _get(self, key, is_attribute=False)

    def _refuse(self, what: str) -> NoReturn:
        raise TraceError(f"{caller()}: {what} of {self!r} is not known while a round is traced; "
                         "do it inside the mapped or applied function, where the value is ordinary Python")

    def __bool__(self) -> bool:
        self._refuse("the truth value")

    def __iter__(self) -> Any:
        self._refuse("the length")

    def __len__(self) -> int:
        self._refuse("the length")

    def __float__(self) -> float:
        self._refuse("the number")

    def __int__(self) -> int:
        self._refuse("the number")

    def __setattr__(self, name: str, value: Any) -> None:
        raise TraceError(f"{caller()}: a value cannot be changed; compute a new one and return it in Outputs")

    def __repr__(self) -> str:
        label = self.node.name or (self.node.params.get("slot") or self.node.params.get("key") or self.node.op)
        return f"<{label} at {self.node.placement}>"

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
    return Value(Node(Op.GET, node.placement, (node,), params={"key": key, "attribute": is_attribute},
                      name=str(key), where=caller()))


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


def _const(thing: Any) -> Node:
    return Node(Op.CONST, ANY, params={"value": thing}, where=caller())


@dataclass(frozen=True)
class Record:
    """Rebuild a structure from its parts: a hole of the template takes the next argument."""

    template: Any

    def __call__(self, *parts: Any) -> Any:
        """Return the structure with its holes filled in order."""
        source = iter(parts)

        def fill(thing: Any) -> Any:
            if thing is HOLE:
                return next(source)
            if isinstance(thing, Mapping):
                return {key: fill(child) for key, child in thing.items()}
            if isinstance(thing, tuple) and hasattr(thing, "_fields"):
                return type(thing)(*(fill(child) for child in thing))
            if isinstance(thing, (list, tuple)):
                return type(thing)(fill(child) for child in thing)
            if isinstance(thing, _Shape):
                return thing.kind(**{name: fill(child) for name, child in thing.fields.items()})
            return thing
        return fill(self.template)


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
        return _const(thing)
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
        raise PlacementError(f"{caller()}: {what} mixes a value at the server with a value at the sites; "
                             "send the server's value with broadcast(), or reduce the sites' value with sum() or mean()")
    return found.pop() if found else ANY


def _arithmetic(fn: Callable[..., Any], *operands: Any) -> Value:
    nodes = tuple(lift(operand) for operand in operands)
    return Value(Node(Op.CALL, _common(nodes, "arithmetic"), nodes, fn, {"lift": "leafwise"}, where=caller()))


def _need(thing: Any, placement: Placement, verb: str, remedy: str) -> Node:
    node = lift(thing)
    if node.placement not in (placement, ANY):
        raise PlacementError(f"{caller()}: {verb}() takes a value at the {placement}, got one at the "
                             f"{node.placement}: {remedy}")
    return node


def broadcast(value: Any) -> Value:
    """Give every site of the cohort the server's value."""
    node = _need(value, SERVER, "broadcast", "a value at the sites is there already")
    return Value(Node(Op.BROADCAST, SITES, (node,), name=node.name, where=caller()))


def scatter(value: Any) -> Value:
    """Give each site its own entry of a mapping {site id: value} at the server."""
    node = _need(value, SERVER, "scatter", "a value at the sites is there already")
    return Value(Node(Op.SCATTER, SITES, (node,), name=node.name, where=caller()))


def map(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
    """Run `fn` at every site of the cohort. Constants are given as they are."""
    return _call("map", "site", SITES, fn, args, kwargs, "send it with broadcast() or scatter()")


def apply(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
    """Run `fn` at the server."""
    return _call("apply", "server", SERVER, fn, args, kwargs, "reduce it with sum(), mean() or gather()")


def _call(verb: str, lifted: str, placement: Placement, fn: Callable[..., Any], args: tuple[Any, ...],
          kwargs: Mapping[str, Any], remedy: str) -> Value:
    if not callable(fn):
        raise TraceError(f"{caller()}: the first argument of {verb}() is a function, got {type(fn).__name__}")
    nodes = tuple(_need(arg, placement, verb, remedy) for arg in (*args, *kwargs.values()))
    params = {"lift": lifted, "kwargs": tuple(kwargs)}
    return Value(Node(Op.CALL, placement, nodes, fn, params, where=caller()))


def _reduce(kind: str, value: Any, name: str, extra: tuple[Node, ...] = (), placement: Placement = SERVER,
            **params: Any) -> Value:
    node = _need(value, SITES, kind, "it is at the server already")
    if node.placement is ANY:
        raise PlacementError(f"{caller()}: {kind}() of a constant: every site has the same value; use it directly")
    name = name or (node.name if node.op is Op.GET else "")
    if not name:
        raise TraceError(f"{caller()}: {kind}() of a computed value needs a name: {kind}(..., name=\"...\"), "
                         "because every value that leaves a site is listed by name")
    return Value(Node(Op.REDUCE, placement, (node, *extra), name=name, params={"kind": kind, **params}, where=caller()))


def sum(value: Any, *, name: str = "") -> Value:
    """Add up over the sites that delivered this stage, leaf by leaf."""
    return _reduce("sum", value, name)


def mean(value: Any, *, weight: Any = None, name: str = "", within: str = "", weight_cap: float | None = None) -> Value:
    """Average over the sites that delivered this stage: sum of weight * value over sum of weight.

    Weights are whole numbers (row counts); fractions need `weight_cap`, a public bound: they are rounded to
    2^-14 of it. `within="region"` gives each site the mean over its own declared region.
    """
    if within not in ("", "region"):
        raise TraceError(f"{caller()}: mean(within={within!r}): the only declared grouping is 'region'")
    extra = () if weight is None else (_need(weight, SITES, "mean", "give a weight per site"),)
    return _reduce("mean", value, name, extra, SITES if within else SERVER, within=within, weight_cap=weight_cap)


def gather(value: Any, *, name: str = "") -> Value:
    """Give the server each site's value, as a mapping {site id: value}."""
    return _reduce("gather", value, name)


def mix(value: Any, matrix: Any, *, name: str = "") -> Value:
    """Give site i the sum over sites j of matrix[i][j] * value_j. `matrix` is {site: {site: number}}.

    Weights of neighbours that did not deliver go to the site itself, so that rows keep their sum.
    """
    return _reduce("mix", value, name, (_const(matrix),), SITES)


def count(site: "Site") -> Value:
    """Return the number of sites that delivered the stage in which the number is used."""
    if not isinstance(site, Site):
        raise TraceError(f"{caller()}: count() takes the round's `site` argument")
    return Value(Node(Op.REDUCE, SERVER, (), name="count", params={"kind": "count"}, where=caller()))


class Site:
    """The sites' side of a round: `data`, `state`, `id`, `rng`, independent streams, and slots of passes."""

    def __init__(self, inputs: dict[Key, Node], stored: dict[Key, Node], inits: dict[Key, Callable[..., Any]]) -> None:
        self._inputs, self._stored, self._inits = inputs, stored, inits

    def _input(self, slot: str) -> Value:
        key = (SITES, slot)
        if key not in self._inputs:
            self._inputs[key] = Node(Op.INPUT, SITES, params={"slot": slot}, where=caller())
        return Value(self._inputs[key])

    def __getattr__(self, name: str) -> Value:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in SITE_INPUTS:
            raise TraceError(f"{caller()}: a site has no {name!r}; it has {', '.join(SITE_INPUTS)}, stream(label)")
        return self._input(name)

    def stream(self, label: str) -> Value:
        """Return a random key that is independent of `site.rng` and of every other label."""
        return self._input(f"rng:{label}")

    def slot(self, name: str, like: Any) -> Value:
        """Read a pass's own memory at the site; zeros shaped as `like` at first use."""
        self._inits[(SITES, name)] = _ZEROS
        memory = self._input(name)
        return Value(Node(Op.CALL, SITES, (memory.node, lift(like)), _or_zeros, {"lift": "site", "kwargs": ()},
                          where=caller()))

    def store(self, name: str, value: Any) -> None:
        """Keep a pass's memory; it is committed with the count, as `site.state` is."""
        self._stored[(SITES, name)] = _need(value, SITES, "store", "the memory is at the site")


def _or_zeros(memory: Any, like: Any) -> Any:
    from fedray import tree
    return tree.zeros_like(like) if memory is None else memory


def _ZEROS(server: Any) -> None:
    return None


@dataclass(frozen=True)
class Outputs:
    """What a round returns: the server's next state, each site's next state, and metrics at the server."""

    server: Any = None
    site: Any = None
    metrics: Any = None


@dataclass(frozen=True)
class Algorithm:
    """How the server's state starts, one round, and how a site's state starts (from the server's first state)."""

    init: Callable[[Any], Any]
    round: Callable[[Value, Site], Outputs]
    init_site: Callable[[Any], Any] | None = None
    name: str = ""

    @property
    def title(self) -> str:
        """The algorithm's name, or its round function's."""
        return self.name or self.round.__qualname__.split(".")[0]


def trace(algorithm: Algorithm) -> Graph:
    """Call the round once on handles and return what it did as a graph.

    Raises TraceError or PlacementError with the user's `file:line`.
    """
    inputs: dict[Key, Node] = {(SERVER, "state"): Node(Op.INPUT, SERVER, params={"slot": "state"}, where="server")}
    stored: dict[Key, Node] = {}
    inits: dict[Key, Callable[..., Any]] = {}
    if algorithm.init_site is not None:
        inits[SITES, "state"] = algorithm.init_site
    outputs = algorithm.round(Value(inputs[SERVER, "state"]), Site(inputs, stored, inits))
    if not isinstance(outputs, Outputs):
        raise TraceError(f"{algorithm.title}: a round returns fr.Outputs(server=...), got {type(outputs).__name__}")
    found: dict[Key, Node] = {}
    for part, placement, slot in (("server", SERVER, "state"), ("site", SITES, "state"), ("metrics", SERVER, "metrics")):
        if (thing := getattr(outputs, part)) is not None:
            found[placement, slot] = _output(algorithm.title, part, thing, placement)
    if (SERVER, "state") not in found:
        found[SERVER, "state"] = inputs[SERVER, "state"]
    if (SITES, "state") in inputs and (SITES, "state") not in inits:
        raise TraceError(f"{algorithm.title}: the round reads site.state, so Algorithm needs init_site=")
    return Graph({**found, **stored}, inits, algorithm.title)


def _output(title: str, part: str, thing: Any, placement: Placement) -> Node:
    node = lift(thing)
    if node.placement not in (placement, ANY):
        remedy = "reduce it with sum() or mean()" if placement is SERVER else "broadcast it first"
        raise TraceError(f"{node.where or title}: Outputs({part}=...) is a value at the {placement}, got one at the "
                         f"{node.placement}: {remedy}")
    if node.op is Op.CONST:
        return Node(Op.CALL, placement, (node,), _identity, {"lift": "server" if placement is SERVER else "site",
                                                             "kwargs": ()}, where=node.where)
    return node


def _identity(value: Any) -> Any:
    return value


__all__ = ["ANY", "SERVER", "SITES", "Algorithm", "Outputs", "Record", "Site", "Value", "apply", "broadcast",
           "caller", "contains_value", "count", "gather", "lift", "map", "mean", "mix", "scatter", "sum", "trace"]
