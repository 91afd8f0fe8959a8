"""`fedray diff`: the first round and value in which two runs differ, and their settings."""

import argparse
import json

import pytest

from fedray.errors import ConfigError
from fedray.report import commands, diff
from fedray.rundir import RunDirectory
from fedray.track import jsonl
from tests.unit import sample_run


def made(folder, records, config=sample_run.CONFIG):
    run = RunDirectory.create(folder, "icu", config, [], 0, path=folder / "run")
    tracker = jsonl(run.path)
    tracker.start(sample_run.plan(), {})
    for record in records:
        tracker.round(record)
    return run.path


def rounds(count=6, changed=None, **hashes):
    records = [sample_run.round_record(r) for r in range(count)]
    return [
        sample_run.round_record(record.round, hashes={**record.hashes, **hashes})
        if changed is not None and record.round >= changed
        else record
        for record in records
    ]


@pytest.fixture
def pair(tmp_path):
    def make(first, second, **changes):
        return made(tmp_path / "a", first), made(tmp_path / "b", second, **changes)

    return make


def test_equal_runs_have_no_difference(pair):
    found = diff.compare(*pair(rounds(), rounds()))
    assert found.is_same and found.settings == ()
    assert "no difference in 6 rounds" in diff.tell(found, "a", "b")[-1]


def test_first_round_and_value_that_differ_are_named(pair):
    found = diff.compare(*pair(rounds(), rounds(changed=2, delta="ffff", server="eeee")))
    assert (found.round, found.node, found.second) == (2, "delta", "ffff")
    lines = diff.tell(found, "a", "b")
    assert (
        "first difference: round 3, delta" in lines
        and lines[-1] == "  the 2 rounds before have the same bits"
    )


def test_server_is_named_where_only_its_state_differs(pair):
    found = diff.compare(*pair(rounds(), rounds(changed=0, server="eeee")))
    assert (found.round, found.node) == (0, "server")
    assert "first round" in diff.tell(found, "a", "b")[-1]


def test_value_that_one_run_lacks_is_a_difference(pair):
    found = diff.compare(*pair(rounds(), rounds(changed=1, extra="abcd")))
    assert (found.round, found.node, found.first) == (1, "extra", "-")


def test_settings_that_differ_are_listed(pair):
    found = diff.compare(*pair(rounds(), rounds(), config=sample_run.CONFIG.replace("mu: 0.1", "mu: 0.5")))
    assert found.settings == (("algorithm.mu", 0.1, 0.5),)
    assert found.is_same


def test_site_that_failed_is_told_though_the_bits_are_the_same(pair):
    second = rounds()
    second[3] = sample_run.round_record(3, [sample_run.failure()], asked=61)
    found = diff.compare(*pair(rounds(), second))
    assert found.is_same and ("round 4 failures", "none", "h017 ValueError") in found.course


def test_longer_run_is_not_the_same(pair):
    found = diff.compare(*pair(rounds(6), rounds(9)))
    assert not found.is_same and found.round is None
    assert diff.tell(found, "a", "b")[-1] == "B has 3 rounds more"


def test_run_without_a_round_is_refused(pair):
    with pytest.raises(ConfigError, match="no recorded round"):
        diff.compare(*pair(rounds(), []))


@pytest.mark.parametrize(("changed", "code"), [(None, 0), (1, 1)])
def test_exit_code_tells_whether_the_bits_are_the_same(pair, capsys, changed, code):
    a, b = pair(rounds(), rounds(changed=changed, delta="ffff"))
    parser = argparse.ArgumentParser()
    commands.add_parser(parser.add_subparsers(dest="command"))
    assert commands.run(parser.parse_args(["diff", str(a), str(b), "--json"])) == code
    assert json.loads(capsys.readouterr().out)["is_same"] is (code == 0)
