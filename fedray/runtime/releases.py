"""What a plan spends, read off its nodes: a function that draws noise carries a `Mechanism`."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from fedray import tree
from fedray.accounting import Mechanism
from fedray.core import trace as fr
from fedray.core.graph import Label, Node, Op, Placement
from fedray.core.trace import Algorithm, Outputs
from fedray.errors import ConfigError
from fedray.runtime.plan import Plan

MAX_DEPTH = 6  # of records and closures that are looked through for noise


@dataclass(frozen=True, slots=True)
class Release:
    """A node that draws noise, and what it spends each time."""

    node: Node
    mechanism: Mechanism


def releases_of(plan: Plan) -> list[Release]:
    """Return every node that spends. Raises ConfigError where it cannot be told how much."""
    found = []
    for node in plan.nodes:
        if node.op is not Op.CALL or node.fn is None:
            continue
        mechanism = getattr(node.fn, "mechanism", None)
        if isinstance(mechanism, Mechanism):
            found.append(Release(node, mechanism))
            if "steps" in node.params.get("kwargs", ()) and mechanism.unit != "site":
                raise _uncounted(plan, node, "gives the private training another number of steps")
        elif _is_hidden(node.fn, MAX_DEPTH):
            raise _uncounted(plan, node, "trains with noise inside a function of its own")
    return found


def _uncounted(plan: Plan, node: Node, why: str) -> ConfigError:
    return ConfigError(
        f"{plan.name}, {node.where}: {why}, so that what it spends cannot be counted. Fix: another "
        "algorithm, or a local training without noise; what spends says so by its attribute `mechanism`"
    )


def _is_hidden(thing: Any, depth: int) -> bool:
    """Tell whether a function holds another that spends, and does not say so itself.

    What says `adds_noise = False` spends nothing: the noise that its mechanism means is another function's.
    """
    if getattr(thing, "adds_noise", True) is False:
        return False
    if isinstance(getattr(thing, "mechanism", None), Mechanism):
        return True
    if depth == 0 or isinstance(thing, (str, bytes, int, float, type)) or thing is None:
        return False
    return any(_is_hidden(part, depth - 1) for part in _parts(thing))


def _parts(thing: Any) -> Iterator[Any]:
    if isinstance(thing, functools.partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, (list, tuple)):
        yield from thing
    elif isinstance(thing, Mapping) and not tree.is_leaf(thing):
        yield from thing.values()
    elif is_dataclass(thing):
        yield from (getattr(thing, item.name, None) for item in fields(thing))
    else:
        yield getattr(thing, "__self__", None)
        for cell in getattr(thing, "__closure__", None) or ():
            try:
                yield cell.cell_contents
            except ValueError:  # a name that is not bound yet
                continue


def exact_names(plan: Plan, releases: Sequence[Release]) -> list[str] | None:
    """Return the names that leave without noise: neither under it at the server, nor made of it at a site.

    None where sums are masked: one vector then holds several names, and the graph does not say which of them
    have noise.
    """
    if releases and any(getattr(node.fn, "grants", None) is Label.MASKED for node in plan.nodes):
        return None
    drawn = {release.node for release in releases}
    under = set().union(*(_before(node) for node in drawn if node.placement is Placement.SERVER))
    exact = set()
    for node in plan.nodes:
        if node.op is not Op.REDUCE or not node.args:
            continue
        for name, value in _leaving(node):
            read = [user for user in plan.nodes if user.args == (node,) and user.params.get("key") == name]
            if not under.intersection(read or [node]) and not drawn.intersection(_before(value)):
                exact.add(name)
    return sorted(exact)


def _leaving(node: Node) -> Iterator[tuple[str, Node]]:
    """Yield the names under which a reduction's values leave, and what is reduced."""
    if "lanes" not in node.params:
        yield node.name, node.args[0]
    for name, value, *_ in node.params.get("lanes", ()):
        yield name, node.args[value]


def _before(node: Node) -> set[Node]:
    found, todo = set(), [node]
    while todo:
        here = todo.pop()
        if here not in found:
            found.add(here)
            todo.extend(here.args)
    return found


def units_program(count: Callable[[Any], int]) -> Algorithm:
    """Return the program that counts the units of each site."""

    def round(server: Any, site: Any) -> Outputs:
        return Outputs(server=server, metrics=fr.gather(fr.map(count, site.data), name="privacy.units"))

    return Algorithm(init=lambda state: state, round=round, name="units")
