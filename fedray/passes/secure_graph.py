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

from typing import Any

from fedray.core.graph import Label, Node, Op, Placement
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
    Rules,
    Sent,
    SentWith,
)
from fedray.passes.secure_steps import Lane

SERVER, SITES = Placement.SERVER, Placement.SITES


def call(fn: Any, placement: Placement, args: tuple[Node, ...], where: str) -> Node:
    lift = "server" if placement is SERVER else "site"
    return Node(Op.CALL, placement, args, fn, {"lift": lift, "kwargs": ()}, where=where)


def get(node: Node, key: str, where: str) -> Node:
    params = {"key": key, "attribute": True}
    return Node(Op.GET, node.placement, (node,), params=params, name=key, where=where)


def gathered(value: Node, name: str, where: str) -> Node:
    """Return the gather of a protocol's own message."""
    params = {"kind": "gather", "is_protocol": True}
    return Node(Op.REDUCE, SERVER, (value,), params=params, name=name, where=where)


def masked_total(node: Node, words: Node) -> Node:
    """Return the sum of the sites' words under the name of the sums that are in them."""
    names = tuple(lane[0] for lane in node.params["lanes"])
    lanes = ((node.name, 0, None, True, None),)
    params = {"kind": "sum", "lanes": lanes, "names": names}
    total = Node(Op.REDUCE, SERVER, (words,), params=params, name=node.name, where=node.where)
    key = {"key": node.name, "attribute": False}
    return Node(Op.GET, SERVER, (total,), params=key, name=node.name, where=node.where)


class Masking:
    """The sub-program of one masked sum."""

    def __init__(self, rules: Rules, prefix: str, where: str) -> None:
        self.rules, self.prefix, self.where = rules, prefix, where

    def _at(self, placement: Placement, fn: Any, *args: Node) -> Node:
        return call(fn, placement, args, self.where)

    def _sent(self, step: str, party: Node, name: str, grants: Label = Label.PUBLIC) -> Node:
        message = self._at(SITES, Sent(step, grants), party)
        return gathered(message, f"{self.prefix}.{name}", self.where)

    def _told(self, value: Node) -> Node:
        return Node(Op.BROADCAST, SITES, (value,), name=self.prefix, where=self.where)

    def result(self, node: Node, words: Node, lanes: tuple[Lane, ...], agreed: Node, site_id: Node) -> Node:
        """Return what the server opens in place of a fused sum."""
        asked = Node(Op.INPUT, SERVER, params={"slot": "asked"}, where=self.where)
        setup = self._at(SERVER, Announce(self.rules), asked, agreed)
        party = self._at(SITES, Advertise(self.rules), self._told(setup), site_id)
        desks = self._at(SERVER, TakeAdverts(self.rules), setup, self._sent("A1", party, "public_keys"))
        dealt, forwards = self._dealt(party, desks)
        packages = Node(Op.SCATTER, SITES, (forwards,), name=self.prefix, where=self.where)
        members = self._told(self._at(SERVER, ShowMembers(), desks, forwards))
        shown = broadcasts_of(words)
        joined = self._at(SITES, Join(self.rules.label), dealt, packages, members, *shown)
        masked = self._at(SITES, Mask(), words, joined)
        signed = self._at(SITES, SentWith(), joined, masked)
        delivered = gathered(signed, f"{self.prefix}.delivered", self.where)
        models = tuple(one.args[0] for one in shown)
        survivors = self._at(SERVER, TakeMasked(self.rules), desks, delivered, *models)
        shares = self._opened(joined, desks, survivors)
        total = masked_total(node, masked)
        opener = Unmask(lanes)
        return self._at(SERVER, opener, desks, survivors, total, delivered, shares)

    def _dealt(self, party: Node, desks: Node) -> tuple[Node, Node]:
        """Return the parties that have dealt, and their packages by receiver."""
        roster = self._told(self._at(SERVER, ShowRoster(), desks))
        if not self.rules.is_ring:
            dealt = self._at(SITES, DealShares(), party, roster)
            return dealt, self._at(
                SERVER, TakeDeals(), desks, self._sent("A3", dealt, "shares", Label.SEALED)
            )
        party = self._at(SITES, Reveal(), party, roster)
        numbers = self._at(SERVER, TakeReveals(), desks, self._sent("A2", party, "ring"))
        dealt = self._at(SITES, DealShares(), party, roster, self._told(numbers))
        deals = self._sent("A3", dealt, "shares", Label.SEALED)
        return dealt, self._at(SERVER, TakeDeals(), desks, deals, numbers)

    def _opened(self, joined: Node, desks: Node, survivors: Node) -> Node:
        """Return the shares that the survivors have shown."""
        told = self._told(survivors)
        if self.rules.server == "curious":
            return self._sent("A7", self._at(SITES, OpenShares(), joined, told), "reveal")
        confirmed = self._at(SITES, ConfirmSurvivors(), joined, told)
        confirms = self._sent("A6", confirmed, "survivors")
        signatures = self._told(self._at(SERVER, TakeConfirms(), desks, survivors, confirms))
        return self._sent("A7", self._at(SITES, OpenShares(), confirmed, told, signatures), "reveal")


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
