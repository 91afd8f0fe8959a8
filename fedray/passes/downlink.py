"""Compression downwards: what the server sends to sites, smaller.

    passes=[fr.passes.bidirectional(fr.passes.ef21(0.01), fr.passes.ef21_broadcast(0.01))]

Sites start from what they received, and their updates are differences from that; the server keeps its model
in full. Messages are coded as they travel (fedray/coded.py): a host decodes them, and `bytes_down` counts
them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fedray import tree
from fedray.coded import Encode
from fedray.core.graph import Graph, Node, Op, Placement
from fedray.core.rewrite import Pass, rewrite
from fedray.errors import PassError
from fedray.frozen import Followed, moved, without_frozen
from fedray.passes.coders import TopK, check_fraction
from fedray.passes.compression import Names, levels_of

SERVER = Placement.SERVER
Slots = dict[tuple[Placement, str], Node]


def _input(slot: str) -> Node:
    return Node(Op.INPUT, SERVER, params={"slot": slot}, where="server")


def _at_server(fn: Callable[..., Any], where: str, *args: Node) -> Node:
    return Node(Op.CALL, SERVER, args, fn, {"lift": "server", "kwargs": ()}, where=where)


def _on_broadcast(title: str, only: Names, sent: Callable[[Node, Slots], Node]) -> Pass:
    """Return a pass that sends `sent(broadcast)` in place of what is broadcast under the names of `only`.

    Where a value is broadcast twice under a name, it is sent twice and coded once.
    """

    def run(graph: Graph) -> Graph:
        made: dict[tuple[str, Node], Node] = {}
        stored: Slots = {}

        def rule(node: Node) -> Node | None:
            if node.op is not Op.BROADCAST or node.name not in only:
                return None
            key = (node.name, node.args[0])
            if key not in made:
                made[key] = sent(node, stored)
            return Node(Op.BROADCAST, Placement.SITES, (made[key],), name=node.name, where=node.where)

        result = rewrite(graph, rule)
        if missing := sorted(set(only) - {name for name, _ in made}):
            there = sorted({node.name or "?" for node in graph.nodes if node.op is Op.BROADCAST})
            raise PassError(
                f"{title} found no broadcast named {missing} in {graph.name}; "
                f"there are {there}: change `only`"
            )
        if len(made) > len(set(only)):
            raise PassError(f"{title}: {graph.name} broadcasts several values named {sorted(only)}")
        if stored.keys() & graph.outputs.keys():
            raise PassError(f"{title} is applied to {graph.name} twice: its memory is there already")
        return replace(result, outputs={**result.outputs, **stored}, name=f"{graph.name} + {title}")

    run.__name__ = title
    return run


def quantised_broadcast(levels: int = 127, bucket: int | None = 512, only: Names = ("params",)) -> Pass:
    """Send the model from server to sites rounded at random, as `qsgd` rounds updates; sites start from that.

    No memory on either side, so a site that missed rounds needs nothing but the round's message. What is
    frozen is rounded too, and sent in each round: use `ef21_broadcast` for models with a frozen part. Source:
    Caldas, Konecny, McMahan, Talwalkar, Expanding the reach of federated learning by reducing client resource
    requirements, 2018 (without the random rotation), with QSGD's norm.
    """
    coder = levels_of("quantised_broadcast", levels, bucket)

    def sent(node: Node, stored: Slots) -> Node:
        return _at_server(Encode(coder), node.where, node.args[0], _input(f"rng:broadcast.{node.name}"))

    return _on_broadcast(f"quantised_broadcast({levels})", only, sent)


@dataclass(frozen=True)
class Follow:
    """The server's side of EF21-P: move the estimate w to x by a coded change, w + C(x - w)."""

    coder: Any
    is_followed: ClassVar[bool] = True  # a host needs the version before this one

    def __call__(self, x: Any, estimate: Any) -> Followed:
        """Return the next estimate as it is sent; the first one is x itself."""
        if estimate is None:
            return Followed(None, None, x)
        change = Encode(self.coder)(without_frozen(tree.sub(x, estimate)))
        return Followed(change, estimate, moved(estimate, change))


def ef21_broadcast(fraction: float = 0.01, only: Names = ("params",)) -> Pass:
    """Send the largest changes of what sites believe of the server's model x; sites start from the belief w.

    w^0 = x^0; w^{t+1} = w^t + top(x^{t+1} - w^t). The server keeps w, and so does every host, one for all of
    its sites: what was not sent stays in the difference and is sent later. A host that missed a round, was
    started again or is asked for the first time does not have w^t: it reads w^{t+1} whole beside the message,
    which `bytes_down` counts. `fraction` is of the numbers that move; what is frozen goes to a host once.
    Source: Gruntkowska, Tyurin, Richtarik, EF21-P and friends, ICML 2023 (EF21-P on the model, as there for
    both directions with another compressor upwards). Deviation: cohorts may be part of the sites. This is not
    EF21-BC of Fatkhullin et al., EF21 with bells and whistles, 2021, which compresses the change of the mean
    gradient and asks that every node takes every step of plain gradient descent.
    """
    check_fraction("ef21_broadcast", fraction)

    def sent(node: Node, stored: Slots) -> Node:
        slot = f"ef21_broadcast.{node.name}"
        followed = _at_server(Follow(TopK(fraction)), node.where, node.args[0], _input(slot))
        params = {"key": "whole", "attribute": True}
        stored[SERVER, slot] = Node(Op.GET, SERVER, (followed,), params=params, where=node.where)
        return followed

    return _on_broadcast(f"ef21_broadcast({fraction:g})", only, sent)


def bidirectional(up: Pass, down: Pass) -> Pass:
    """Compress both ways: what sites send by `up`, what they receive by `down`."""

    def run(graph: Graph) -> Graph:
        return down(up(graph))

    run.__name__ = "bidirectional"
    return run
