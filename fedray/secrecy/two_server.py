"""Two aggregators that do not collude: each sees uniform words, together they know the sum.

A site draws a seed, adds its keystream to the encoded vector and sends the words to one aggregator and the
seed to the other. No keys are agreed on, and a site that is lost costs nothing: both aggregators sum over the
sites that both have heard of, once. Whoever holds both shares of a site reads its vector, so where one server
carries all messages the seed is sealed for the other aggregator (`seal_seed`). Nothing here finds an
aggregator that adds something of its own; the count lane finds words that are not a sum.
Source: the idea of Corrigan-Gibbs and Boneh, Prio, NSDI 2017, without its proofs of validity.
"""

import os
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedray.errors import SecrecyError
from fedray.secrecy import keys
from fedray.secrecy.keys import Sealer
from fedray.secrecy.keystream import KEY_BYTES, OneTimeKey, add_rows, mask_inplace

Words = NDArray[np.unsignedinteger[Any]]


def split(words: Words, entropy: Callable[[int], bytes] = os.urandom) -> bytes:
    """Hide encoded words in place, and return the seed that shows them: one share for each aggregator."""
    seed = entropy(KEY_BYTES)
    mask_inplace(words, [OneTimeKey(seed)])
    return seed


def seal_seed(
    seed: bytes, public: bytes, context: bytes, site: int, entropy: Callable[[int], bytes] = os.urandom
) -> bytes:
    """Return a seed that only the owner of an X25519 key reads, in this context, from this site."""
    private = keys.private_key(entropy(KEY_BYTES))
    return keys.public_key(private) + Sealer(private, public, context).seal(seed, site, 0)


def open_seed(sealed: bytes, private: bytes, context: bytes, site: int) -> bytes:
    """Return the seed of a site. Raises SecrecyError E_SHARE on what it did not seal for this key."""
    return Sealer(keys.private_key(private), sealed[:KEY_BYTES], context).open(sealed[KEY_BYTES:], site, 0)


class Aggregator:
    """One of the two: takes a share of each site and tells their sum over one set of sites, once."""

    def __init__(self, num_words: int, dtype: Any = "<u4", min_cohort: int = 5) -> None:
        self._num_words, self._dtype, self._min_cohort = num_words, np.dtype(dtype), min_cohort
        self._seeds: dict[int, bytes] = {}
        self._rows: dict[int, Words] = {}
        self._opened: frozenset[int] | None = None

    @property
    def sites(self) -> frozenset[int]:
        """The sites whose share has come."""
        return frozenset(self._seeds) | frozenset(self._rows)

    def accept(self, site: int, share: bytes | Words) -> None:
        """Take a seed or words in. Raises SecrecyError E_REPLAY on a second share, E_LENGTH on a bad one."""
        if site in self.sites:
            raise SecrecyError("E_REPLAY", f"site {site} has sent a share before")
        if isinstance(share, bytes):
            if len(share) != KEY_BYTES:
                raise SecrecyError("E_LENGTH", f"the seed of site {site} has {len(share)} bytes")
            self._seeds[site] = share
            return
        if share.shape != (self._num_words,) or share.dtype != self._dtype:
            raise SecrecyError("E_LENGTH", f"site {site} sends a vector of another length")
        self._rows[site] = share

    def total(self, sites: Collection[int]) -> Words:
        """Return the sum of these sites' shares: what they hide it with, or what is hidden.

        Raises: SecrecyError E_COHORT under min_cohort; E_LATE for a site without a share; E_UNMASK_TWICE for
        a second set, whose difference would show single sites.
        """
        chosen = frozenset(sites)
        if self._opened not in (None, chosen):
            raise SecrecyError("E_UNMASK_TWICE", "these shares were summed over another set of sites")
        if len(chosen) < self._min_cohort:
            raise SecrecyError("E_COHORT", f"{len(chosen)} sites are left, {self._min_cohort} must be")
        if not chosen <= self.sites:
            raise SecrecyError("E_LATE", "a site of the sum has sent no share here")
        self._opened = chosen
        total = np.zeros(self._num_words, self._dtype)
        mask_inplace(total, [OneTimeKey(self._seeds[site]) for site in sorted(chosen) if site in self._seeds])
        add_rows(total, [self._rows[site] for site in sorted(chosen) if site in self._rows])
        return total
