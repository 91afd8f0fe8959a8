"""Faults on purpose: a schedule of each kind on a real cluster, and a minute and a half of random ones."""

import collections
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.faults import judge, kinds, study
from experiments.testbed import why_not
from experiments.testbed.hosts import program

ROOT = Path(__file__).resolve().parents[2]
LEAST_KINDS = 12
LIMIT_S = 900.0
on_hosts = [
    pytest.mark.cluster, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(LIMIT_S + 60),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.skipif(not program("redis-server"), reason="needs redis-server"),
]  # fmt: skip


def chaos(folder, *words):
    """Return what the command told, and what it printed."""
    command = [sys.executable, "-m", "experiments.chaos", *words, "--out", str(folder / "told.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (folder / "told.json").exists(), done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "told.json").read_text()), done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("_", [pytest.param(None, marks=on_hosts)])
def test_one_fault_of_each_kind_breaks_no_invariant(tmp_path, _):
    told, said = chaos(tmp_path, "--each")
    assert told["failed"] == 0, said
    assert len(told["kinds"]) >= LEAST_KINDS and told["counted"] >= LEAST_KINDS, said


@pytest.mark.parametrize("_", [pytest.param(None, marks=on_hosts)])
def test_random_faults_leave_the_right_bits_and_no_leak(tmp_path, _):
    told, said = chaos(tmp_path, "--hours", "0.025")
    assert told["problems"] == [] and told["rounds"] > 0, said
    assert sum(told["faults"].values()) >= 3, said


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
