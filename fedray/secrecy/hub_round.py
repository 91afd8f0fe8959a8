"""One round at the server: who survived, what they open, and the sum without its masks."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedray.errors import SecrecyError
from fedray.secrecy import keys, shamir
from fedray.secrecy.keys import Identities, sha256
from fedray.secrecy.keystream import OneTimeKey, add_rows, mask_inplace
from fedray.secrecy.messages import (
    MASK,
    SELF,
    Confirm,
    Confirmations,
    Masked,
    Members,
    Signed,
    Survivors,
    Unmask,
)
from fedray.secrecy.recovery import Recovery
from fedray.secrecy.terms import Terms
from fedray.secrecy.view import View

Words = NDArray[np.unsignedinteger[Any]]


class HubRound:
    """The server through steps A4 to A7 of a round.

    `named` holds the sites that were caught, with the reason. Masked words may be given one by one, or the
    caller adds them up elsewhere (regions, packs) and gives the total to `result`.
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
        self._terms, self._identities, self._view, self._members = terms, identities, view, members
        self._place, self._context, self._recovery = place, context, recovery
        self._masked: dict[int, Signed] = {}
        self._digests: dict[int, bytes] = {}
        self._survivors: Survivors | None = None
        self._confirms: dict[int, Signed] = {}
        self._answers: dict[int, Unmask] = {}
        self.named = recovery.named

    # A4

    def accept_masked(self, signed: Signed, words: Words | None = None) -> bool:
        """Take in what a site has signed of its masked words, and return whether it is to be added: once.

        `words`, where given, are held against the length and the hash: 2 ms of SHA-256 for 4 MB.
        Raises: SecrecyError E_LENGTH, E_SIG, E_AGG_MISMATCH, E_LATE, E_REPLAY: the site is dropped.
        """
        site = signed.sender
        if site in self._masked:
            if self._masked[site] != signed:
                raise SecrecyError("E_REPLAY", f"site {site} sends masked words twice, differently")
            return False
        if self._survivors is not None or site not in self._members.sites:
            raise SecrecyError("E_LATE", f"masked words of site {site} come after the survivors are named")
        digest = self._identities.open(Masked, self._context, signed).digest
        if words is not None:
            expected = self._terms.num_words or len(words)
            if words.shape != (expected,) or words.dtype != self._terms.encoding.dtype:
                raise SecrecyError("E_LENGTH", f"site {site} sends a vector of another length")
            if sha256(words.data) != digest:
                raise SecrecyError("E_AGG_MISMATCH", f"the words of site {site} are not those it has signed")
        self._masked[site], self._digests[site] = signed, digest
        return True

    # A5, A6

    def survivors(self) -> Survivors:
        """End A4. Raises SecrecyError E_COHORT or E_THRESHOLD, and the round ends without a result."""
        if self._survivors is None:
            alive = tuple(sorted(self._masked))
            dropped = tuple(site for site in self._members.sites if site not in self._masked)
            self._terms.check(alive)
            self._check_living(alive)
            self._survivors = Survivors(alive, dropped, dict(self._digests))
        return self._survivors

    def _check_living(self, living: Collection[int]) -> None:
        for dealer in self._members.sites:
            self._terms.check_holders(self._view.holders[dealer], living)

    def accept_confirm(self, signed: Signed) -> None:
        """Take in a site's signature of the survivors."""
        self._identities.open(Confirm, self._context, self._of_survivor(signed))
        self._confirms.setdefault(signed.sender, signed)

    def confirmations(self, site: int) -> Confirmations:
        """Return the signatures that a site asks for: those of the holders of its shares."""
        holders = self._view.holders[site]
        return Confirmations({one: self._confirms[one] for one in sorted(holders) if one in self._confirms})

    # A7

    def accept_unmask(self, signed: Signed) -> None:
        """Take in the shares that a site has opened."""
        answer = self._identities.open(Unmask, self._context, self._of_survivor(signed))
        self._answers.setdefault(signed.sender, answer)

    def _of_survivor(self, signed: Signed) -> Signed:
        if self._survivors is None or signed.sender not in self._survivors.sites:
            raise SecrecyError("E_LATE", f"site {signed.sender} is not among the survivors")
        return signed

    def result(self, total: Words, rows: Sequence[Words] = ()) -> Words:
        """Return the sum of the survivors' vectors: `total`, in place, and `rows` without their masks.

        Raises: SecrecyError E_THRESHOLD below t answers, E_SHARE if a secret cannot be rebuilt; there is no
        result then, and the round is run again under a new number with fresh keys and fresh noise.
        """
        survivors = self.survivors()
        self._check_living(self._answers)
        own = [self._self_mask(site) for site in survivors.sites]
        add, subtract = self._pair_masks(survivors)
        if rows:
            add_rows(total, rows)
        mask_inplace(total, add, own + subtract)
        return total

    def _self_mask(self, site: int) -> OneTimeKey:
        commitment = self._view.adverts[site].self_commitments[self._place]
        shares = {
            holder: answer.self_shares[site]
            for holder, answer in self._answers.items()
            if site in answer.self_shares
        }
        secret = self._recovery.rebuild(
            site,
            SELF,
            shares,
            lambda secret: commitment == keys.commitment("b", self._terms.context, shamir.to_bytes(secret)),
        )
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

    def _masking_key(self, site: int) -> bytes:
        public = self._view.adverts[site].mask_keys[self._place]
        shares = {
            holder: answer.mask_shares[site]
            for holder, answer in self._answers.items()
            if site in answer.mask_shares
        }
        secret = self._recovery.rebuild(
            site, MASK, shares, lambda secret: public == keys.public_key(self._private(secret))
        )
        return self._private(secret)

    def _private(self, secret: int) -> bytes:
        return keys.mask_private_key(shamir.to_bytes(secret), self._terms.context)
