"""A site's side of a secure sum: keys, shares, masks, and when it refuses to open anything.

A `Site` serves the setup of a batch of rounds (A1 to A3), `Site.round` begins the rounds themselves
(`site_round`). Calls come in the order of the steps, else E_STEP; each returns what is sent. An error means
that the site takes no further part in what was asked; after E_BOTH_SHARES it leaves the run.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedray.errors import SecrecyError
from fedray.secrecy import keys, shamir, wire
from fedray.secrecy.journal import Answers, Journal
from fedray.secrecy.keys import Identities, Sealer
from fedray.secrecy.messages import (
    Advert,
    Deal,
    Directory,
    Forward,
    Members,
    Opened,
    Reveal,
    Reveals,
    Signed,
)
from fedray.secrecy.site_round import RoundKeys, Seat, SiteRound
from fedray.secrecy.terms import Policy, Terms
from fedray.secrecy.view import graph_commitment, round_context, sealed_size, share_hash, view_of

SECRET = shamir.SECRET_BYTES


@dataclass(slots=True)
class _Secrets:
    """What a site keeps to itself: in memory of this process alone, so that a restart loses the batch."""

    seal_private: X25519PrivateKey
    graph_number: bytes
    mask_secrets: list[int] = field(default_factory=list)  # s: its shares rebuild the masking key
    self_secrets: list[int] = field(default_factory=list)  # b: its shares rebuild the self mask


class Site:
    """One site through the setup of a batch of rounds."""

    def __init__(
        self,
        terms: Terms,
        index: int,
        *,
        identities: Identities | None = None,
        policy: Policy | None = None,
        journal: Journal | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.terms, self.index = terms, index
        self._seat = Seat(
            terms, index, identities or Identities(None), policy or Policy(), journal or Journal()
        )
        if (terms.server == "active") != self._seat.identities.is_signing:
            raise ValueError("against an active server every message is signed; with a curious one none is")
        self._entropy = entropy
        self._answers = Answers(self._seat.journal, terms.run_id, terms.first_round)
        self._rounds: dict[int, tuple[bytes, str, SiteRound]] = {}
        self._secrets: _Secrets | None = None
        self._shares: dict[int, bytes] = {}  # by dealer, as in its package
        self._sealers: dict[int, Sealer] = {}

    # A1

    def advertise(self) -> Signed:
        """Make fresh keys for every round of the batch and show their public halves.

        Raises: SecrecyError E_COHORT by the site's own rule; E_STALE if the batch was answered before.
        """
        self._seat.policy.check_cohort(len(self.terms.cohort))
        return self._once("A1", b"", self._advert, code="E_STALE")

    def _advert(self) -> Signed:
        rounds, draw = range(self.terms.num_rounds), self._entropy
        secrets = self._secrets = _Secrets(
            keys.private_key(draw(SECRET)),
            draw(SECRET),
            [shamir.random_secret(draw) for _ in rounds],
            [shamir.random_secret(draw) for _ in rounds],
        )
        context = self.terms.context
        self.advert = Advert(
            keys.public_key(secrets.seal_private),
            tuple(keys.public_key(self._mask_private(place)) for place in rounds),
            tuple(keys.commitment("b", context, shamir.to_bytes(b)) for b in secrets.self_secrets),
            graph_commitment(self.terms, secrets.graph_number),
        )
        return self._seat.identities.sign(self.index, context, self.advert)

    def _mask_private(self, place: int) -> X25519PrivateKey:
        """Return the private key that agrees on masks in a round of the batch."""
        return keys.mask_private_key(shamir.to_bytes(self._kept().mask_secrets[place]), self.terms.context)

    # A2

    def reveal(self, directory: Directory) -> Signed:
        """Show one's number for the order of the ring, once all commitments lie before one."""
        self._check_directory(directory)
        return self._once(
            "A2",
            wire.to_bytes(directory),
            lambda: self._seat.identities.sign(
                self.index, self.terms.context, Reveal(self._kept().graph_number)
            ),
        )

    def _check_directory(self, directory: Directory) -> None:
        own = self._answers.given("A1")
        if own is None or directory.adverts.get(self.index) != own:
            raise SecrecyError("E_SIG", "the directory does not show this site as it showed itself")
        self._seat.policy.check_cohort(len(directory.adverts))
        self.terms.check(directory.adverts)

    # A3

    def deal(self, directory: Directory, reveals: Reveals | None = None) -> Signed:
        """Split one's secrets among one's holders, each package sealed for its holder.

        Raises: SecrecyError E_SIG, E_KEY or E_COHORT if the directory or the ring is not as it must be.
        """
        self._check_directory(directory)
        reveals = reveals or Reveals({})
        question = wire.to_bytes(directory) + wire.to_bytes(reveals)
        return self._once("A3", question, lambda: self._deal(directory, reveals))

    def _deal(self, directory: Directory, reveals: Reveals) -> Signed:
        adverts = {site: wire.from_bytes(Advert, signed.body) for site, signed in directory.adverts.items()}
        self.view = view_of(self.terms, adverts, directory, reveals)
        if self.index not in self.view.holders:
            raise SecrecyError("E_SIG", "the ring leaves this site out")
        self.neighbours = [site for site in self.view.holders[self.index] if site != self.index]
        self._check_neighbours(directory)
        self._sealers = {
            site: Sealer(self._kept().seal_private, adverts[site].seal_key, self.view.digest)
            for site in self.neighbours
        }
        return self._seat.identities.sign(self.index, self.view.digest, Deal(self._packages()))

    def _check_neighbours(self, directory: Directory) -> None:
        """Refuse keys that are not signed by their site, that two share, or that lists are too short of."""
        seen = {self.advert.seal_key, *self.advert.mask_keys}
        for site in self.neighbours:
            advert = self.view.adverts[site]
            if self._seat.identities.is_signing:
                self._seat.identities.verify(Advert, self.terms.context, directory.adverts[site])
            public = (advert.seal_key, *advert.mask_keys)
            if len(advert.mask_keys) != self.terms.num_rounds or seen & set(public):
                raise SecrecyError("E_KEY", f"site {site} shows a key twice, another's, or not one a round")
            seen |= set(public)

    def _packages(self) -> bytes:
        """Return the packages for one's holders; one's own shares stay here."""
        mine, secrets = self.view.holders[self.index], self._kept()
        pairs = zip(secrets.mask_secrets, secrets.self_secrets, strict=True)
        split = [self._split(secret, len(mine)) for pair in pairs for secret in pair]
        packages = bytearray()
        for holder, shares in zip(mine, zip(*split, strict=True), strict=True):
            plain = b"".join(map(shamir.to_bytes, shares))
            if holder == self.index:
                self._shares[holder] = plain
                continue
            packages += self._sealers[holder].seal(plain, self.index, holder)
            packages += self._hashes(self.index, holder, plain)
        return bytes(packages)

    def _split(self, secret: int, num_holders: int) -> list[int]:
        return shamir.split(secret, range(1, num_holders + 1), self.terms.topology.threshold, self._entropy)

    def _hashes(self, dealer: int, holder: int, plain: bytes) -> bytes:
        """Return the hashes of a package's shares, by which its dealer answers for them."""
        return b"".join(
            share_hash(self.view.digest, at, dealer, holder, plain[SECRET * at : SECRET * (at + 1)])
            for at in range(len(plain) // SECRET)
        )

    # A3c

    def accept(self, forward: Forward) -> Signed:
        """Open the packages for this site and complain of those that do not open or are not as promised."""
        self._check_after("A3")
        return self._once(
            "A3c",
            wire.to_bytes(forward),
            lambda: self._seat.identities.sign(
                self.index, self.view.digest, Opened(tuple(sorted(self._bad_dealers(forward))))
            ),
        )

    def _bad_dealers(self, forward: Forward) -> list[int]:
        bad = []
        for dealer, package in forward.packages.items():
            if dealer not in self._sealers:
                raise SecrecyError("E_SHARE", f"site {dealer} is no neighbour of this site")
            try:
                self._shares[dealer] = self._opened(dealer, package)
            except SecrecyError:
                bad.append(dealer)
        return bad

    def _opened(self, dealer: int, package: bytes) -> bytes:
        size = sealed_size(self.terms.num_rounds)
        plain = self._sealers[dealer].open(package[:size], dealer, self.index)
        if package[size:] != self._hashes(dealer, self.index, plain):
            raise SecrecyError("E_SHARE", f"the shares of site {dealer} are not as it answers for")
        return plain

    # rounds

    def round(self, members: Members, round: int, model_hash: bytes, trainer: str = "") -> SiteRound:
        """Begin a round of the batch among the members that the setup has left, for a model's hash.

        `trainer` names the code that trains, for the rule on differencing.
        Raises: SecrecyError E_COHORT, E_THRESHOLD, E_DIFFERENCING; E_REPLAY for another model.
        """
        self._check_after("A3c")
        place = self.terms.place_of(round)
        context = round_context(self.view.digest, members.sites, round, model_hash)
        if round in self._rounds:
            context_before, trainer_before, begun = self._rounds[round]
            if (context_before, trainer_before) != (context, trainer):
                raise SecrecyError("E_REPLAY", f"round {round} has begun with another model or other members")
            return begun
        self._check_members(members, model_hash, trainer)
        secret = self._kept()
        round_keys = RoundKeys(
            context=context,
            mask_private=self._mask_private(place),
            self_secret=shamir.to_bytes(secret.self_secrets[place]),
            peers={
                site: self.view.adverts[site].mask_keys[place]
                for site in self.neighbours
                if site in members.sites
            },
            shares={
                dealer: plain[2 * SECRET * place : 2 * SECRET * (place + 1)]
                for dealer, plain in sorted(self._shares.items())
                if dealer in members.sites
            },
            holders=self.view.holders[self.index],
        )
        begun = SiteRound(self._seat, members, round, round_keys, (model_hash.hex(), trainer))
        self._rounds[round] = (context, trainer, begun)
        return begun

    def forget(self) -> None:
        """Drop all secrets of the batch, after its last round: whoever reads the process later finds none."""
        self._secrets = None
        self._shares, self._sealers = {}, {}

    def _kept(self) -> _Secrets:
        if self._secrets is None:
            raise SecrecyError("E_STEP", "this site has no secrets of this batch, or has forgotten them")
        return self._secrets

    def _check_members(self, members: Members, model_hash: bytes, trainer: str) -> None:
        self._seat.check_in()
        sites = set(members.sites)
        if self.index not in sites or not sites <= set(self.view.holders):
            raise SecrecyError("E_LATE", "the round goes on without this site")
        if not sites & set(self.neighbours) <= set(self._shares):
            raise SecrecyError("E_SHARE", "a member has dealt this site no shares")
        self._seat.policy.check_cohort(len(sites))
        self.terms.check(sites)
        self.terms.check_holders(self.view.holders[self.index], sites)
        self._seat.check_differencing(members.sites, model_hash.hex(), trainer)

    def _check_after(self, step: str) -> None:
        if self._answers.given(step) is None:
            raise SecrecyError("E_STEP", f"this comes after step {step}, which this site has not taken")

    def _once(self, step: str, question: bytes, make: Callable[[], Signed], code: str = "E_REPLAY") -> Signed:
        self._seat.check_in()
        return self._answers.once(step, question, make, code=code)
