"""The nodes of a secure sum: where each step of the protocol stands in a round.

    stage 1   keys are made (A1), while sites train     2   directory
          3   shares are sealed (A3)                    4   packages are dealt out, members named
          5   words are masked and leave (A4)           6   survivors are named
          7   survivors are signed (A6)                 8   signatures are shown
          9   shares of masks are shown (A7)            10  the sum is opened

With a curious server stages 7 and 8 are left out; a ring of more than 64 sites is ordered by an exchange of
its own after stage 2. Keys and shares do not wait for what is trained: where that takes several stages, they
are exchanged in the first of them.
"""

from dataclasses import dataclass
from typing import Any

from fedray.core.graph import Label, Node, Op, Placement
from fedray.passes.secure_groups import OpenGroups, SumGroups
from fedray.passes.secure_hub import (
    Announce,
    ShowMembers,
    ShowRoster,
    TakeAdverts,
    TakeConfirms,
    TakeDeals,
    TakeMasked,
    TakeReveals,
    Unmask,
)
from fedray.passes.secure_masks import (
    Advertise,
    ConfirmSurvivors,
    DealShares,
    Join,
    Mask,
    OpenShares,
    Reveal,
    Sent,
    SentWith,
)
from fedray.passes.secure_setup import Rules
from fedray.passes.secure_steps import Lane

SERVER, SITES = Placement.SERVER, Placement.SITES
KEYS = "yes, public by design"
SEALED = "ciphertext only, as much a peer"
DIGEST = "hash of what is masked"
SHARES = "shares of masks only, as much a peer"


def call(fn: Any, placement: Placement, args: tuple[Node, ...], where: str) -> Node:
    lift = "server" if placement is SERVER else "site"
    return Node(Op.CALL, placement, args, fn, {"lift": lift, "kwargs": ()}, where=where)


def get(node: Node, key: str, where: str) -> Node:
    params = {"key": key, "attribute": True}
    return Node(Op.GET, node.placement, (node,), params=params, name=key, where=where)


def gathered(value: Node, name: str, shows: str, where: str) -> Node:
    """Return the gather of a protocol's own message; `shows` is what `egress` says of it."""
    params = {"kind": "gather", "is_protocol": True, "shows": shows}
    return Node(Op.REDUCE, SERVER, (value,), params=params, name=name, where=where)


@dataclass(frozen=True, slots=True)
class Fused:
    """A fused sum of the round, and what a pass knows of it: the sites' words, the bounds, the sites' ids."""

    node: Node
    words: Node
    lanes: tuple[Lane, ...]
    prefix: str
    agreed: Node
    site_id: Node
    grouped: tuple[str, ...] = ()  # sums of which a rule is given the mean of each group

    @property
    def where(self) -> str:
        """The line of the round."""
        return self.node.where


def masked_total(sum_: Fused, words: Node) -> Node:
    """Return the sum of the sites' words under the name of the sums that are in them."""
    node = sum_.node
    names = tuple(lane[0] for lane in sum_.lanes)
    lanes = ((node.name, 0, None, True, None),)
    params = {"kind": "sum", "lanes": lanes, "names": names, "masked": True}
    total = Node(Op.REDUCE, SERVER, (words,), params=params, name=node.name, where=node.where)
    key = {"key": node.name, "attribute": False}
    return Node(Op.GET, SERVER, (total,), params=key, name=node.name, where=node.where)


def announced(rules: Rules, sum_: Fused) -> Node:
    """Return what the server announces of a sum."""
    slots = ("asked", f"rng:{sum_.prefix}.groups")
    asked, key = (Node(Op.INPUT, SERVER, params={"slot": slot}, where=sum_.where) for slot in slots)
    return call(Announce(rules), SERVER, (asked, sum_.agreed, key), sum_.where)


def group_totals(sum_: Fused, setup: Node, words: Node) -> Node:
    """Return the sum of each group's words, which the server adds up itself."""
    names = tuple(lane[0] for lane in sum_.lanes)
    params = {"kind": "gather", "names": names, "masked": True, "shows": "no, masked in its group"}
    rows = Node(Op.REDUCE, SERVER, (words,), params=params, name=sum_.node.name, where=sum_.where)
    return call(SumGroups(), SERVER, (setup, rows), sum_.where)


class Masking:
    """The sub-program of one masked sum."""

    def __init__(self, rules: Rules, sum_: Fused) -> None:
        self.rules, self.sum, self.prefix, self.where = rules, sum_, sum_.prefix, sum_.where

    def _at(self, placement: Placement, fn: Any, *args: Node) -> Node:
        return call(fn, placement, args, self.where)

    def _sent(self, step: str, party: Node, name: str, shows: str, grants: Label = Label.PUBLIC) -> Node:
        message = self._at(SITES, Sent(step, grants), party)
        return gathered(message, f"{self.prefix}.{name}", shows, self.where)

    def _told(self, value: Node) -> Node:
        return Node(Op.BROADCAST, SITES, (value,), name=self.prefix, where=self.where)

    def result(self) -> Node:
        """Return what the server opens in place of the fused sum."""
        setup = announced(self.rules, self.sum)
        party = self._at(SITES, Advertise(self.rules), self._told(setup), self.sum.site_id)
        desks = self._at(SERVER, TakeAdverts(self.rules), setup, self._sent("A1", party, "public_keys", KEYS))
        dealt, forwards = self._dealt(party, desks)
        packages = Node(Op.SCATTER, SITES, (forwards,), name=self.prefix, where=self.where)
        members = self._told(self._at(SERVER, ShowMembers(), desks, forwards))
        # the bounds are in the context of the keys, and other bounds do not make another model
        shown = [one for one in broadcasts_of(self.sum.words) if one.args[0] is not self.sum.agreed]
        joined = self._at(SITES, Join(self.rules), dealt, packages, members, *shown)
        masked = self._at(SITES, Mask(), self.sum.words, joined)
        signed = self._at(SITES, SentWith(), joined, masked)
        delivered = gathered(signed, f"{self.prefix}.delivered", DIGEST, self.where)
        models = tuple(one.args[0] for one in shown)
        survivors = self._at(SERVER, TakeMasked(self.rules), desks, delivered, *models)
        shares = self._opened(joined, desks, survivors)
        if self.rules.num_groups == 1:
            total = masked_total(self.sum, masked)
            return self._at(SERVER, Unmask(self.sum.lanes), desks, survivors, total, delivered, shares)
        totals = group_totals(self.sum, setup, masked)
        opener = OpenGroups(self.sum.lanes, self.sum.grouped, self.rules.min_cohort)
        return self._at(SERVER, opener, setup, totals, delivered, desks, survivors, shares)

    def _dealt(self, party: Node, desks: Node) -> tuple[Node, Node]:
        """Return the parties that have dealt, and their packages by receiver."""
        roster = self._told(self._at(SERVER, ShowRoster(), desks))
        if not self.rules.is_ring:
            dealt = self._at(SITES, DealShares(), party, roster)
            deals = self._sent("A3", dealt, "shares", SEALED, Label.SEALED)
            return dealt, self._at(SERVER, TakeDeals(), desks, deals)
        party = self._at(SITES, Reveal(), party, roster)
        numbers = self._at(SERVER, TakeReveals(), desks, self._sent("A2", party, "ring", "a random number"))
        dealt = self._at(SITES, DealShares(), party, roster, self._told(numbers))
        deals = self._sent("A3", dealt, "shares", SEALED, Label.SEALED)
        return dealt, self._at(SERVER, TakeDeals(), desks, deals, numbers)

    def _opened(self, joined: Node, desks: Node, survivors: Node) -> Node:
        """Return the shares that the survivors have shown."""
        told = self._told(survivors)
        if self.rules.server == "curious":
            return self._sent("A7", self._at(SITES, OpenShares(), joined, told), "reveal", SHARES)
        confirmed = self._at(SITES, ConfirmSurvivors(), joined, told)
        confirms = self._sent("A6", confirmed, "survivors", "signature only")
        signatures = self._told(self._at(SERVER, TakeConfirms(), desks, survivors, confirms))
        shown = self._at(SITES, OpenShares(), confirmed, told, signatures)
        return self._sent("A7", shown, "reveal", SHARES)


def broadcasts_of(words: Node) -> tuple[Node, ...]:
    """Return what the server has shown of the round to all sites alike, before a value came to be."""
    found: dict[Node, None] = {}
    seen, todo = {words}, [words]
    while todo:
        node = todo.pop()
        if node.op is Op.BROADCAST:
            found[node] = None
        for arg in node.args:
            if arg.placement is SITES and arg not in seen and node.op is not Op.BROADCAST:
                seen.add(arg)
                todo.append(arg)
    return tuple(found)
