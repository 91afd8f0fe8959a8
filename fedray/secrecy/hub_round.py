"""One round at the server: who survived, what they open, and the sum without its masks."""

from collections.abc import Collection
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from fedray.errors import SecrecyError
from fedray.secrecy import keys, shamir
from fedray.secrecy.keys import Identities, sha256
from fedray.secrecy.keystream import OneTimeKey, mask_inplace
from fedray.secrecy.messages import (
    MASK,
    SELF,
    Confirmations,
    Masked,
    Members,
    Signed,
    Survivors,
    Unmask,
)
from fedray.secrecy.recovery import Recovery
from fedray.secrecy.shamir import SECRET_BYTES
from fedray.secrecy.terms import Terms
from fedray.secrecy.view import View

Words = NDArray[np.unsignedinteger[Any]]


class Inbox:
    """The messages of one step, one a site: the first counts, the same again changes nothing."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._signed: dict[int, Signed] = {}
        self._is_closed = False

    def accept(self, signed: Signed) -> bool:
        """Take a message in and return whether it is new.

        Raises: SecrecyError E_REPLAY on another message of the same site, E_LATE once the step is over.
        """
        known = self._signed.get(signed.sender)
        if known is not None:
            if known != signed:
                raise SecrecyError("E_REPLAY", f"site {signed.sender} sends {self._step} twice, differently")
            return False
        if self._is_closed:
            raise SecrecyError("E_LATE", f"{self._step} of site {signed.sender} comes after the step is over")
        self._signed[signed.sender] = signed
        return True

    def close(self) -> dict[int, Signed]:
        """End the step and return what came, by site."""
        self._is_closed = True
        return dict(sorted(self._signed.items()))


class HubRound:
    """The server through steps A4 to A7 of a round.

    `named` holds the sites that were caught, with the reason. The caller adds up the masked words of those
    whom `accept_masked` takes in, here or elsewhere (regions, packs), and gives the total to `result`.
    """

    def __init__(
        self,
        terms: Terms,
        identities: Identities,
        view: View,
        members: Members,
        place: int,
        context: bytes,
        recovery: Recovery,
    ) -> None:
        self._terms, self._identities, self._view, self._members = terms, identities, view, set(members.sites)
        self._place, self._context, self._recovery = place, context, recovery
        self._masked = Inbox("A4")
        self._digests: dict[int, bytes] = {}
        self._survivors: Survivors | None = None
        self._confirms: dict[int, Signed] = {}
        self._answered: set[int] = set()
        self._shares: dict[int, dict[int, bytes]] = {dealer: {} for dealer in members.sites}  # by holder
        self.named = recovery.named

    # A4

    def accept_masked(self, signed: Signed, words: Words | None = None) -> bool:
        """Take in what a site has signed of its masked words, and return whether it is to be added: once.

        `words`, where given, are held against the length and the hash: 2 ms of SHA-256 for 4 MB.
        Raises: SecrecyError E_LENGTH, E_SIG, E_AGG_MISMATCH, E_LATE, E_REPLAY: the site is dropped.
        """
        site = signed.sender
        if site not in self._members:
            raise SecrecyError("E_LATE", f"site {site} is not among the members")
        digest = self._identities.open(Masked, self._context, signed).digest
        if words is not None:
            expected = self._terms.num_words or len(words)
            if words.shape != (expected,) or words.dtype != self._terms.encoding.dtype:
                raise SecrecyError("E_LENGTH", f"site {site} sends a vector of another length")
            if sha256(words.data) != digest:
                raise SecrecyError("E_AGG_MISMATCH", f"the words of site {site} are not those it has signed")
        self._digests.setdefault(site, digest)
        return self._masked.accept(signed)

    # A5, A6

    def survivors(self) -> Survivors:
        """End A4. Raises SecrecyError E_COHORT or E_THRESHOLD, and the round ends without a result."""
        if self._survivors is None:
            alive = tuple(self._masked.close())
            dropped = tuple(sorted(self._members - set(alive)))
            self._terms.check(alive)
            self._check_living(alive)
            self._survivors = Survivors(alive, dropped, {site: self._digests[site] for site in alive})
        return self._survivors

    def _check_living(self, living: Collection[int]) -> None:
        for dealer in self._members:
            self._terms.check_holders(self._view.holders[dealer], living)

    def accept_confirm(self, signed: Signed) -> None:
        """Take in a site's signature of the survivors, which the other sites verify."""
        self._confirms.setdefault(self._of_survivor(signed).sender, signed)

    def confirmations(self, site: int) -> Confirmations:
        """Return the signatures that a site asks for: those of the holders of its shares."""
        holders = self._view.holders[site]
        return Confirmations({one: self._confirms[one] for one in sorted(holders) if one in self._confirms})

    # A7

    def accept_unmask(self, signed: Signed) -> None:
        """Take in the shares of a site. Raises SecrecyError E_LENGTH if they are not one a dealer."""
        site = self._of_survivor(signed).sender
        shares = self._identities.open(Unmask, self._context, signed).shares
        dealers = sorted(self._members & set(self._view.holders[site]))
        if len(shares) != SECRET_BYTES * len(dealers):
            raise SecrecyError("E_LENGTH", f"site {site} opens not one share of each dealer")
        if site not in self._answered:
            self._answered.add(site)
            for at, dealer in enumerate(dealers):
                self._shares[dealer][site] = shares[SECRET_BYTES * at : SECRET_BYTES * (at + 1)]

    def _of_survivor(self, signed: Signed) -> Signed:
        if self._survivors is None or signed.sender not in self._survivors.sites:
            raise SecrecyError("E_LATE", f"site {signed.sender} is not among the survivors")
        return signed

    def result(self, total: Words) -> Words:
        """Return the sum of the survivors' vectors: the total of their masked words, in place, without masks.

        Raises: SecrecyError E_THRESHOLD below t answers, E_SHARE if a secret cannot be rebuilt; there is no
        result then, and the round is run again under a new number with fresh keys and fresh noise.
        """
        survivors = self.survivors()
        self._check_living(self._answered)
        own = [self._self_mask(site) for site in survivors.sites]
        add, subtract = self._pair_masks(survivors)
        mask_inplace(total, add, own + subtract)
        return total

    def _self_mask(self, site: int) -> OneTimeKey:
        commitment, context = self._view.adverts[site].self_commitments[self._place], self._terms.context

        def is_right(secret: int) -> bool:
            return keys.commitment("b", context, shamir.to_bytes(secret)) == commitment

        secret = self._recovery.rebuild(site, SELF, self._shares[site], is_right)
        return OneTimeKey(keys.self_seed(shamir.to_bytes(secret), self._context, site))

    def _pair_masks(self, survivors: Survivors) -> tuple[list[OneTimeKey], list[OneTimeKey]]:
        """Return the keys to add and to subtract that undo the masks with dropped sites."""
        add: list[OneTimeKey] = []
        subtract: list[OneTimeKey] = []
        for gone in survivors.dropped:
            private = self._masking_key(gone)
            for site in sorted(set(self._view.holders[gone]) & set(survivors.sites)):
                public = self._view.adverts[site].mask_keys[self._place]
                seed = keys.pair_seed(keys.agree(private, public), self._context, site, gone)
                (subtract if site < gone else add).append(OneTimeKey(seed))
        return add, subtract

    def _masking_key(self, site: int) -> X25519PrivateKey:
        public, context = self._view.adverts[site].mask_keys[self._place], self._terms.context

        def is_right(secret: int) -> bool:
            return keys.public_key(keys.mask_private_key(shamir.to_bytes(secret), context)) == public

        secret = self._recovery.rebuild(site, MASK, self._shares[site], is_right)
        return keys.mask_private_key(shamir.to_bytes(secret), context)
