"""Robust aggregation: rules that bear with some sites that send what they like, as passes.

    passes=[fr.passes.nnm(0.2, then=fr.passes.trimmed_mean(0.2))]

Each pass turns a mean into `gather` and one function at the server: it sees every site's value, as `egress`
says, and is refused together with sums that hide them. Where sites are gathered in groups with secure sums,
the rows are the means of the groups. What holds for every rule:

- `attackers` is how many sites are assumed to attack: a number, or a share of the sites that delivered,
  rounded up. Fewer sites than a rule needs for them are a QuorumError, and the server's state is unchanged.
- Weights of a weighted mean are ignored, and no longer sent: a site says its own weight, so an attacker would
  take a large one.
- All leaves of a value are one row; with several names in `only`, each is aggregated by itself.
- A row that is not finite, too large to square or of another shape is left out before the rule.
- Sites are sorted by id; where scores are equal the first is taken. Nothing else depends on the order.

The rules are in robust_rules.py and, where they remember something from round to round or need more than
rows, in robust_memory.py; their arithmetic is in gram.py and coordinate.py.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np

from fedray.coded import Decode
from fedray.core import trace as fr
from fedray.core.graph import MADE_UP, Claim, Graph, Label, Op, toposort
from fedray.core.rewrite import on_reduce
from fedray.core.trace import Site
from fedray.core.value import Value
from fedray.errors import PassError, QuorumError
from fedray.passes.compression import Names
from fedray.passes.stack import Array, Stack, Vectors, restored, stacked, vectors_of
from fedray.rng import Key
from fedray.rows import one_thread

UPDATES = ("delta",)
MINORITY = "fewer than half of the sites, whatever they send"
NOT_SEEN = "the aggregate from sites whose updates stay near those of honest ones, or lie in other sums"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a rule is given: the rows, what it remembers, the round's key at the server, a root update."""

    stack: Stack
    memory: Any = None
    key: Key | None = None
    root: Any = None
    broken: tuple[str, ...] = ()  # sites whose value was no row


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule makes of the rows: one vector for each leaf, what it remembers, and the weight of each row
    where there is such a thing.
    """

    value: Vectors
    memory: Any = None
    weights: Array | None = None


class Rule(Protocol):
    """A robust rule, a frozen record. `keeps` says that it has memory at the server."""

    @property
    def title(self) -> str:
        """As `explain` names it."""

    @property
    def keeps(self) -> bool:
        """Whether it remembers something from round to round."""

    def __call__(self, asked: Asked) -> Outcome:
        """Aggregate the rows. Raises QuorumError where they are too few."""


@dataclass(frozen=True)
class Aggregate:
    """Apply a rule at the server to {site: value}, of which it needs each one, or to {group: mean}."""

    rule: Rule
    needs: ClassVar[Label] = Label.VISIBLE

    @property
    def title(self) -> str:
        """The rule's name, which messages say."""
        return self.rule.title

    @property
    def remembers_sites(self) -> bool:
        """Whether the rule must know again who sent a row in earlier rounds: groups drawn anew do not do."""
        return bool(getattr(self.rule, "remembers_sites", False))

    def __call__(
        self, values: Mapping[str, Any], key: Key | None = None, memory: Any = None, root: Any = None
    ) -> dict[str, Any]:
        """Return the value and what is remembered; on one thread, on which bits would depend."""
        with one_thread():
            stack, like, broken = stacked(values)
            if set(values) <= set(MADE_UP):  # the rehearsal of a run, with fewer sites than a rule needs
                return {"value": restored(like, mean_of(stack)), "memory": memory}
            told = None if root is None else vectors_of(root)
            asked = Asked(stack=stack, memory=memory, key=key, root=told, broken=broken)
            found = self.rule(asked)
            return {"value": restored(like, found.value), "memory": found.memory}


def mean_of(stack: Stack) -> Vectors:
    """Return the mean of the rows."""
    return stack.combined(np.full(stack.num_rows, 1 / stack.num_rows))


@dataclass(frozen=True)
class Robust:
    """The pass of a rule that bears with `bears`, in words.

    `at_site` is mapped over what is sent, `root` makes the server's own update.
    """

    rule: Rule
    bears: str
    only: Names = UPDATES
    at_site: Callable[..., Any] | None = None
    root: Callable[..., Any] | None = None

    def __call__(self, graph: Graph) -> Graph:
        """Replace the means. Raises PassError where there are none of these names."""
        made = on_reduce("mean", self.only, self.rule.title)(self.replaced)(graph)
        text = f"{', '.join(sorted(self.only))} is aggregated so that it bears with {self.bears}"
        claim = Claim(by=self.rule.title, text=text, but=NOT_SEEN)
        return replace(made, claims=(*made.claims, claim))

    def replaced(self, x: Value, weight: Value | None, name: str, site: Site) -> Value:
        """Return what takes the place of one mean."""
        sent = x if self.at_site is None else fr.map(self.at_site, x)
        if isinstance(sent.node.fn, Decode):
            sent = Value(sent.node.args[0])  # it travels coded, and is decoded where it arrives
        slot = f"robust.{name}"
        key = site.server.stream(slot)
        more = {} if self.root is None else {"root": _own_update(self, self.root, x, name, key)}
        if self.rule.keeps:
            more["memory"] = site.server.slot(slot)
        found = fr.apply(Aggregate(self.rule), fr.gather(sent, name=name), key=key, **more)
        if self.rule.keeps:
            site.server.store(slot, found["memory"])
        return found["value"]


def _own_update(made: Robust, root: Callable[..., Any], x: Value, name: str, key: Value) -> Value:
    """Let the server train on its own rows, from the parameters that the sites get."""
    sent = [node for node in toposort([x.node]) if node.op is Op.BROADCAST and node.name == "params"]
    if len(sent) != 1:
        raise PassError(
            f"{made.rule.title}: {name} ({x.node.where}) follows from {len(sent)} broadcasts named 'params', "
            "and the server starts its own update from the one that sites start from"
        )
    return fr.apply(root, Value(sent[0].args[0]), key)


def check_attackers(who: str, attackers: float) -> None:
    """Raise ValueError where `attackers` is neither a number of sites nor a share below one half."""
    is_number = isinstance(attackers, int) and not isinstance(attackers, bool) and attackers >= 0
    if not is_number and not (isinstance(attackers, float) and 0 <= attackers < 0.5):
        raise ValueError(
            f"{who}: attackers={attackers}: give a number of sites, or a share below 0.5, say 0.2"
        )


def bad_sites(attackers: float) -> str:
    """Say in words how many attackers are assumed."""
    return f"{attackers} bad sites" if isinstance(attackers, int) else f"{attackers:.0%} bad sites"


def attackers_among(attackers: float, stack: Stack) -> int:
    """Return the number of attackers assumed: of all sites, also where rows are mixed of several."""
    if isinstance(attackers, int):
        return attackers
    return math.ceil(attackers * len(stack.names) - 1e-9)


def need(who: str, stack: Stack, least: int, rule: str) -> None:
    """Raise QuorumError where there are fewer rows than a rule needs."""
    if stack.num_rows < least:
        mixed = "" if stack.mixing is None else f", mixed of {len(stack.names)} sites"
        raise QuorumError(
            f"{who}: {stack.num_rows} rows delivered{mixed} and {least} are needed ({rule}): ask more sites, "
            "or assume fewer attackers. The server state is unchanged"
        )


def rule_of(who: str, then: Any) -> Rule:
    """Return the rule of a robust pass that another one wraps. Raises ValueError on anything else."""
    if not isinstance(then, Robust) or then.at_site is not None or then.root is not None:
        raise ValueError(
            f"{who}: then={then!r} is no rule over rows: give a robust pass that works at the server alone, "
            "say fr.passes.trimmed_mean(0.2)"
        )
    return then.rule
