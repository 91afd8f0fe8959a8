"""What a site has answered stays answered over repeats, restarts and a torn disk; no sum isolates a few."""

import json
import os

import numpy as np
import pytest

from fedray.errors import SecrecyError
from fedray.secrecy.journal import Answers, Journal
from fedray.secrecy.keys import sha256
from fedray.secrecy.messages import Confirmations, Signed, Survivors
from fedray.secrecy.site_round import refuse_lost
from fedray.secrecy.terms import Policy
from tests.unit.secrecy.parties import MODEL, Parties, at_survivors, code_of, terms_of, vectors_of

ONE, TWO = sha256(b"one"), sha256(b"two")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def steps_of(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_answer_is_on_disk_before_it_is_given(path, monkeypatch):
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: seen.append(path.read_text()) or fsync(file))
    answers = Answers(Journal(path), "run", 3)
    answers.once("A4", b"", lambda: Signed(0, b"words", b""))
    assert '"step": "A4"' in seen[-1]


def test_journal_remembers_across_a_restart(path):
    Journal(path).record("run", 3, "A5", ONE, release=("model", "code", frozenset({"a", "b"})))
    again = Journal(path)
    assert again.digest("run", 3, "A5") == ONE and again.digest("run", 4, "A5") is None
    assert again.releases == [("model", "code", frozenset({"a", "b"}))]


def test_same_answer_is_recorded_once_and_another_refused(path):
    journal = Journal(path)
    journal.record("run", 3, "A4", ONE)
    journal.record("run", 3, "A4", ONE)
    assert code_of(journal.record, "run", 3, "A4", TWO) == "E_REPLAY"
    assert steps_of(path) == ["A4"]


def test_rounds_and_runs_are_apart(path):
    journal = Journal(path)
    for run, round, step in (("run", 3, "A4"), ("run", 4, "A4"), ("other", 3, "A4"), ("run", 3, "A5")):
        journal.record(run, round, step, sha256(f"{run}{round}{step}".encode()))
    assert len(steps_of(path)) == 4


def test_torn_last_line_was_never_answered_for_and_is_cut_off(path):
    Journal(path).record("run", 3, "A4", ONE)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-5])
    Journal(path).record("run", 3, "A4", ONE)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", [b"no json\n", b"{}\n", b"[1]\n", b'{"run": 1, "round": 2, "step": "A", "sha256": "x"}\n']
)
def test_unreadable_journal_is_refused(path, line):
    path.write_bytes(line)
    with pytest.raises(SecrecyError, match="E_JOURNAL"):
        Journal(path)


def test_journal_is_readable_by_its_owner_alone(path):
    Journal(path)
    assert path.stat().st_mode & 0o777 == 0o600


# 14, 24


def journalled(tmp_path, terms):
    """Return parties whose sites write journals, in the middle of a round."""
    journals = [Journal(tmp_path / f"{n}.jsonl") for n in range(len(terms.cohort))]
    parties = Parties(terms, journals=journals)
    hub_round, rounds = parties.begin(parties.setup())
    vectors = vectors_of(terms)
    parties.masked(hub_round, rounds, vectors)
    return parties, hub_round, rounds, vectors


def test_abuse_14_restarted_site_refuses_another_set_from_its_journal(tmp_path):
    _parties, hub_round, rounds, _ = journalled(tmp_path, terms_of(5))
    survivors = hub_round.survivors()
    rounds[0].confirm(survivors)
    restarted = Journal(tmp_path / "0.jsonl")
    fewer = Survivors((0, 1, 2, 3), (4,), survivors.digests)
    context = rounds[0].context
    assert code_of(refuse_lost, restarted, "run", 0, fewer, context) == "E_UNMASK_TWICE"
    assert code_of(refuse_lost, restarted, "run", 0, survivors, context) == "E_LOST"


def test_abuse_24_restarted_site_does_not_begin_a_batch_again(tmp_path):
    parties, _, _, _ = journalled(tmp_path, terms_of(5))
    parties.journals[0] = Journal(tmp_path / "0.jsonl")
    assert code_of(parties.site(0).advertise) == "E_STALE"


def test_abuse_24_second_execution_of_a_mask_sends_the_first_words_again(tmp_path):
    """Ray may run a task again: other training noise under the same masks would show the difference."""
    _parties, _, rounds, vectors = journalled(tmp_path, terms_of(5))
    first, signed = rounds[0].mask(vectors[0].copy())
    again, signed_again = rounds[0].mask(vectors[0] + np.uint32(1))
    assert (again == first).all() and signed_again == signed
    assert steps_of(tmp_path / "0.jsonl").count("A4") == 1


def test_abuse_24_words_that_were_changed_after_masking_are_not_sent():
    _, _, rounds, vectors, _, _ = at_survivors()
    words, _ = rounds[0].mask(vectors[0].copy())
    words[0] += 1
    assert code_of(rounds[0].mask, vectors[0]) == "E_REPLAY"


def test_abuse_24_mask_of_a_step_that_was_journalled_elsewhere_is_refused():
    """A copy of the process (a task run twice) shares the journal: one of the two is refused."""
    terms = terms_of(5)
    parties = Parties(terms)
    _, rounds = parties.begin(parties.setup())
    parties.journals[0].record("run", 0, "A4", ONE)
    assert code_of(rounds[0].mask, vectors_of(terms)[0]) == "E_REPLAY"


def test_whole_round_leaves_each_step_once_in_the_journal(tmp_path):
    parties, hub_round, rounds, _ = journalled(tmp_path, terms_of(5))
    parties.unmask(hub_round, rounds, hub_round.survivors())
    assert steps_of(tmp_path / "2.jsonl") == ["A1", "A3", "A3c", "A4", "A5", "A6", "A7"]


def test_step_asked_again_with_another_question_is_refused():
    terms = terms_of(8)
    parties = Parties(terms)
    directory = parties.advertise()
    parties.sites[0].deal(directory)
    fewer = type(directory)({n: directory.adverts[n] for n in range(7)})
    assert code_of(parties.sites[0].deal, fewer) == "E_REPLAY"


def test_round_begun_for_one_model_is_not_begun_for_another():
    parties = Parties(terms_of(5))
    members = parties.setup()
    begun = parties.sites[0].round(members, 0, MODEL)
    assert parties.sites[0].round(members, 0, MODEL) is begun
    assert code_of(parties.sites[0].round, members, 0, b"other") == "E_REPLAY"


@pytest.mark.parametrize(("round", "code"), [(-1, "E_STALE"), (2, "E_FUTURE")])
def test_round_outside_the_batch_is_refused(round, code):
    parties = Parties(terms_of(5, num_rounds=2))
    members = parties.setup()
    assert code_of(parties.sites[0].round, members, round, MODEL) == code


# 21


def summed(journals, cohort, run, policy, trainer=""):
    """Run a whole round of some sites on the one model; return the code of a refusal, None if it ends."""
    terms = terms_of(len(cohort), cohort=cohort, run_id=run, server="curious")
    parties = Parties(terms, policy=policy, journals=[journals[name] for name in cohort])
    members = parties.setup()
    try:
        rounds = {n: parties.sites[n].round(members, 0, MODEL, trainer) for n in members.sites}
    except SecrecyError as error:
        return error.code
    hub_round = parties.hub.round(0, MODEL)
    total = parties.masked(hub_round, rounds, vectors_of(terms))
    parties.unmask(hub_round, rounds, hub_round.survivors())
    hub_round.result(total)
    return None


EIGHT = tuple("abcdefgh")


@pytest.mark.parametrize(
    ("second", "trainer", "has_dp", "code"),
    [
        (EIGHT[:7], "", False, "E_DIFFERENCING"),  # one site fewer: the difference is its vector
        (EIGHT[:6], "other code", False, "E_DIFFERENCING"),
        (EIGHT[:5], "", False, "E_DIFFERENCING"),  # the same code on the same model, another set
        (EIGHT[:5], "other code", False, None),
        (EIGHT, "", False, None),  # a round that was given up is run again
        (EIGHT[:7], "", True, None),
    ],
)
def test_abuse_21_sum_of_one_model_that_isolates_a_few_is_refused(second, trainer, has_dp, code):
    policy = Policy(min_cohort=3, min_delta=3, has_dp=has_dp)
    journals = {name: Journal() for name in EIGHT}
    assert summed(journals, EIGHT, "first", policy) is None
    assert summed(journals, second, "second", policy, trainer) == code


def test_a_second_set_differs_by_three_sites_and_there_is_no_third():
    policy, journals = Policy(min_cohort=3, second_set=True), {name: Journal() for name in EIGHT}
    assert summed(journals, EIGHT, "first", policy) is None
    assert summed(journals, EIGHT[:6], "two fewer", policy) == "E_DIFFERENCING"
    assert summed(journals, EIGHT[:5], "three fewer", policy) is None
    assert summed(journals, EIGHT[:4], "one fewer", policy) == "E_DIFFERENCING"
    assert summed(journals, EIGHT[1:4], "a third", policy) == "E_DIFFERENCING"
    assert summed(journals, EIGHT, "the first again", policy) is None


def test_abuse_21_losing_a_site_after_the_masks_isolates_it_too():
    policy = Policy(min_cohort=3)
    journals = {name: Journal() for name in EIGHT}
    assert summed(journals, EIGHT, "first", policy) is None
    terms = terms_of(8, cohort=EIGHT, run_id="second", server="curious")
    parties = Parties(terms, {"A4": (7,)}, policy, list(journals.values()))
    assert code_of(parties.sum, vectors_of(terms)) == "E_DIFFERENCING"


def test_round_without_an_opened_sum_does_not_count():
    policy = Policy(min_cohort=3)
    journals = {name: Journal() for name in EIGHT}
    terms = terms_of(8, cohort=EIGHT, run_id="first")
    parties = Parties(terms, policy=policy, journals=list(journals.values()))
    hub_round, rounds = parties.begin(parties.setup())
    parties.masked(hub_round, rounds, vectors_of(terms))
    survivors = hub_round.survivors()
    confirms = Confirmations({0: rounds[0].confirm(survivors)})
    assert code_of(rounds[0].unmask, survivors, confirms) == "E_CONSISTENCY"
    assert summed(journals, EIGHT[:7], "second", policy) is None
