"""The server's half of masking, as functions that a pass applies: each closes a step of the sites.

What goes wrong with one site's message leaves that site out; too few sites end the round without a result
(QuorumError, so that the schedule may try again, with fresh keys).
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from fedray import coded
from fedray.core.graph import Asked, Label
from fedray.errors import QuorumError, SecrecyError
from fedray.passes.secure_masks import NO_KEY, Roster, from_tensor, model_hash, to_tensor
from fedray.passes.secure_setup import Rules, Setup, digest_of
from fedray.passes.secure_steps import Lane, Opened, check_cohort, opened
from fedray.passes.secure_words import Agreed, read
from fedray.rng import Key
from fedray.secrecy import wire
from fedray.secrecy.hub import Hub
from fedray.secrecy.hub_round import HubRound
from fedray.secrecy.keys import Identities
from fedray.secrecy.messages import Confirmations, Signed
from fedray.secrecy.messages import Opened as Complaints
from fedray.secrecy.terms import MIN_DELTA

logger = logging.getLogger(__name__)
TOO_FEW = ("E_COHORT", "E_THRESHOLD", "E_SHARE")  # the round has no result, and may be tried again
KEY_BYTES = 32
SECOND = 2  # the try, after the first and one more over the same sites, from which some sites are left out
NO_COMPLAINTS = Complaints(())
Messages = Mapping[str, torch.Tensor]


@contextmanager
def ending() -> Iterator[None]:
    """Turn too few sites into a round without a result."""
    try:
        yield
    except SecrecyError as error:
        if error.code not in TOO_FEW:
            raise
        raise QuorumError(f"a secure sum has ended without a result: {error}") from error


def _taken(accept: Callable[[Signed], Any], signed: Signed, site: str) -> bool:
    """Take a message in; one that is refused leaves its site out."""
    try:
        accept(signed)
    except SecrecyError as error:
        logger.warning("secure_sum: a message of %s was refused (%s)", site, error.code)
        return False
    return True


@dataclass(frozen=True)
class Announce:
    """Say who masks with whom: all sites of the cohort, or groups that are drawn anew for every round."""

    rules: Rules

    def __call__(self, asked: Asked, agreed: Agreed, key: Key) -> Setup:
        """Return the facts of this sum. Raises QuorumError where too few sites are asked."""
        run = f"{asked.run}/{asked.attempt}/{os.urandom(8).hex()}"  # programs beside a run have no name
        setup = Setup(run, asked.round, (tuple(sorted(asked.cohort)),), digest_of(agreed))
        if setup.is_tried:
            return setup
        least = self.rules.min_cohort * self.rules.num_groups
        check_cohort(dict.fromkeys(asked.cohort), least)
        cohort = sorted(asked.cohort)
        if self.rules.second_set and asked.attempt >= SECOND and len(cohort) - MIN_DELTA >= least:
            cohort = some(cohort, len(cohort) - MIN_DELTA, key)
        if self.rules.num_groups > 1 or len(cohort) < len(asked.cohort):
            groups = drawn(cohort, self.rules.num_groups, key)
            setup = Setup(run, asked.round, groups, setup.agreed)
        with ending():
            for number in range(len(setup.groups)):
                setup.terms(self.rules, number)
        return setup


def some(sites: Sequence[str], count: int, key: Key) -> list[str]:
    """Return so many of the sites, drawn by the run's own seed: the same in every further try at a round."""
    order = torch.randperm(len(sites), generator=key.generator()).tolist()
    return sorted(sites[i] for i in order[:count])


def drawn(sites: Sequence[str], num_groups: int, key: Key) -> tuple[tuple[str, ...], ...]:
    """Deal sites to groups of like size at random, anew in each round, by the run's own seed."""
    order = torch.randperm(len(sites), generator=key.generator()).tolist()
    return tuple(tuple(sorted(sites[i] for i in order[first::num_groups])) for first in range(num_groups))


@dataclass
class Desk:
    """The server's side of one group: its hub, and what the steps have come to."""

    cohort: tuple[str, ...]
    hub: Hub
    keys: list[bytes]
    round: HubRound | None = None

    def mine(self, messages: Messages) -> Iterator[tuple[int, str, torch.Tensor]]:
        """Yield (number, name, message) of the group's sites that delivered."""
        for number, site in enumerate(self.cohort):
            if site in messages:
                yield number, site, messages[site]


@dataclass(frozen=True)
class Desks:
    """The server's side of a sum: a desk for each group, none where sites are made up."""

    setup: Setup
    desks: tuple[Desk, ...]


@dataclass(frozen=True)
class TakeAdverts:
    """A2: close the step of keys."""

    rules: Rules

    def __call__(self, setup: Setup, adverts: Messages) -> Desks:
        """Return the desks of the groups. Raises QuorumError where too few sites have shown keys."""
        if setup.is_tried:
            return Desks(setup, ())
        with ending():
            return Desks(setup, tuple(self._desk(setup, n, adverts) for n in range(len(setup.groups))))

    def _desk(self, setup: Setup, number: int, adverts: Messages) -> Desk:
        terms, shown = setup.terms(self.rules, number), {}
        is_signing = self.rules.server == "active"
        keys = [NO_KEY] * len(terms.cohort)
        for place, site in enumerate(terms.cohort):
            if site in adverts:
                data = adverts[site].numpy().tobytes()
                keys[place] = data[:KEY_BYTES] if is_signing else NO_KEY
                shown[site] = adverts[site][KEY_BYTES:] if is_signing else adverts[site]
        desk = Desk(terms.cohort, Hub(terms, Identities(keys if is_signing else None)), keys)
        for _, site, message in desk.mine(shown):
            _taken(desk.hub.accept_advert, from_tensor(Signed, message), site)
        desk.hub.directory()
        return desk


@dataclass(frozen=True)
class ShowRoster:
    """A2: what sites are shown of their group."""

    def __call__(self, desks: Desks) -> tuple[Roster, ...]:
        """Return a roster for each group."""
        return tuple(
            Roster(
                torch.frombuffer(bytearray(b"".join(desk.keys)), dtype=torch.uint8).view(-1, KEY_BYTES),
                to_tensor(desk.hub.directory()),
            )
            for desk in desks.desks
        )


@dataclass(frozen=True)
class TakeReveals:
    """A2r: close the step that orders rings."""

    def __call__(self, desks: Desks, reveals: Messages) -> tuple[torch.Tensor, ...]:
        """Return the numbers of each group."""
        with ending():
            return tuple(self._numbers(desk, reveals) for desk in desks.desks)

    def _numbers(self, desk: Desk, reveals: Messages) -> torch.Tensor:
        if desk.hub.terms.topology.degree is None:
            return torch.zeros(0, dtype=torch.uint8)
        for _, site, message in desk.mine(reveals):
            _taken(desk.hub.accept_reveal, from_tensor(Signed, message), site)
        return to_tensor(desk.hub.reveals())


@dataclass(frozen=True)
class TakeDeals:
    """A3: close the step of shares."""

    def __call__(self, desks: Desks, deals: Messages, *before: Any) -> dict[str, torch.Tensor]:
        """Return each site's packages. The members of the sum are those who dealt."""
        if not desks.desks:
            return {site: torch.zeros(0, dtype=torch.uint8) for site in deals}
        found: dict[str, torch.Tensor] = {}
        with ending():
            for desk in desks.desks:
                dealers = [
                    number
                    for number, site, message in desk.mine(deals)
                    if _taken(desk.hub.accept_deal, from_tensor(Signed, message), site)
                ]
                found |= {desk.cohort[dealer]: to_tensor(desk.hub.forward(dealer)) for dealer in dealers}
                for dealer in dealers:  # a site to whom a package does not open leaves the sum by itself
                    desk.hub.accept_opened(Signed(dealer, wire.to_bytes(NO_COMPLAINTS), b""))
        return found


@dataclass(frozen=True)
class ShowMembers:
    """A3: who masks with whom."""

    def __call__(self, desks: Desks, forwards: Messages) -> tuple[torch.Tensor, ...]:
        """Return the members of each group."""
        with ending():
            return tuple(to_tensor(desk.hub.members()) for desk in desks.desks)


@dataclass(frozen=True)
class TakeMasked:
    """A5: close the step of masked words, whose sum is beside it: whoever delivered is in both."""

    rules: Rules
    grants: ClassVar[Label] = Label.PUBLIC

    def __call__(self, desks: Desks, signed: Messages, *shown: Any) -> tuple[torch.Tensor, ...]:
        """Return the survivors of each group."""
        with ending():
            return tuple(self._survivors(desk, desks.setup, signed, shown) for desk in desks.desks)

    def _survivors(self, desk: Desk, setup: Setup, signed: Messages, shown: Sequence[Any]) -> torch.Tensor:
        arrived = tuple(coded.arrived(value) for value in shown)
        desk.round = desk.hub.round(setup.round, model_hash(self.rules, setup.round, arrived))
        for _, _, message in desk.mine(signed):
            desk.round.accept_masked(from_tensor(Signed, message))
        return to_tensor(desk.round.survivors())


@dataclass(frozen=True)
class TakeConfirms:
    """A6: what the sites have signed of the survivors."""

    def __call__(self, desks: Desks, survivors: Any, confirms: Messages) -> tuple[torch.Tensor, ...]:
        """Return the signatures of each group."""
        found = []
        for desk in desks.desks:
            signed = {number: from_tensor(Signed, message) for number, _, message in desk.mine(confirms)}
            found.append(to_tensor(Confirmations(signed)))
        return tuple(found)


@dataclass(frozen=True)
class Unmask:
    """A7: take the masks off the sums with what the survivors have shown, and read them."""

    lanes: tuple[Lane, ...]
    grants: ClassVar[Label] = Label.AGG

    def __call__(
        self, desks: Desks, survivors: Any, total: Any, delivered: Messages, shares: Messages
    ) -> Opened:
        """Return the sums. Raises QuorumError where too few sites have shown shares."""
        flat = total.parts
        words = flat.buffer.numpy()[0].copy()
        for desk in desks.desks:
            words = unmasked(desk, words, shares)
        return opened(read(words, flat.schema, len(delivered)), self.lanes)


def unmasked(desk: Desk, words: np.ndarray, shares: Messages) -> np.ndarray:
    round_ = desk.round
    assert round_ is not None
    for _, site, message in desk.mine(shares):
        _taken(round_.accept_unmask, from_tensor(Signed, message), site)
    with ending():
        found = round_.result(words)
    for number, why in round_.named.items():
        logger.warning("secure_sum: site %s was caught: %s", desk.cohort[number], why)
    return found
