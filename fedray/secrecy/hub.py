"""The server's side of a secure sum: it collects, forwards and counts, and sees no vector and no secret.

A `Hub` serves the setup of a batch of rounds, `Hub.round` the rounds (`hub_round`). What comes from a site is
checked when it comes: an error there is that site's, who is then counted as dropped; what closes a step
raises E_COHORT or E_THRESHOLD when too few are left, and the round ends without a result.
"""

from collections.abc import Mapping
from typing import TypeVar

from fedray.errors import SecrecyError
from fedray.secrecy import keys, wire
from fedray.secrecy.hub_round import HubRound, Inbox
from fedray.secrecy.keys import Identities
from fedray.secrecy.messages import Advert, Deal, Directory, Forward, Members, Opened, Reveal, Reveals, Signed
from fedray.secrecy.recovery import Recovery
from fedray.secrecy.terms import Terms
from fedray.secrecy.view import (
    HASH_BYTES,
    View,
    graph_commitment,
    package_size,
    round_context,
    sealed_size,
    view_of,
)

T = TypeVar("T")


class Hub:
    """The server through the setup of a batch of rounds."""

    def __init__(self, terms: Terms, identities: Identities | None = None) -> None:
        self.terms, self.identities = terms, identities or Identities(None)
        if (terms.server == "active") != self.identities.is_signing:
            raise ValueError("against an active server every message is signed; with a curious one none is")
        self._inboxes = {step: Inbox(step) for step in ("A1", "A2", "A3", "A3c")}
        self._adverts: dict[int, Advert] = {}
        self._view: View | None = None
        self._seen: set[bytes] = set()
        self._numbers: dict[int, bytes] = {}
        self._packages: dict[int, dict[int, bytes]] = {}  # by dealer and holder
        self._complaints: dict[int, tuple[int, ...]] = {}
        self.named: dict[int, str] = {}  # sites that were caught, with the reason

    # A1, A2

    def accept_advert(self, signed: Signed) -> None:
        """Take a site's keys in. Raises SecrecyError E_SIG, E_KEY, E_SCHEMA: the site is dropped."""
        if not 0 <= signed.sender < len(self.terms.cohort):
            raise SecrecyError("E_SIG", "an advert of a site that is not in the cohort")
        advert = self.identities.open(Advert, self.terms.context, signed)
        if signed.sender not in self._adverts:
            self._check_keys(signed.sender, advert)
        if self._inboxes["A1"].accept(signed):
            self._adverts[signed.sender] = advert
            self._seen |= {advert.seal_key, *advert.mask_keys}

    def _check_keys(self, site: int, advert: Advert) -> None:
        public = [advert.seal_key, *advert.mask_keys]
        num_rounds = self.terms.num_rounds
        if len(advert.mask_keys) != num_rounds or len(advert.self_commitments) != num_rounds:
            raise SecrecyError("E_SCHEMA", f"site {site} advertises keys for another number of rounds")
        if len(set(public)) < len(public) or self._seen & set(public):
            raise SecrecyError("E_KEY", f"site {site} shows a key twice or another's")
        for key in public:
            keys.check_public(key)

    def directory(self) -> Directory:
        """End A1. Raises SecrecyError E_COHORT or E_THRESHOLD."""
        adverts = self._inboxes["A1"].close()
        self.terms.check(adverts)
        return Directory(adverts)

    def accept_reveal(self, signed: Signed) -> None:
        """Take a site's number for the ring in. Raises SecrecyError E_KEY if it committed to another."""
        if signed.sender not in self._adverts:
            raise SecrecyError("E_LATE", f"site {signed.sender} reveals a number without an advert")
        # the commitment is signed and binds, so no signature is looked at here
        reveal = wire.from_bytes(Reveal, signed.body)
        if graph_commitment(self.terms, reveal.number) != self._adverts[signed.sender].graph_commitment:
            raise SecrecyError("E_KEY", f"site {signed.sender} reveals another number than it committed to")
        if self._inboxes["A2"].accept(signed):
            self._numbers[signed.sender] = reveal.number

    def reveals(self) -> Reveals:
        """End A2 and order the ring. Raises SecrecyError E_COHORT."""
        self.terms.check(self._inboxes["A2"].close())
        return Reveals(dict(sorted(self._numbers.items())))

    # A3

    def view(self) -> View:
        """Return who is in the setup with which keys, and who holds whose shares."""
        if self._view is None:
            reveals = Reveals({}) if self.terms.topology.degree is None else self.reveals()
            self._view = view_of(self.terms, self._adverts, self.directory(), reveals)
        return self._view

    def accept_deal(self, signed: Signed) -> None:
        """Take a site's packages in. Raises SecrecyError E_SHARE if it is not one for each holder."""
        deal = self._open(Deal, self.view().digest, signed, self.view().holders)
        holders = [holder for holder in self.view().holders[signed.sender] if holder != signed.sender]
        size = package_size(self.terms.num_rounds)
        if len(deal.packages) != size * len(holders):
            raise SecrecyError(
                "E_SHARE", f"site {signed.sender} deals not one package for each of its holders"
            )
        if self._inboxes["A3"].accept(signed):
            self._packages[signed.sender] = {
                holder: deal.packages[size * at : size * (at + 1)] for at, holder in enumerate(holders)
            }

    def forward(self, holder: int) -> Forward:
        """End A3 and return the packages for one site. Raises SecrecyError E_COHORT, E_THRESHOLD."""
        self.terms.check(self._inboxes["A3"].close())
        dealers = [dealer for dealer in self.view().holders[holder] if dealer in self._packages]
        return Forward({dealer: self._packages[dealer][holder] for dealer in dealers if dealer != holder})

    def _promised(self, dealer: int, holder: int, at: int) -> bytes | None:
        """Return the hash that a dealer answers for, None of its own share."""
        package = self._packages[dealer].get(holder)
        start = sealed_size(self.terms.num_rounds) + HASH_BYTES * at
        return package and package[start : start + HASH_BYTES]

    def accept_opened(self, signed: Signed) -> None:
        """Take a site's complaints in."""
        if signed.sender not in self._packages:
            raise SecrecyError("E_LATE", f"site {signed.sender} has dealt no shares")
        opened = wire.from_bytes(Opened, signed.body)
        if opened.complaints:  # saying that all is well needs no proof
            opened = self.identities.open(Opened, self.view().digest, signed)
        if not set(opened.complaints) <= set(self.view().holders[signed.sender]) - {signed.sender}:
            raise SecrecyError("E_SCHEMA", f"site {signed.sender} complains of sites that dealt it nothing")
        if self._inboxes["A3c"].accept(signed):
            self._complaints[signed.sender] = opened.complaints

    def members(self) -> Members:
        """End the setup: without those who did not answer, and those whose packages did not open.

        A site that complains of more dealers than may be lost is left out itself, its complaints with it.
        Raises: SecrecyError E_COHORT, E_THRESHOLD.
        """
        self._inboxes["A3c"].close()
        holders, threshold = self.view().holders, self.terms.topology.threshold
        honest = {
            site: named
            for site, named in self._complaints.items()
            if len(named) <= len(holders[site]) - threshold
        }
        bad = {dealer for named in honest.values() for dealer in named}
        self.named |= dict.fromkeys(
            self._complaints.keys() - honest, "complains of more dealers than may be lost"
        )
        self.named |= dict.fromkeys(bad, "dealt shares that do not open")
        members = tuple(sorted(honest.keys() - bad))
        self.terms.check(members)
        for site in members:
            self.terms.check_holders(holders[site], members)
        return Members(members)

    # rounds

    def dealers(self) -> Members:
        """Return who has dealt shares: the members, where sites answer no complaints (A3c) but are lost."""
        members = tuple(sorted(self._packages))
        self.terms.check(members)
        return Members(members)

    def round(self, round: int, model_hash: bytes, members: Members | None = None) -> HubRound:
        """Begin a round of the batch for a model's hash, among the members of the setup."""
        members = members or self.members()
        place = self.terms.place_of(round)
        view = self.view()
        context = round_context(view.digest, members.sites, round, model_hash)
        recovery = Recovery(view, self._promised, place, self.terms.topology.threshold)
        return HubRound(self.terms, self.identities, view, members, place, context, recovery)

    def _open(self, kind: type[T], context: bytes, signed: Signed, senders: Mapping[int, object]) -> T:
        if signed.sender not in senders:
            raise SecrecyError(
                "E_LATE", f"a {kind.__name__} of site {signed.sender}, who is not in the setup"
            )
        return self.identities.open(kind, context, signed)
