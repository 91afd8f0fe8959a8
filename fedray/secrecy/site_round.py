"""One round of a site: mask once, agree on who survived, open one share of each dealer, once."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from fedray.errors import SecrecyError
from fedray.secrecy import keys, wire
from fedray.secrecy.journal import Answers, Journal
from fedray.secrecy.keys import Identities, sha256
from fedray.secrecy.keystream import OneTimeKey, mask_inplace
from fedray.secrecy.messages import Confirm, Confirmations, Masked, Members, Signed, Survivors, Unmask
from fedray.secrecy.shamir import SECRET_BYTES
from fedray.secrecy.terms import Policy, Terms

Words = NDArray[np.unsignedinteger[Any]]


@lru_cache(maxsize=8)
def _names(cohort: tuple[str, ...], sites: tuple[int, ...]) -> frozenset[str]:
    """Return the ids of sites: one set for all sites of a process, which remember it as long as they live."""
    return frozenset(cohort[site] for site in sites)


@dataclass(slots=True)
class Seat:
    """Who a site is in a run: the terms, its number in them, its name, its rules and its memory."""

    terms: Terms
    index: int
    identities: Identities
    policy: Policy
    journal: Journal
    has_left: bool = False

    def check_in(self) -> None:
        """Raise SecrecyError E_LEFT once the site has left the run."""
        if self.has_left:
            raise SecrecyError("E_LEFT", "this site has left the run after the server asked for both shares")

    def names(self, sites: Collection[int]) -> frozenset[str]:
        """Return the ids of sites."""
        return _names(self.terms.cohort, tuple(sites))

    def check_differencing(self, sites: Collection[int], model: str, trainer: str) -> None:
        """Raise SecrecyError E_DIFFERENCING by the site's rule on sums of one model."""
        self.policy.check_differencing(self.names(sites), model, trainer, self.journal.releases)


@dataclass(slots=True)
class RoundKeys:
    """A site's secrets of one round, and the shares that it holds of others."""

    context: bytes
    mask_private: X25519PrivateKey
    self_secret: bytes
    peers: Mapping[int, bytes]  # public masking keys of the neighbours that are members
    shares: Mapping[int, bytes]  # by dealer, ascending: of its masking key, then of its self mask
    holders: tuple[int, ...]  # of its own shares


def survivors_digest(context: bytes, survivors: Survivors) -> bytes:
    """Return the hash that sites sign: who is in the sum of this round."""
    return sha256(b"U2", context, wire.to_bytes(survivors))


def refuse_lost(journal: Journal, run: str, round: int, survivors: Survivors, context: bytes) -> None:
    """Answer a request for a round whose keys a restart has lost: always with an error.

    Raises: SecrecyError E_UNMASK_TWICE if another set was answered before the restart, else E_LOST.
    """
    before = journal.digest(run, round, "A5")
    if before is not None and before != survivors_digest(context, survivors):
        raise SecrecyError("E_UNMASK_TWICE", f"round {round} was opened for another set of sites")
    raise SecrecyError("E_LOST", f"this site has restarted and lost round {round}")


class SiteRound:
    """One site through steps A4 to A7 of a round."""

    def __init__(
        self, seat: Seat, members: Members, round: int, round_keys: RoundKeys, labels: tuple[str, str]
    ) -> None:
        self._seat, self._members, self._round = seat, members, round
        self._keys: RoundKeys | None = round_keys
        self._holders = round_keys.holders
        self.context = round_keys.context
        self._labels = labels  # model and trainer
        self._answers = Answers(seat.journal, seat.terms.run_id, round)
        self._words: Words | None = None

    # A4

    def mask(self, words: Words) -> tuple[Words, Signed]:
        """Mask a vector in place; return it and what is signed of it.

        Asked again, returns the words of the first time, whatever is given: two vectors under one mask show
        their difference. The array belongs to the round from then on.
        Raises: SecrecyError E_LENGTH; E_REPLAY if a process before this one has masked in this round.
        """
        terms = self._seat.terms
        if words.shape != (terms.num_words or len(words),) or words.dtype != terms.encoding.dtype:
            raise SecrecyError(
                "E_LENGTH", f"{terms.num_words} words of {terms.encoding.bits} bits are masked"
            )
        if self._words is not None and sha256(self._words.data) != self._digest():
            raise SecrecyError("E_REPLAY", "the masked words were changed after they were made")
        signed = self._answers.once("A4", b"", lambda: self._mask(words))
        assert self._words is not None
        return self._words, signed

    def _mask(self, words: Words) -> Signed:
        index, secrets = self._seat.index, self._open_keys()
        pads = {
            peer: OneTimeKey(
                keys.pair_seed(keys.agree(secrets.mask_private, public), self.context, index, peer)
            )
            for peer, public in secrets.peers.items()
        }
        own = OneTimeKey(keys.self_seed(secrets.self_secret, self.context, index))
        mask_inplace(
            words,
            [own, *(pad for peer, pad in pads.items() if peer > index)],
            [pad for peer, pad in pads.items() if peer < index],
        )
        self._words = words
        return self._sign(Masked(sha256(words.data)))

    def _digest(self) -> bytes | None:
        """Return the hash of the masked words, None before there are any."""
        signed = self._answers.given("A4")
        return None if signed is None else wire.from_bytes(Masked, signed.body).digest

    # A5, A6

    def confirm(self, survivors: Survivors) -> Signed:
        """Check and journal who is in the sum, and sign it.

        Raises: SecrecyError E_BOTH_SHARES, E_UNMASK_TWICE, E_COHORT, E_THRESHOLD, E_DIFFERENCING, E_LATE,
        E_AGG_MISMATCH; nothing is opened then.
        """
        digest = self._settle(survivors)
        return self._answers.once("A6", digest, lambda: self._sign(Confirm(digest)))

    def _settle(self, survivors: Survivors) -> bytes:
        """Return the digest of the survivors once they are checked and on disk, before a share is opened."""
        self._check(survivors)
        digest, seat = survivors_digest(self.context, survivors), self._seat
        seat.journal.record(seat.terms.run_id, self._round, "A5", digest, code="E_UNMASK_TWICE")
        return digest

    def _check(self, survivors: Survivors) -> None:
        seat, alive, dropped = self._seat, set(survivors.sites), set(survivors.dropped)
        seat.check_in()
        if alive & dropped:
            seat.has_left = True
            raise SecrecyError(
                "E_BOTH_SHARES",
                "a site is named as alive and as dropped: both its shares would "
                "open its vector; this site leaves the run",
            )
        if alive | dropped != set(self._members.sites) or len(alive) < len(survivors.sites):
            raise SecrecyError("E_SCHEMA", "survivors and dropped sites are not the members")
        if seat.index not in alive:
            raise SecrecyError("E_LATE", "the round is opened without this site")
        if self._digest() is None or survivors.digests.get(seat.index) != self._digest():
            raise SecrecyError("E_AGG_MISMATCH", "the server shows another hash for this site's words")
        seat.policy.check_cohort(len(alive))
        seat.terms.check(alive)
        seat.terms.check_holders(self._holders, alive)
        if self._answers.given("A7") is None:
            seat.check_differencing(survivors.sites, *self._labels)

    # A7

    def unmask(self, survivors: Survivors, confirmations: Confirmations | None = None) -> Signed:
        """Open of each survivor a share of its self mask, of each dropped site one of its masking key.

        Against an active server, only once enough of the holders of one's shares have signed the same set.
        Raises: as `confirm`; SecrecyError E_CONSISTENCY if too few signed it.
        """
        digest = self._settle(survivors)
        if self._seat.identities.is_signing:
            self._check_confirmations(Confirm(digest), confirmations or Confirmations({}))
        release = (*self._labels, self._seat.names(survivors.sites))
        return self._answers.once("A7", digest, lambda: self._open_shares(survivors), release=release)

    def _check_confirmations(self, own: Confirm, confirmations: Confirmations) -> None:
        """Count signatures of what this site has signed until there are enough of its holders."""
        threshold, num_equal = self._seat.terms.topology.threshold, 0
        for holder in self._holders:
            signed = confirmations.confirms.get(holder)
            if signed is not None and signed.sender == holder and self._is_equal(own, signed):
                num_equal += 1
            if num_equal == threshold:
                return
        raise SecrecyError(
            "E_CONSISTENCY",
            f"{num_equal} sites have signed the survivors that this site was shown, {threshold} must",
        )

    def _is_equal(self, own: Confirm, signed: Signed) -> bool:
        try:
            return self._seat.identities.open(Confirm, self.context, signed) == own
        except SecrecyError:
            return False

    def _open_shares(self, survivors: Survivors) -> Signed:
        shares, alive = self._open_keys().shares, set(survivors.sites)
        halves = [
            pair[SECRET_BYTES:] if dealer in alive else pair[:SECRET_BYTES] for dealer, pair in shares.items()
        ]
        self._keys = None  # what was not opened is forgotten
        return self._sign(Unmask(b"".join(halves)))

    def _open_keys(self) -> RoundKeys:
        assert self._keys is not None
        return self._keys

    def _sign(self, message: object) -> Signed:
        return self._seat.identities.sign(self._seat.index, self.context, message)
