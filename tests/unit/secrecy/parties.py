"""All parties of a secure sum in one process, with sites that are lost at any step."""

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedray.errors import SecrecyError
from fedray.secrecy.encoding import Encoding
from fedray.secrecy.graph import topology
from fedray.secrecy.hub import Hub
from fedray.secrecy.journal import Journal
from fedray.secrecy.keys import Identities
from fedray.secrecy.site import Site
from fedray.secrecy.terms import Policy, Terms

MODEL = b"\x07" * 32
STEPS = ("A1", "A2", "A3", "A3c", "A4", "A6", "A7")  # where a site may be lost


def terms_of(num_sites, num_words=5, server="active", bits=32, min_cohort=3, **changes):
    facts = {
        "run_id": "run",
        "cohort": tuple(f"h{number:04d}" for number in range(num_sites)),
        "encoding": Encoding(num_sites=num_sites, bound=1.0, bits=bits),
        "num_words": num_words,
        "topology": topology(num_sites, server),
        "server": server,
        "min_cohort": min_cohort,
    }
    return Terms(**{**facts, **changes})


class Parties:
    """A hub and its sites; `lost` maps a step to the sites that answer nothing from it on."""

    def __init__(self, terms, lost=None, policy=None, journals=None):
        self.terms = terms
        numbers = range(len(terms.cohort))
        self.own = [Ed25519PrivateKey.generate() for _ in numbers] if terms.server == "active" else None
        self.roster = self.own and [key.public_key().public_bytes_raw() for key in self.own]
        self.policy = policy or Policy(min_cohort=terms.min_cohort)
        self.journals = journals or [Journal() for _ in numbers]
        self.hub = Hub(terms, Identities(self.roster))
        self.sites = {number: self.site(number) for number in numbers}
        self.lost = {site: step for step, sites in (lost or {}).items() for site in sites}

    def site(self, number, terms=None):
        identities = Identities(self.roster, self.own and self.own[number])
        return Site(
            terms or self.terms,
            number,
            identities=identities,
            policy=self.policy,
            journal=self.journals[number],
        )

    def at(self, step, among=None):
        """Return the sites that still answer at a step."""
        numbers = self.sites if among is None else among
        return [n for n in numbers if n not in self.lost or STEPS.index(self.lost[n]) > STEPS.index(step)]

    def advertise(self):
        for n in self.at("A1"):
            self.hub.accept_advert(self.sites[n].advertise())
        return self.hub.directory()

    def deal(self, directory):
        reveals = None
        if self.terms.topology.degree is not None:
            for n in self.at("A2"):
                self.hub.accept_reveal(self.sites[n].reveal(directory))
            reveals = self.hub.reveals()
        for n in self.at("A3"):
            self.hub.accept_deal(self.sites[n].deal(directory, reveals))

    def setup(self):
        self.deal(self.advertise())
        for n in self.at("A3c"):
            self.hub.accept_opened(self.sites[n].accept(self.hub.forward(n)))
        return self.hub.members()

    def begin(self, members, round=0, model=MODEL):
        """Begin a round: return the hub's side and the sites'."""
        rounds = {n: self.sites[n].round(members, round, model) for n in self.at("A3c", members.sites)}
        return self.hub.round(round, model), rounds

    def masked(self, hub_round, rounds, vectors):
        """Mask and return the sum of masked words."""
        total = np.zeros(self.terms.num_words, self.terms.encoding.dtype)
        for n in self.at("A4", rounds):
            words, signed = rounds[n].mask(vectors[n].copy())
            assert hub_round.accept_masked(signed, words)
            total += words
        return total

    def unmask(self, hub_round, rounds, survivors):
        if self.terms.server == "active":
            for n in self.at("A6", survivors.sites):
                hub_round.accept_confirm(rounds[n].confirm(survivors))
        for n in self.at("A7", survivors.sites):
            confirmations = hub_round.confirmations(n) if self.terms.server == "active" else None
            hub_round.accept_unmask(rounds[n].unmask(survivors, confirmations))

    def sum(self, vectors, members=None, round=0, model=MODEL):
        """Run a whole round and return (the sum, the sites in it)."""
        members = members or self.setup()
        hub_round, rounds = self.begin(members, round, model)
        total = self.masked(hub_round, rounds, vectors)
        survivors = hub_round.survivors()
        self.unmask(hub_round, rounds, survivors)
        return hub_round.result(total), survivors.sites


def at_survivors(terms=None, lost=None, policy=None):
    """Return the parties, both sides of a round, its vectors, total and survivors, before anyone confirms."""
    terms = terms or terms_of(5)
    parties = Parties(terms, lost, policy)
    hub_round, rounds = parties.begin(parties.setup())
    vectors = vectors_of(terms)
    total = parties.masked(hub_round, rounds, vectors)
    return parties, hub_round, rounds, vectors, total, hub_round.survivors()


def resigned(parties, signed, context, message):
    """Return a site's message replaced by another that it signs itself."""
    return parties.sites[signed.sender]._seat.identities.sign(signed.sender, context, message)


def code_of(action, *arguments):
    """Return the code of the error that an action must end in."""
    with pytest.raises(SecrecyError) as caught:
        action(*arguments)
    return caught.value.code


def vectors_of(terms):
    """Return uniform words for each site."""
    size = terms.num_words * terms.encoding.dtype.itemsize
    return {n: np.frombuffer(os.urandom(size), terms.encoding.dtype).copy() for n in range(len(terms.cohort))}


def oracle(vectors, sites, terms):
    """Return the sum in Python's integers."""
    columns = zip(*(vectors[n].tolist() for n in sites), strict=True)
    return [sum(column) % 2**terms.encoding.bits for column in columns]
