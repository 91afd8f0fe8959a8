"""Faults on purpose: how schedules are drawn, and that the judge of them sees what is wrong."""

import collections
import json
import re

import pytest

from experiments.faults import judge, kinds, study


def test_schedules_are_drawn_from_their_seed_alone_and_cover_kinds_and_points():
    drawn = [kinds.draw(1, number) for number in range(200)]
    assert drawn == [kinds.draw(1, number) for number in range(200)]
    assert drawn != [kinds.draw(2, number) for number in range(200)]
    points = collections.defaultdict(set)
    for each in drawn:
        points[each.kind].add(each.point)
    assert set(points) == set(kinds.KINDS) and all(len(found) >= 4 for found in points.values())
    assert {each.point for each in drawn} == set(kinds.POINTS)
    assert f"--seed 1 --only {drawn[17].number}" in drawn[17].replay


def test_who_is_held_is_asked_in_that_round():
    for each in (kinds.draw(3, number) for number in range(300)):
        if each.point == "train":
            assert each.who in study.cohort(each.round)
        if each.point in ("received", "answered"):
            assert each.who in {study.pack_of(site) for site in study.cohort(each.round)}


def course(tmp_path, expected, **changed):
    """Return the course of an undisturbed run, as a cluster would tell it, with something changed."""
    rounds = [
        {"event": "round", "round": number, "attempt": 0, "server": expected.servers[number],
         "counted": expected.counted[number], "status": expected.status[number], "lost": []}
        for number in range(kinds.ROUNDS)
    ]  # fmt: skip
    for number, other in changed.get("rounds", {}).items():
        rounds[number] |= other
    end = {"event": "end", "sha256": changed.get("sha256", expected.sha256)}
    return judge.Course([[*rounds, end]], tmp_path, tmp_path, 0)


@pytest.mark.parametrize(("changed", "problem"), [
    ({}, ""),
    ({"sha256": "0" * 64}, "the last parameters differ"),
    ({"rounds": {2: {"server": "other"}}}, "round 2 came to"),
    ({"rounds": {3: {"lost": [["h002", "late"]]}}}, "the last parameters differ"),
    ({"rounds": {1: {"round": 2}}}, r"rounds \[1\] of 6 were not told"),
])  # fmt: skip
def test_judge_sees_other_bits(tmp_path, changed, problem):
    expected = judge.undisturbed("fedadam", kinds.ROUNDS)  # whose sites keep nothing
    found = " ".join(judge.same_bits(course(tmp_path, expected, **changed), "fedadam", kinds.ROUNDS))
    assert (problem == "") == (found == "")
    assert re.search(problem, found)


def test_judge_misses_what_sites_keep(tmp_path):
    told = course(tmp_path, judge.undisturbed("ditto", kinds.ROUNDS))
    (problem,) = judge.same_bits(told, "ditto", kinds.ROUNDS)
    assert problem.startswith("what sites keep differs:  instead of ")


LINES = [{"ledger": 1, "run": "a"}, {"round": 0, "attempt": 0, "hashes": {"server": "x"}}]


@pytest.mark.parametrize(("lines", "problem"), [
    (LINES, ""),
    ([*LINES, LINES[1]], "round 0 is in the ledger 2 times"),
    ([*LINES, {"ledger": 1, "run": "b"}, LINES[1]], ""),  # started anew
    ([LINES[0], {**LINES[1], "hashes": {"server": "y"}}], "round 0 has other bits in the ledger"),
    ([LINES[0]], r"the ledger has rounds \[\]"),
])  # fmt: skip
def test_judge_sees_what_is_wrong_with_a_ledger(tmp_path, lines, problem):
    (tmp_path / "rounds-ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = {"event": "round", "round": 0, "server": "x", "lost": []}
    seen = judge.Course([[told]], tmp_path, tmp_path, 0)
    found = " ".join(judge.sound_ledger(seen, is_whole=True, rounds=1))
    assert (problem == "") == (found == "") and re.search(problem, found)


def test_judge_sees_who_was_trained_twice(tmp_path):
    marks = [{"point": "train", "round": 0, "who": site} for site in ("h001", "h002", "h001")]
    (tmp_path / "marks").write_text("".join(json.dumps(mark) + "\n" for mark in marks))
    assert list(judge.trained_once(tmp_path)) == ["h001 was trained 2 times in round 0"]
