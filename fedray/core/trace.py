"""Nine verbs, and how a plain Python function becomes a graph.

    def round(server, site):
        update = fr.map(local, fr.broadcast(server.params), site.data, site.rng)
        delta = fr.mean(update.delta, weight=update.num_examples)
        return fr.Outputs(server=...)

`trace` calls the function once with `Value`s (value.py): handles with a placement that never hold data. What
the function does to them is written down as nodes, each with the `file:line` of the user's code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedray import tree
from fedray.core.graph import Graph, Key, Node, Op, Placement
from fedray.core.value import Record, Value, caller, lift, needed
from fedray.errors import PlacementError, TraceError
from fedray.rows import Group, Ragged, Tagged, expand, row, rows_of, stack

SERVER, SITES, ANY = Placement.SERVER, Placement.SITES, Placement.ANY
SITE_INPUTS = ("data", "state", "id", "rng")


def broadcast(value: Any, *, name: str = "") -> Value:
    """Give every site of the cohort the server's value. Passes find it by its `name`, a field by its own."""
    node = needed(value, SERVER, "broadcast", "a value at the sites is there already")
    return Value(Node(Op.BROADCAST, SITES, (node,), name=name or node.name, where=caller()))


def scatter(value: Any, *, by: str = "") -> Value:
    """Give each site its own entry of a mapping {site id: value} at the server.

    `by="region"` gives it the entry of its declared region, that of "" where its region has none.
    """
    node = needed(value, SERVER, "scatter", "a value at the sites is there already")
    params = {"by": by} if _grouping("scatter", "by", by) else {}
    return Value(Node(Op.SCATTER, SITES, (node,), params=params, name=node.name, where=caller()))


def map(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
    """Run `fn` at every site of the cohort. Constants are given as they are."""
    return _call("map", "site", SITES, fn, args, kwargs, "send it with broadcast() or scatter()")


def apply(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
    """Run `fn` at the server."""
    return _call("apply", "server", SERVER, fn, args, kwargs, "reduce it with sum(), mean() or gather()")


def _call(
    verb: str,
    lifted: str,
    placement: Placement,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    remedy: str,
) -> Value:
    if not callable(fn):
        raise TraceError(f"{caller()}: the first argument of {verb}() is a function, got {type(fn).__name__}")
    nodes = tuple(needed(arg, placement, verb, remedy) for arg in (*args, *kwargs.values()))
    params = {"lift": lifted, "kwargs": tuple(kwargs)}
    return Value(Node(Op.CALL, placement, nodes, fn, params, where=caller()))


def _reduce(
    kind: str,
    value: Any,
    name: str,
    extra: tuple[Node, ...] = (),
    placement: Placement = SERVER,
    **params: Any,
) -> Value:
    node = needed(value, SITES, kind, "it is at the server already")
    if node.placement is ANY:
        raise PlacementError(
            f"{caller()}: {kind}() of a constant: every site has the same value; use it directly"
        )
    name = name or (node.name if node.op is Op.GET else "")
    if not name:
        raise TraceError(
            f'{caller()}: {kind}() of a computed value needs a name: {kind}(..., name="..."), '
            "because every value that leaves a site is listed by name"
        )
    return Value(
        Node(Op.REDUCE, placement, (node, *extra), name=name, params={"kind": kind, **params}, where=caller())
    )


def _grouping(verb: str, option: str, asked: str) -> bool:
    """Tell whether a verb is asked to go by groups of sites. Raises TraceError on a grouping unknown."""
    if asked not in ("", "region"):
        raise TraceError(f"{caller()}: {verb}({option}={asked!r}): the only declared grouping is 'region'")
    return bool(asked)


def sum(value: Any, *, name: str = "", by: str = "") -> Value:
    """Add up over the sites that delivered this stage, leaf by leaf.

    `by="region"` gives the server {region: sum}, of the regions that a site delivered from.
    """
    if _grouping("sum", "by", by):
        return _reduce("sum", value, name, by=by)
    return _reduce("sum", value, name)


def mean(
    value: Any, *, weight: Any = None, name: str = "", within: str = "", by: str = "",
    weight_cap: float | None = None
) -> Value:
    """Average over the sites that delivered this stage: sum of weight * value over sum of weight.

    Weights are whole numbers (row counts); fractions need `weight_cap`, a public bound: they are rounded to
    2^-14 of it. `by="region"` gives the server {region: mean}, without regions whose weights add up to 0;
    `within="region"` gives each site the mean over its own declared region. Of a region there is one sum,
    added up where the sites live, so that no site's value is seen but where it is alone in its region.
    """
    if _grouping("mean", "within", within) and _grouping("mean", "by", by):
        raise TraceError(f"{caller()}: mean(): say by= (at the server) or within= (at the sites), not both")
    _grouping("mean", "by", by)
    extra = () if weight is None else (needed(weight, SITES, "mean", "give a weight per site"),)
    params = {"within": within, "weight_cap": weight_cap, **({"by": by} if by else {})}
    return _reduce("mean", value, name, extra, SITES if within else SERVER, **params)


def gather(value: Any, *, name: str = "") -> Value:
    """Give the server each site's value, as a mapping {site id: value}."""
    return _reduce("gather", value, name)


def mix(value: Any, matrix: Any, *, name: str = "", keep: str = "rows") -> Value:
    """Give site i the sum over sites j of matrix[i][j] * value_j. `matrix` is {site: {site: number}}, a
    constant or a value at the server (for one that changes from round to round).

    Where neighbours did not deliver, `keep` says what sums stay as they are. "rows": a site gives its own
    value the weights of absent neighbours; a symmetric matrix stays symmetric, so its columns keep their sums
    too. "columns" (push-sum): a site keeps for itself what it would have given to absent ones.
    Each neighbour is shown the value, and so is the server: it takes the values from the sites, multiplies in
    one product, whose bits do not depend on where the sites are, and scatters the results.
    Raises TraceError on another `keep`.
    """
    if keep not in ("rows", "columns"):
        raise TraceError(f"{caller()}: mix(keep={keep!r}): choose 'rows' or 'columns'")
    node = needed(matrix, SERVER, "mix", "the matrix is a constant or a value at the server")
    return _reduce("mix", value, name, (node,), SITES, keep=keep)


def count(site: "Site") -> Value:
    """Return the number of sites that delivered the stage in which the number is used."""
    if not isinstance(site, Site):
        raise TraceError(f"{caller()}: count() takes the round's `site` argument")
    return Value(Node(Op.REDUCE, SERVER, (), name="count", params={"kind": "count"}, where=caller()))


class Site:
    """The sites' side of a round: `data`, `state`, `id`, `rng`, independent streams, and slots of passes.

    `server` is what passes may use at the server: see `Server`.
    """

    def __init__(
        self, inputs: dict[Key, Node], stored: dict[Key, Node], inits: dict[Key, Callable[..., Any]]
    ) -> None:
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
            raise TraceError(
                f"{caller()}: a site has no {name!r}; it has {', '.join(SITE_INPUTS)}, stream(label)"
            )
        return self._input(name)

    @property
    def server(self) -> "Server":
        """The server's side, for passes."""
        return Server(self._inputs, self._stored)

    def stream(self, label: str) -> Value:
        """Return a random key that is independent of `site.rng` and of every other label."""
        return self._input(f"rng:{label}")

    def slot(self, name: str, like: Any) -> Value:
        """Read a pass's own memory at the site; zeros shaped as `like` at first use."""
        self._inits[(SITES, name)] = _ZEROS
        memory = self._input(name)
        return Value(
            Node(
                Op.CALL,
                SITES,
                (memory.node, lift(like)),
                _or_zeros,
                {"lift": "site", "kwargs": ()},
                where=caller(),
            )
        )

    def store(self, name: str, value: Any) -> None:
        """Keep a pass's memory; it is committed with the count, as `site.state` is."""
        self._stored[(SITES, name)] = needed(value, SITES, "store", "the memory is at the site")


def _or_zeros(memory: Any, like: Any) -> Any:
    return tree.zeros_like(like) if memory is None else memory


@rows_of(_or_zeros)
def _or_zeros_rows(group: Group, memory: Tagged, like: Tagged) -> Any:
    if memory.value is not None and not isinstance(memory.value, Ragged):
        return expand(memory, group.k)  # every site of the group was counted before
    return stack([_or_zeros(row(memory, index), row(like, index)) for index in range(group.k)]).value


class Server:
    """The server's side of a pass: memory that is kept from round to round beside the state, and keys."""

    def __init__(self, inputs: dict[Key, Node], stored: dict[Key, Node]) -> None:
        self._inputs, self._stored = inputs, stored

    def _input(self, slot: str) -> Value:
        key = (SERVER, slot)
        if key not in self._inputs:
            self._inputs[key] = Node(Op.INPUT, SERVER, params={"slot": slot}, where=caller())
        return Value(self._inputs[key])

    def slot(self, name: str) -> Value:
        """Read a pass's memory at the server; None at first use."""
        return self._input(name)

    def store(self, name: str, value: Any) -> None:
        """Keep a pass's memory; it becomes current with the server's state, and is part of a checkpoint."""
        self._stored[(SERVER, name)] = needed(value, SERVER, "store", "reduce it with sum() or mean()")

    def stream(self, label: str) -> Value:
        """Return a random key of the round that is independent of every site's and of every other label."""
        return self._input(f"rng:{label}")


def _ZEROS(server: Any) -> None:
    return None


@dataclass(frozen=True)
class Outputs:
    """What a round returns: the server's next state, each site's next state, and metrics at the server."""

    server: Any = None
    site: Any = None
    metrics: Any = None
    where: str = field(default="", init=False, compare=False)  # the line that returned it

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", caller())


RoundFunction = Callable[[Value, Site], Outputs]


@dataclass(frozen=True)
class Algorithm:
    """How the server's state starts, one round, and how a site's state starts (from the server's first
    state).

    `personal(params, site)` is, at the sites, the model that a site has for itself, from the global
    parameters and what it keeps: evaluation measures it. None where there is none.

    `every` maps a period k to another round function, with the same states: rounds k-1, 2k-1, ... run it in
    place of `round`, and where several fall due the one with the longest period. `note` holds sentences for
    `explain` and `egress`: what the graph cannot say of who learns what.

    `evaluate(split, per_site, bins)` is the evaluation program of a model that no site has as a whole.
    `needs_all` says that a round is nothing without any one of the sites, whatever the schedule's quorum;
    `needs_rows` that every site must have training rows, for each counts as much as any other.
    `sites` are the ids that it was made for, () where any will do: a run with others is refused, and one
    with another number of sites than `num_sites`, where that is given.
    """

    init: Callable[[Any], Any]
    round: RoundFunction
    init_site: Callable[[Any], Any] | None = None
    name: str = ""
    personal: Callable[[Value, Site], Value] | None = None
    every: Mapping[int, RoundFunction] = field(default_factory=dict)
    note: str = ""
    evaluate: "Callable[..., Algorithm] | None" = None
    needs_all: bool = False
    needs_rows: bool = False
    sites: tuple[str, ...] = ()
    num_sites: int | None = None

    @property
    def title(self) -> str:
        """The algorithm's name, or its round function's."""
        return self.name or self.round.__qualname__.split(".")[0]


def trace(algorithm: Algorithm) -> Graph:
    """Call the round once on handles and return what it did as a graph.

    Raises TraceError or PlacementError with the user's `file:line`.
    """
    inputs: dict[Key, Node] = {
        (SERVER, "state"): Node(Op.INPUT, SERVER, params={"slot": "state"}, where="server")
    }
    stored: dict[Key, Node] = {}
    inits: dict[Key, Callable[..., Any]] = {}
    if algorithm.init_site is not None:
        inits[SITES, "state"] = algorithm.init_site
    outputs = algorithm.round(Value(inputs[SERVER, "state"]), Site(inputs, stored, inits))
    if not isinstance(outputs, Outputs):
        raise TraceError(
            f"{algorithm.title}: a round returns fr.Outputs(server=...), got {type(outputs).__name__}"
        )
    found: dict[Key, Node] = {}
    for part, placement, slot in (
        ("server", SERVER, "state"),
        ("site", SITES, "state"),
        ("metrics", SERVER, "metrics"),
    ):
        if (thing := getattr(outputs, part)) is not None:
            found[placement, slot] = _output(outputs.where, part, thing, placement)
    if (SERVER, "state") not in found:
        found[SERVER, "state"] = inputs[SERVER, "state"]
    if (SITES, "state") in inputs and (SITES, "state") not in inits:
        where = inputs[SITES, "state"].where
        raise TraceError(f"{where}: {algorithm.title} reads site.state, so Algorithm needs init_site=")
    return Graph({**found, **stored}, inits, algorithm.title, algorithm.note)


def _output(where: str, part: str, thing: Any, placement: Placement) -> Node:
    node = lift(thing) if isinstance(thing, Value) else replace(lift(thing), where=where)
    if node.placement not in (placement, ANY):
        remedy = "reduce it with sum() or mean()" if placement is SERVER else "broadcast it first"
        raise TraceError(
            f"{where}: Outputs({part}=...) is a value at the {placement}, got one at the "
            f"{node.placement}: {remedy}"
        )
    if node.op is Op.CONST:
        return Node(
            Op.CALL,
            placement,
            (node,),
            _identity,
            {"lift": "server" if placement is SERVER else "site", "kwargs": ()},
            where=node.where,
        )
    return node


def _identity(value: Any) -> Any:
    return value


__all__ = [
    "Algorithm",
    "Outputs",
    "Record",
    "Site",
    "Value",
    "apply",
    "broadcast",
    "count",
    "gather",
    "map",
    "mean",
    "mix",
    "scatter",
    "sum",
    "trace",
]
