"""Secrets from the shares that sites have opened, and who is to blame where they do not fit."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from fedray.errors import SecrecyError
from fedray.secrecy import shamir
from fedray.secrecy.view import View, share_hash

MAX_TRIES = 400  # sets of shares to look through when a dealer's are of no polynomial

Check = Callable[[int], bool]
Promised = Callable[[int, int, int], bytes | None]  # of dealer, holder and place in the package: a hash


class Recovery:
    """Rebuilds secrets of one round; the Lagrange weights of a set of holders are made once.

    `named` holds the sites that were caught, with the reason: holders whose share is not the one that its
    dealer answers for, and dealers whose shares lie on no polynomial of the degree.
    """

    def __init__(self, view: View, promised: Promised, place: int, threshold: int) -> None:
        self._view, self._promised, self._place, self._threshold = view, promised, place, threshold
        self._weights: dict[tuple[int, ...], list[int]] = {}
        self.named: dict[int, str] = {}

    def rebuild(self, dealer: int, kind: int, shares: Mapping[int, bytes], is_right: Check) -> int:
        """Return a dealer's secret of a kind (MASK or SELF) from the shares of its holders.

        The first t shares are tried; hashes are looked at only if these do not give the secret.
        Raises: SecrecyError E_THRESHOLD if too few shares are left, E_SHARE if no set of them fits.
        """
        holders = self._view.holders[dealer]
        places = [place for place, holder in enumerate(holders, start=1) if holder in shares]
        self._check_enough(dealer, places)
        first = places[: self._threshold]
        secret = self._from(first, [int.from_bytes(shares[holders[place - 1]], "little") for place in first])
        if is_right(secret):
            return secret
        elements = self._elements(dealer, shares)
        for place in list(elements):
            if not self._is_promised(dealer, holders[place - 1], kind, elements[place]):
                self.named[holders[place - 1]] = f"opened another share than site {dealer} dealt it"
                del elements[place]
        for places in self._sets(list(elements), dealer):
            secret = self._from(places, [elements[place] for place in places])
            if is_right(secret):
                self._name_dealer(dealer, places, elements)
                return secret
        self.named[dealer] = "dealt shares from which its secret does not follow"
        raise SecrecyError("E_SHARE", f"no shares rebuild a secret of site {dealer}: the round has no result")

    def _elements(self, dealer: int, shares: Mapping[int, bytes]) -> dict[int, int]:
        """Return the shares that are elements of the field by their place."""
        elements = {}
        for place, holder in enumerate(self._view.holders[dealer], start=1):
            if holder in shares:
                try:
                    elements[place] = shamir.from_bytes(shares[holder])
                except ValueError:
                    self.named[holder] = "opened a share that is none"
        return elements

    def _check_enough(self, dealer: int, places: Sequence[int]) -> None:
        if len(places) < self._threshold:
            raise SecrecyError(
                "E_THRESHOLD",
                f"{len(places)} shares of site {dealer} are left, {self._threshold} rebuild a secret",
            )

    def _from(self, places: Sequence[int], values: Sequence[int]) -> int:
        chosen = tuple(places)
        if chosen not in self._weights:
            self._weights[chosen] = shamir.lagrange(chosen)
        return shamir.rebuild(self._weights[chosen], values)

    def _is_promised(self, dealer: int, holder: int, kind: int, element: int) -> bool:
        """Tell whether a share is the one that its dealer has signed the hash of."""
        at = 2 * self._place + kind
        promised = self._promised(dealer, holder, at)
        return promised in (None, share_hash(self._view.digest, at, dealer, holder, shamir.to_bytes(element)))

    def _sets(self, places: list[int], dealer: int) -> Iterator[list[int]]:
        """Yield sets of t places: all runs around the circle, which leave out any one; then random ones."""
        self._check_enough(dealer, places)
        for start in range(len(places)):
            yield [*places[start:], *places[:start]][: self._threshold]
        for _ in range(MAX_TRIES):
            yield sorted(places, key=lambda place: os.urandom(8))[: self._threshold]

    def _name_dealer(self, dealer: int, places: Sequence[int], elements: Mapping[int, int]) -> None:
        """Blame the dealer if a share that it answers for lies off the polynomial."""
        values = [elements[place] for place in places]
        if any(
            shamir.rebuild(shamir.lagrange(places, at=place), values) != share
            for place, share in elements.items()
            if place not in places
        ):
            self.named[dealer] = "dealt shares that lie on no polynomial of the degree"
