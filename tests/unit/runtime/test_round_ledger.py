"""The ledger of rounds: what is read back, and when its lines are of another run."""

import json

import pytest

from fedray.errors import CheckpointError
from fedray.runtime.round_ledger import NAME, Line, RoundLedger

FACTS = {"plan": "p", "start": "s", "seed": "0"}


def line(number, attempt=0):
    return Line(round=number, attempt=attempt, asked=3, counted=2, status="counted",
                hashes={"server": f"{number:x}"}, lost={1: {"h01": "late"}})


def written(folder, numbers, run="a"):
    ledger = RoundLedger(folder, FACTS, run, 0, True)
    for number in numbers:
        ledger.write(line(number))
    return ledger


def test_lines_after_the_checkpoint_are_known_to_the_run_that_goes_on(tmp_path):
    written(tmp_path, range(5))
    again = RoundLedger(tmp_path, FACTS, "b", 3, False)
    assert again.known == {3: line(3), 4: line(4)}


def test_same_run_that_starts_again_before_its_first_checkpoint_knows_its_lines(tmp_path):
    written(tmp_path, range(2))
    assert RoundLedger(tmp_path, FACTS, "a", 0, True).known == {0: line(0), 1: line(1)}


@pytest.mark.parametrize(("facts", "run", "is_start"),
                         [(FACTS, "b", True), ({**FACTS, "seed": "1"}, "a", False)])
def test_lines_of_another_run_are_not_known_and_stay_in_the_file(tmp_path, facts, run, is_start):
    written(tmp_path, range(2))
    assert RoundLedger(tmp_path, facts, run, 0, is_start).known == {}
    assert RoundLedger(tmp_path, facts, run, 0, False).known == {}
    rounds = [json.loads(text).get("round") for text in (tmp_path / NAME).read_text().splitlines()]
    assert [number for number in rounds if number is not None] == [0, 1]


def test_last_line_of_a_round_counts(tmp_path):
    written(tmp_path, [0]).write(line(0, attempt=1))
    assert RoundLedger(tmp_path, FACTS, "a", 0, True).known[0].attempt == 1


def test_line_cut_off_by_a_kill_is_as_if_it_had_not_been_written(tmp_path):
    written(tmp_path, range(2))
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-5])
    ledger = RoundLedger(tmp_path, FACTS, "a", 0, True)
    ledger.write(line(1))
    assert RoundLedger(tmp_path, FACTS, "a", 0, True).known == {0: line(0), 1: line(1)}


def test_edited_ledger_is_refused_by_name(tmp_path):
    written(tmp_path, range(2))
    path = tmp_path / NAME
    path.write_text("edited\n" + path.read_text())
    with pytest.raises(CheckpointError, match=f"{NAME} cannot be read"):
        RoundLedger(tmp_path, FACTS, "a", 0, True)
