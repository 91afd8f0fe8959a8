"""Attacks on a round: each ends in its code, opens nothing, and the sum of the others is exact.

The numbers are those of the abuse tests of the specification: 12 to 15 and 20 here, 11 in test_sums, 16 to 19
in test_abuse_setup, 21, 24 and 14 across a restart in test_journal.
"""

import dataclasses

import pytest

from fedray.secrecy import wire
from fedray.secrecy.graph import Topology
from fedray.secrecy.messages import (
    Confirmations,
    Directory,
    Members,
    Signed,
    Survivors,
    Unmask,
)
from fedray.secrecy.terms import Policy
from tests.unit.secrecy.parties import Parties, at_survivors, code_of, oracle, terms_of, vectors_of

# 12


def test_abuse_12_late_words_are_discarded_and_the_sum_is_unchanged():
    terms = terms_of(5)
    parties = Parties(terms)
    hub_round, rounds = parties.begin(parties.setup())
    vectors = vectors_of(terms)
    parties.lost = {3: "A4"}
    total = parties.masked(hub_round, rounds, vectors)
    survivors = hub_round.survivors()
    words, signed = rounds[3].mask(vectors[3].copy())
    assert code_of(hub_round.accept_masked, signed, words) == "E_LATE"
    parties.unmask(hub_round, rounds, survivors)
    assert hub_round.result(total).tolist() == oracle(vectors, (0, 1, 2, 4), terms)
    assert code_of(rounds[3].unmask, survivors) == "E_LATE"


# 13, 14


def test_abuse_13_site_named_alive_and_dropped_is_refused_and_the_site_leaves():
    parties, _, rounds, _, _, survivors = at_survivors()
    both = dataclasses.replace(survivors, dropped=(1,))
    assert code_of(rounds[0].confirm, both) == "E_BOTH_SHARES"
    assert code_of(rounds[0].confirm, survivors) == "E_LEFT"
    assert code_of(parties.sites[0].round, Members((0, 1, 2, 3, 4)), 1, b"") in {"E_LEFT", "E_FUTURE"}


def test_abuse_13_answer_has_room_for_one_share_of_each_dealer():
    _, _, rounds, _, _, survivors = at_survivors(lost={"A4": (3,)})
    confirms = Confirmations({n: rounds[n].confirm(survivors) for n in (0, 1, 2, 4)})
    held = rounds[0]._keys.shares
    shares = wire.from_bytes(Unmask, rounds[0].unmask(survivors, confirms).body).shares
    mask_share, self_share = slice(0, 32), slice(32, 64)
    kinds = [self_share, self_share, self_share, mask_share, self_share]
    assert shares == b"".join(held[dealer][kind] for dealer, kind in enumerate(kinds))


def test_abuse_14_second_set_is_refused():
    _, _, rounds, _, _, survivors = at_survivors()
    rounds[0].confirm(survivors)
    fewer = Survivors((0, 1, 2, 3), (4,), survivors.digests)
    assert code_of(rounds[0].confirm, fewer) == "E_UNMASK_TWICE"
    assert code_of(rounds[0].unmask, fewer) == "E_UNMASK_TWICE"


def test_abuse_14_same_request_again_gets_the_same_bytes():
    _, _, rounds, _, _, survivors = at_survivors()
    confirms = Confirmations({n: rounds[n].confirm(survivors) for n in range(5)})
    assert rounds[0].unmask(survivors, confirms) == rounds[0].unmask(survivors, confirms)


@pytest.mark.parametrize(
    "survivors",
    [
        Survivors((0, 1, 2, 3), (), {}),
        Survivors((0, 1, 2, 3, 4, 9), (), {}),
        Survivors((0, 0, 1, 2, 3, 4), (), {}),
    ],
)
def test_survivors_that_are_not_the_members_are_refused(survivors):
    _, _, rounds, _, _, _ = at_survivors()
    assert code_of(rounds[0].confirm, survivors) == "E_SCHEMA"


# 15


def test_abuse_15_two_sets_shown_to_two_halves_open_nothing():
    _, _, rounds, _, _, survivors = at_survivors(terms_of(8, min_cohort=5))
    other = Survivors((0, 1, 2, 4, 5, 6, 7), (3,), survivors.digests)
    shown = {n: other if n in (5, 6, 7) else survivors for n in range(8)}
    confirms = Confirmations({n: rounds[n].confirm(shown[n]) for n in range(8) if n != 3})
    assert {code_of(rounds[n].unmask, shown[n], confirms) for n in (0, 1, 5, 6)} == {"E_CONSISTENCY"}


def test_abuse_15_signatures_that_the_server_makes_up_or_repeats_do_not_count():
    _parties, _, rounds, _, _, survivors = at_survivors()
    own = rounds[0].confirm(survivors)
    forged = {n: Signed(n, own.body, own.signature) for n in range(5)}
    assert code_of(rounds[0].unmask, survivors, Confirmations(forged)) == "E_CONSISTENCY"
    repeated = dict.fromkeys(range(5), own)
    assert code_of(rounds[0].unmask, survivors, Confirmations(repeated)) == "E_CONSISTENCY"
    assert code_of(rounds[0].unmask, survivors) == "E_CONSISTENCY"


# 20


@pytest.mark.parametrize("num_sites", [3, 4])
def test_abuse_20_cohort_under_the_minimum_of_a_site_is_refused(num_sites):
    parties = Parties(terms_of(num_sites, min_cohort=3), policy=Policy(min_cohort=5))
    assert code_of(parties.sites[0].advertise) == "E_COHORT"


@pytest.mark.parametrize("num_sites", [1, 2])
def test_abuse_20_one_or_two_sites_are_no_cohort(num_sites):
    with pytest.raises(ValueError, match="3 sites"):
        terms_of(num_sites)
    with pytest.raises(ValueError, match="min_cohort is 3"):
        terms_of(5, min_cohort=num_sites)


def test_abuse_20_directory_under_the_minimum_is_refused_by_server_and_sites():
    parties = Parties(terms_of(6, min_cohort=5, topology=Topology(None, 4)), lost={"A1": (4, 5)})
    assert code_of(parties.advertise) == "E_COHORT"
    adverts = Directory({n: parties.sites[n].advertise() for n in range(4)})
    assert code_of(parties.sites[0].deal, adverts) == "E_COHORT"


def test_abuse_20_survivors_under_the_minimum_are_not_opened():
    terms = terms_of(6, min_cohort=5, topology=Topology(None, 4))
    parties = Parties(terms)
    hub_round, rounds = parties.begin(parties.setup())
    parties.lost = {4: "A4", 5: "A4"}
    parties.masked(hub_round, rounds, vectors_of(terms))
    assert code_of(hub_round.survivors) == "E_COHORT"
    lies = Survivors((0, 1, 2, 3), (4, 5), dict(hub_round._digests))
    assert code_of(rounds[0].confirm, lies) == "E_COHORT"
    assert code_of(rounds[0].unmask, lies) == "E_COHORT"


def test_abuse_20_terms_of_the_server_do_not_loosen_the_rule_of_a_site():
    policy = Policy(min_cohort=5)
    _, _, rounds, _, _, survivors = at_survivors(
        terms_of(6, topology=Topology(None, 4)), {"A4": (4, 5)}, policy
    )
    assert code_of(rounds[0].confirm, survivors) == "E_COHORT"
