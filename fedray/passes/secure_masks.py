"""The site's half of masking, as functions that a pass maps: each is one step of `fedray.secrecy.Site`.

A site's secrets of a round are a `Party`: a value at the site that is private, lives in the site's process
alone, and is in no slot, so that no checkpoint ever holds it. What a party sends is bytes in a tensor, so
that `egress` counts them. The server's half is in `secure_hub.py`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedray import coded, rows, tree
from fedray.core.graph import MADE_UP, Label
from fedray.passes.secure_setup import Rules, Setup
from fedray.rows import Group, Ragged, Same, Tagged
from fedray.secrecy import wire
from fedray.secrecy.journal import Journal
from fedray.secrecy.keys import Identities
from fedray.secrecy.messages import (
    Advert,
    Confirm,
    Confirmations,
    Deal,
    Directory,
    Forward,
    Masked,
    Members,
    Reveals,
    Signed,
    Survivors,
)
from fedray.secrecy.messages import Reveal as Number
from fedray.secrecy.messages import Unmask as Shares
from fedray.secrecy.shamir import SECRET_BYTES
from fedray.secrecy.site import Site
from fedray.secrecy.site_round import SiteRound
from fedray.secrecy.terms import Policy
from fedray.secrecy.view import package_size

T = TypeVar("T")
NO_KEY = bytes(32)  # stands in the roster for a site that showed no key


def to_tensor(message: Any) -> torch.Tensor:
    """Return a message as bytes that are counted where they travel."""
    return torch.frombuffer(bytearray(wire.to_bytes(message)), dtype=torch.uint8)


def from_tensor(kind: type[T], data: torch.Tensor) -> T:
    """Read a message."""
    return wire.from_bytes(kind, data.numpy().tobytes())


class Party:
    """One site in one sum: its secrets. Not a value that travels: pickling it raises.

    No record, which is taken apart where sites are asked one by one, and put together as another one.
    """

    def __init__(
        self, setup: Setup, rules: Rules, name: str, identity: Ed25519PrivateKey | None, journal: Journal
    ) -> None:
        self.setup, self.rules, self.name = setup, rules, name
        self.identity, self.journal = identity, journal
        self.sent: dict[str, torch.Tensor] = {}
        self.site: Site | None = None
        self.round: SiteRound | None = None

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a site's secrets do not leave its process")

    @property
    def is_tried(self) -> bool:
        """Tell whether the site is made up, and its words need no mask. A site's own name says so: what the
        server announces never does.
        """
        return self.name in MADE_UP and self.setup.is_tried

    @property
    def public(self) -> bytes:
        """The key that its signatures are checked with."""
        return self.identity.public_key().public_bytes_raw() if self.identity else b""

    def begin(self) -> None:
        """Make the keys of the round (A1); they come from the system's entropy."""
        number = self.setup.group_of(self.name)
        terms = self.setup.terms(self.rules, number)
        self.index = terms.cohort.index(self.name)
        self.identities = Identities(
            None if self.identity is None else [NO_KEY] * len(terms.cohort), self.identity
        )
        rules = self.rules
        policy = Policy(min_cohort=rules.min_cohort, has_dp=rules.has_dp, second_set=rules.second_set)
        self.site = Site(terms, self.index, identities=self.identities, policy=policy, journal=self.journal)
        self.sent["A1"] = to_tensor(self.site.advertise())


def party_of(group: Group, name: str, setup: Setup, rules: Rules) -> Party:
    """Return a site's party in a sum; asked again, the same one."""
    held: dict[str, Any] = group.cache.setdefault(("secure_sum", name), {"journal": Journal()})
    known = held.get(rules.label)
    if known is not None and known.setup == setup:
        return known  # type: ignore[no-any-return]
    if rules.server == "active" and "identity" not in held:
        held["identity"] = Ed25519PrivateKey.generate()
    party = Party(setup, rules, name, held.get("identity"), held["journal"])
    if not party.is_tried:
        party.begin()
    held[rules.label] = party
    return party


@dataclass(frozen=True)
class Advertise:
    """A1: make a site's keys for this round."""

    rules: Rules
    grants: ClassVar[Label] = Label.PRIVATE
    one_shot: ClassVar[bool] = True

    def __call__(self, setup: Setup, site: str) -> Party:
        """Return a site's party."""
        return party_of(Group([site]), site, setup, self.rules)

    def rows(self, group: Group, setup: Tagged, site: Tagged) -> Any:
        """Return the parties of a group."""
        told: Setup = rows.row(setup, 0)
        return _each(group, lambda row: party_of(group, group.ids[row], told, self.rules))


def _each(group: Group, made: Any) -> Ragged:
    """Return what is made for each living row; a lost row holds None."""
    alive = set(group.alive)
    return Ragged([made(row) if row in alive else None for row in range(group.k)])


@dataclass(frozen=True)
class Sent:
    """Return what a party sends in a step; `grants` says what it may reveal."""

    step: str
    grants: Label

    def __call__(self, party: Party) -> torch.Tensor:
        """Return the message of one site."""
        if party.is_tried:
            return made_up(self.step, party.rules)
        message = party.sent[self.step]
        if self.step != "A1" or party.identity is None:
            return message
        return torch.cat([torch.frombuffer(bytearray(party.public), dtype=torch.uint8), message])

    def rows(self, group: Group, party: Tagged) -> Any:
        """Return the messages of a group."""
        return _each(group, lambda row: self(rows.row(party, row)))


def made_up(step: str, rules: Rules) -> torch.Tensor:
    """Return zeros as long as a site's message of a step, with one peer where there is an entry for each."""
    key = bytes(32)
    messages: dict[str, Any] = {
        "A1": Advert(key, (key,), (key,), key),
        "A2": Number(key),
        "A3": Deal(bytes(package_size(1))),
        "A4": Masked(key),
        "A6": Confirm(key),
        "A7": Shares(bytes(SECRET_BYTES)),
    }
    is_signing = rules.server == "active"
    signed = to_tensor(Signed(0, wire.to_bytes(messages[step]), bytes(64) if is_signing else b""))
    extra = 32 if step == "A1" and is_signing else 0  # the key that signatures are checked with
    return torch.zeros(len(signed) + extra, dtype=torch.uint8)


class _Step(ABC):
    """One step of every party of a group: `step(party, *told)`, told being the same for all or one a site."""

    grants: ClassVar[Label] = Label.PRIVATE
    one_shot: ClassVar[bool] = True

    @abstractmethod
    def step(self, party: Party, *told: Any) -> None:
        """Take the step of a party that is not made up."""

    def taken(self, party: Party, *told: Any) -> Party:
        """Take the step, unless sites are made up."""
        if not party.is_tried:
            self.step(party, *told)
        return party

    def __call__(self, party: Party, *told: Any) -> Party:
        """Take the step of one site."""
        return self.taken(party, *told)

    def rows(self, group: Group, party: Tagged, *told: Tagged) -> Any:
        """Take the step of each site of a group."""
        return _each(group, lambda row: self(rows.row(party, row), *(rows.row(one, row) for one in told)))


@dataclass(frozen=True)
class Roster:
    """What the server shows of a group: the sites' keys of signatures and their adverts."""

    keys: torch.Tensor  # (sites, 32)
    directory: torch.Tensor


@dataclass(frozen=True)
class Reveal(_Step):
    """A2: show the number that a ring is ordered by."""

    def step(self, party: Party, rosters: Sequence[Roster]) -> None:
        """Take the step."""
        assert party.site is not None
        party.sent["A2"] = to_tensor(party.site.reveal(_read_roster(party, rosters)))


def _read_roster(party: Party, rosters: Sequence[Roster]) -> Directory:
    """Return the directory of a party's group, whose keys it checks signatures with from now on."""
    assert party.site is not None
    roster = rosters[party.setup.group_of(party.name)]
    if party.identity is not None:
        known = [key.numpy().tobytes() for key in roster.keys]
        if known[party.index] != party.public:
            raise ValueError("E_SIG: the roster shows this site with another key than its own")
        party.identities.pin(known)
    return from_tensor(Directory, roster.directory)


@dataclass(frozen=True)
class DealShares(_Step):
    """A3: check the directory, and seal shares of one's secrets for one's holders."""

    def step(
        self, party: Party, rosters: Sequence[Roster], reveals: Sequence[torch.Tensor] | None = None
    ) -> None:
        """Take the step."""
        assert party.site is not None
        numbers = None
        if reveals is not None and party.site.terms.topology.degree is not None:
            numbers = from_tensor(Reveals, reveals[party.setup.group_of(party.name)])
        party.sent["A3"] = to_tensor(party.site.deal(_read_roster(party, rosters), numbers))


@dataclass(frozen=True)
class Join(_Step):
    """A4, before the mask: open one's packages and begin the round among those who dealt.

    `shown` is what else the server has shown of the round: its hash is part of every mask, so that sites that
    were shown other models cannot be added up.
    """

    rules: Rules

    def step(
        self, party: Party, forward: torch.Tensor, members: Sequence[torch.Tensor], model: bytes
    ) -> None:
        """Take the step. Raises SecrecyError where a package does not open: the site is out of this sum."""
        assert party.site is not None
        party.site.accept(from_tensor(Forward, forward))
        told = from_tensor(Members, members[party.setup.group_of(party.name)])
        party.round = party.site.round(told, party.setup.round, model)

    def __call__(self, party: Party, *told: Any) -> Party:
        """Take the step of one site."""
        forward, members, *shown = told
        return self.taken(party, forward, members, model_hash(self.rules, party.setup.round, shown))

    def rows(self, group: Group, party: Tagged, *told: Tagged) -> Any:
        """Take the step of each site of a group, which are all shown the same."""
        alive = group.alive
        round = rows.row(party, alive[0]).setup.round if alive else 0
        model = model_hash(self.rules, round, [rows.row(one, 0) for one in told[2:]])
        return _each(
            group,
            lambda row: self.taken(rows.row(party, row), *(rows.row(one, row) for one in told[:2]), model),
        )


def model_hash(rules: Rules, round: int, shown: Sequence[Any]) -> bytes:
    """Return the SHA-256 of the model that a site was shown; the round stands for one that sites keep."""
    digest = hashlib.sha256(rules.label.encode())
    if rules.is_kept and not shown:
        digest.update(f"|{round}".encode())
    for path, leaf in tree.leaves(tuple(shown)):
        numbers = leaf.buffer if isinstance(leaf, tree.Flat) else leaf
        if isinstance(numbers, torch.Tensor):
            held = numbers.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            digest.update(f"{path}|{numbers.dtype}|{tuple(numbers.shape)}|".encode())
            digest.update(held.data)
        else:
            digest.update(f"{path}|{numbers!r}|".encode())
    return digest.digest()


@dataclass(frozen=True)
class Mask:
    """A4: add masks to a site's words. What it returns is uniform to whoever lacks the masks."""

    guard: ClassVar[str] = "masked"
    grants: ClassVar[Label] = Label.MASKED
    one_shot: ClassVar[bool] = True

    def __call__(self, words: Any, party: Party) -> Any:
        """Mask the words of one site."""
        return coded.alone(self.rows, words, Same(party))

    def rows(self, group: Group, words: Tagged, party: Tagged) -> Any:
        """Mask the words of a group, in memory of their own."""
        flat = rows.expand(words, group.k)
        masked = np.zeros(tuple(flat.buffer.shape), np.uint32)
        for row in group.alive:
            own: Party = rows.row(party, row)
            masked[row] = flat.buffer[row].numpy()
            if not own.is_tried:
                assert own.round is not None
                found, signed = own.round.mask(masked[row])
                own.sent["A4"] = to_tensor(signed)
                masked[row] = found
        return tree.Flat(torch.from_numpy(masked), flat.schema)


@dataclass(frozen=True)
class SentWith:
    """Return what a party has signed of its masked words, in the stage in which they leave."""

    grants: ClassVar[Label] = Label.PUBLIC

    def __call__(self, party: Party, words: Any) -> torch.Tensor:
        """Return the message of one site."""
        return made_up("A4", party.rules) if party.is_tried else party.sent["A4"]

    def rows(self, group: Group, party: Tagged, words: Tagged) -> Any:
        """Return the messages of a group."""
        return _each(group, lambda row: self(rows.row(party, row), None))


@dataclass(frozen=True)
class ConfirmSurvivors(_Step):
    """A6: sign whose words are in the sum."""

    def step(self, party: Party, survivors: Sequence[torch.Tensor]) -> None:
        """Take the step."""
        assert party.round is not None
        told = from_tensor(Survivors, survivors[party.setup.group_of(party.name)])
        party.sent["A6"] = to_tensor(party.round.confirm(told))


@dataclass(frozen=True)
class OpenShares(_Step):
    """A7: show, of each site in the sum, a share of its self mask; of each other, one of its masking key."""

    def step(
        self, party: Party, survivors: Sequence[torch.Tensor], confirms: Sequence[torch.Tensor] | None = None
    ) -> None:
        """Take the step."""
        assert party.round is not None and party.site is not None
        number = party.setup.group_of(party.name)
        told = from_tensor(Survivors, survivors[number])
        signed = None if confirms is None else from_tensor(Confirmations, confirms[number])
        party.sent["A7"] = to_tensor(party.round.unmask(told, signed))
        party.site.forget()
