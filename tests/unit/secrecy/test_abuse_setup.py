"""Attacks on keys, shares and what parties are told: abuse tests 16 to 19 of the specification."""

import dataclasses

import numpy as np
import pytest

from fedray.secrecy import keys, wire
from fedray.secrecy.encoding import Encoding, decode, encode
from fedray.secrecy.graph import Topology
from fedray.secrecy.messages import (
    Advert,
    Confirmations,
    Deal,
    Directory,
    Forward,
    Members,
    Opened,
    Reveal,
    Signed,
    Unmask,
)
from fedray.secrecy.view import package_size, sealed_size
from tests.unit.secrecy.parties import Parties, at_survivors, code_of, oracle, resigned, terms_of, vectors_of

# 16


def sum_of_encoded(terms, models):
    """Run a round in which the server shows each site its own model, and return the total (it is curious)."""
    parties = Parties(terms)
    members = parties.setup()
    hub_round = parties.hub.round(0, models[0])
    rounds = {n: parties.sites[n].round(members, 0, models[n]) for n in members.sites}
    rows = encode(np.zeros((len(rounds), terms.num_words - 3)), np.ones(len(rounds)), terms.encoding)
    total = parties.masked(hub_round, rounds, dict(enumerate(rows)))
    parties.unmask(hub_round, rounds, hub_round.survivors())
    return hub_round.result(total)


def test_abuse_16_different_models_make_the_sum_noise_and_the_count_wrong():
    terms = terms_of(5, 65_539, server="curious")
    total = sum_of_encoded(terms, {n: b"trap" if n == 2 else b"model" for n in range(5)})
    counts = np.bincount(np.frombuffer(total, np.uint8), minlength=256)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 372  # 255 degrees of freedom, p = 2e-6
    assert code_of(decode, total, terms.encoding, 5) == "E_COUNT"
    honest = sum_of_encoded(terms, dict.fromkeys(range(5), b"model"))
    assert decode(honest, terms.encoding, 5).num_sites == 5


def test_abuse_16_different_models_are_found_at_the_signatures_of_an_active_server():
    parties = Parties(terms_of(5))
    members = parties.setup()
    rounds = {n: parties.sites[n].round(members, 0, b"trap" if n == 2 else b"model") for n in range(5)}
    hub_round = parties.hub.round(0, b"model")
    vectors = vectors_of(parties.terms)
    _, signed = rounds[2].mask(vectors[2])
    assert code_of(hub_round.accept_masked, signed) == "E_SIG"


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "other"},
        {"num_rounds": 2},
        {"agreed": (("code", "ff"),)},
        {"num_words": 6},
        {"encoding": Encoding(num_sites=5, bound=2.0)},
        {"topology": Topology(None, 2)},
        {"first_round": 1},
    ],
)
def test_abuse_16_site_with_other_terms_is_refused(change):
    parties = Parties(terms_of(5))
    other = parties.site(0, dataclasses.replace(parties.terms, **change))
    assert code_of(parties.hub.accept_advert, other.advertise()) == "E_SIG"


def test_abuse_16_packages_of_another_view_do_not_open():
    """A curious server's sites sign nothing: here the AEAD finds that two saw different directories."""
    parties = Parties(terms_of(5, server="curious"))
    directory = parties.advertise()
    fewer = Directory({n: directory.adverts[n] for n in range(4)})
    deal = wire.from_bytes(Deal, parties.sites[0].deal(fewer).body)
    parties.sites[1].deal(directory)
    forward = Forward({0: deal.packages[: package_size(1)]})  # the first is for site 1
    assert parties.sites[1]._bad_dealers(forward) == [0]


# 17, 18


def test_abuse_17_replaced_key_is_refused():
    parties = Parties(terms_of(5))
    directory = parties.advertise()
    advert = wire.from_bytes(Advert, directory.adverts[3].body)
    forged = dataclasses.replace(advert, seal_key=FIVE)
    mine = Signed(3, wire.to_bytes(forged), directory.adverts[3].signature)
    assert code_of(parties.sites[0].deal, Directory({**directory.adverts, 3: mine})) == "E_SIG"


def test_abuse_17_own_entry_that_is_changed_or_missing_is_refused():
    parties = Parties(terms_of(5))
    adverts = dict(parties.advertise().adverts)
    own = adverts.pop(0)
    assert code_of(parties.sites[0].deal, Directory(adverts)) == "E_SIG"
    assert (
        code_of(parties.sites[0].deal, Directory({**adverts, 0: dataclasses.replace(own, body=b"")}))
        == "E_SIG"
    )


FIVE = keys.public_key(keys.private_key(b"\x05" * 32))
LOW_ORDER = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")


def advert_with(parties, site, **changes):
    signed = parties.sites[site].advertise()
    message = dataclasses.replace(wire.from_bytes(Advert, signed.body), **changes)
    return resigned(parties, signed, parties.terms.context, message)


@pytest.mark.parametrize(
    "changes",
    [
        {"seal_key": LOW_ORDER},
        {"mask_keys": (LOW_ORDER,)},
        {"mask_keys": (bytes(32),)},
        {"mask_keys": (b"short",)},
    ],
)
def test_abuse_18_key_of_low_order_drops_its_site(changes):
    parties = Parties(terms_of(5))
    bad = advert_with(parties, 3, **changes)
    assert code_of(parties.hub.accept_advert, bad) == "E_KEY"
    parties.lost = {3: "A1"}
    vectors = vectors_of(parties.terms)
    total, sites = parties.sum(vectors)
    assert sites == (0, 1, 2, 4) and total.tolist() == oracle(vectors, sites, parties.terms)


def test_abuse_18_key_of_another_site_or_twice_is_refused():
    parties = Parties(terms_of(5))
    parties.hub.accept_advert(parties.sites[0].advertise())
    theirs = parties.sites[0].advert
    for changes in (
        {"seal_key": theirs.mask_keys[0]},
        {"mask_keys": theirs.mask_keys},
        {"seal_key": FIVE, "mask_keys": (FIVE,)},
    ):
        assert code_of(parties.hub.accept_advert, advert_with(parties, 3, **changes)) == "E_KEY"


@pytest.mark.parametrize("repeat_own", [True, False])
def test_abuse_18_site_refuses_a_directory_with_its_own_or_a_repeated_key(repeat_own):
    parties = Parties(terms_of(5))
    directory = parties.advertise()
    key = parties.sites[0 if repeat_own else 2].advert.seal_key
    bad = advert_with(parties, 3, mask_keys=(key,))
    assert code_of(parties.sites[0].deal, Directory({**directory.adverts, 3: bad})) == "E_KEY"


@pytest.mark.parametrize("changes", [{"mask_keys": ()}, {"self_commitments": (b"", b"")}])
def test_keys_for_another_number_of_rounds_are_refused(changes):
    parties = Parties(terms_of(5))
    assert code_of(parties.hub.accept_advert, advert_with(parties, 3, **changes)) == "E_SCHEMA"


def test_number_of_the_ring_that_was_not_committed_to_is_refused():
    parties = Parties(terms_of(8, topology=Topology(4, 3)))
    parties.advertise()
    again = resigned(parties, parties.sites[2].advertise(), parties.terms.context, Reveal(bytes(32)))
    assert code_of(parties.hub.accept_reveal, again) == "E_KEY"


# 19


SIZE, SEALED = package_size(1), sealed_size(1)


def changed_deal(parties, change):
    """Deal all shares, but the package of site 3 for site 1 changed before it signs; return the members."""
    directory = parties.advertise()
    for n, site in parties.sites.items():
        signed = site.deal(directory)
        if n == 3:  # its packages are for 0, 1, 2, 4, ...
            packages = wire.from_bytes(Deal, signed.body).packages
            changed = packages[:SIZE] + change(site, packages[SIZE : 2 * SIZE]) + packages[2 * SIZE :]
            signed = resigned(parties, signed, site.view.digest, Deal(changed))
        parties.hub.accept_deal(signed)
    for n, site in parties.sites.items():
        parties.hub.accept_opened(site.accept(parties.hub.forward(n)))
    return parties.hub.members()


def test_abuse_19_package_that_does_not_open_names_its_dealer_who_is_dropped():
    parties = Parties(terms_of(5))
    members = changed_deal(parties, lambda site, package: bytes(SEALED) + package[SEALED:])
    assert members.sites == (0, 1, 2, 4) and set(parties.hub.named) == {3}
    vectors = vectors_of(parties.terms)
    total, sites = parties.sum(vectors, members)
    assert total.tolist() == oracle(vectors, sites, parties.terms)


def test_abuse_19_package_unlike_its_hashes_names_its_dealer():
    parties = Parties(terms_of(5))
    changed_deal(parties, lambda site, package: package[:-1] + bytes([package[-1] ^ 1]))
    assert set(parties.hub.named) == {3}


def test_abuse_19_complaint_that_is_not_signed_drops_nobody():
    parties = Parties(terms_of(5))
    parties.deal(parties.advertise())
    forged = Signed(1, wire.to_bytes(Opened((3,))), b"")
    assert code_of(parties.hub.accept_opened, forged) == "E_SIG"


def test_complaint_of_a_site_that_dealt_nothing_is_refused():
    parties = Parties(terms_of(5), {"A3": (4,)})
    parties.deal(parties.advertise())
    parties.hub.forward(1)
    site = parties.sites[1]
    strange = resigned(parties, Signed(1, b"", b""), site.view.digest, Opened((1,)))
    assert code_of(parties.hub.accept_opened, strange) == "E_SCHEMA"
    late = Signed(4, wire.to_bytes(Opened(())), b"")
    assert code_of(parties.hub.accept_opened, late) == "E_LATE"


def test_abuse_19_site_that_complains_of_everyone_is_left_out_itself():
    parties = Parties(terms_of(8))
    parties.deal(parties.advertise())
    for n, site in parties.sites.items():
        forward = parties.hub.forward(n)
        if n == 6:
            forward = Forward(dict.fromkeys(forward.packages, b""))
        parties.hub.accept_opened(site.accept(forward))
    assert parties.hub.members().sites == (0, 1, 2, 3, 4, 5, 7) and set(parties.hub.named) == {6}


def off_by_one(site, package):
    """Return a package whose shares open and fit their hashes, and lie on no polynomial."""
    plain = site._sealers[1].open(package[:SEALED], site.index, 1)
    wrong = bytes([plain[0] ^ 1]) + plain[1:32] + bytes([plain[32] ^ 1]) + plain[33:]
    return site._sealers[1].seal(wrong, site.index, 1) + site._hashes(site.index, 1, wrong)


@pytest.mark.parametrize("lost", [{}, {3: "A4"}])
def test_abuse_19_bad_share_of_a_dealer_names_it_and_the_round_completes_with_another_set(lost):
    parties = Parties(terms_of(8, min_cohort=5))
    members = changed_deal(parties, off_by_one)
    parties.lost = lost
    hub_round, rounds = parties.begin(members)
    vectors = vectors_of(parties.terms)
    total = parties.masked(hub_round, rounds, vectors)
    survivors = hub_round.survivors()
    parties.unmask(hub_round, rounds, survivors)
    assert hub_round.result(total).tolist() == oracle(vectors, survivors.sites, parties.terms)
    assert set(hub_round.named) == {3}


@pytest.mark.parametrize("share", [bytes(32), b"\xff" * 32])
def test_abuse_19_bad_share_of_a_holder_names_it_and_the_round_completes_with_another_set(share):
    parties, hub_round, rounds, vectors, total, survivors = at_survivors(terms_of(8, min_cohort=5))
    confirms = Confirmations({n: rounds[n].confirm(survivors) for n in range(8)})
    for n in range(8):
        signed = rounds[n].unmask(survivors, confirms)
        if n == 2:
            shares = wire.from_bytes(Unmask, signed.body).shares
            lie = Unmask(shares[:160] + share + shares[192:])  # that of dealer 5
            signed = resigned(parties, signed, rounds[n].context, lie)
        hub_round.accept_unmask(signed)
    assert hub_round.result(total).tolist() == oracle(vectors, survivors.sites, parties.terms)
    assert set(hub_round.named) == {2}


def test_answer_of_another_length_is_refused():
    parties, hub_round, rounds, _, _, _ = at_survivors()
    bad = resigned(parties, Signed(2, b"", b""), rounds[2].context, Unmask(bytes(6 * 32)))
    assert code_of(hub_round.accept_unmask, bad) == "E_LENGTH"


def test_abuse_19_dealer_whose_secret_does_not_follow_ends_the_round_without_a_sum():
    parties, hub_round, rounds, _, total, survivors = at_survivors()
    view = parties.hub.view()
    view.adverts[3] = dataclasses.replace(view.adverts[3], self_commitments=(bytes(32),))
    parties.unmask(hub_round, rounds, survivors)
    assert code_of(hub_round.result, total) == "E_SHARE"
    assert set(hub_round.named) == {3}


def test_deal_of_another_number_of_packages_is_refused():
    parties = Parties(terms_of(5))
    directory = parties.advertise()
    parties.hub.view()
    signed = parties.sites[0].deal(directory)
    packages = wire.from_bytes(Deal, signed.body).packages
    for wrong in (packages[SIZE:], packages + packages[:SIZE], packages[:-1]):
        bad = resigned(parties, signed, parties.sites[0].view.digest, Deal(wrong))
        assert code_of(parties.hub.accept_deal, bad) == "E_SHARE"


def test_steps_out_of_order_are_refused():
    parties = Parties(terms_of(5))
    site = parties.sites[0]
    assert code_of(site.deal, Directory({})) == "E_SIG"
    assert code_of(site.accept, Forward({})) == "E_STEP"
    assert code_of(site.round, Members((0, 1, 2)), 0, b"") == "E_STEP"
