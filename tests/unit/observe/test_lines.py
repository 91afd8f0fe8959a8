"""Files of lines: whole on a full disk, mended after a kill, readable whatever happened to a line."""

import json
import resource

import pytest

from fedray import cli
from fedray.observe import log, status, trace
from fedray.observe.lines import LineFile, read_lines
from fedray.runtime.observed import Observed, Span
from tests.unit.observe.test_log import observed
from tests.unit.observe.test_status import running, shown


@pytest.fixture
def room():
    """Return what limits the size of files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_line_that_finds_no_room_is_lost_whole_and_counted(tmp_path, room):
    file = LineFile(tmp_path / "lines")
    assert file.append("a" * 50)
    room(80)
    assert not file.append("b" * 50) and file.lost == 1
    assert file.append("c" * 20)
    room(10**9)
    assert file.append("d") and (tmp_path / "lines").read_text() == f"{'a' * 50}\n{'c' * 20}\nd\n"


def test_log_says_how_many_lines_found_no_room(run, room):
    written = log.RunLog(run)
    written.say("first")
    room((run / log.FILE).stat().st_size + 5)
    written.say("second")
    written.say("third")
    room(10**9)
    written.say("fourth")
    written.close()
    said = [line["message"] for line in log.arrived(run)]
    assert said == ["first", "2 lines before this one found no room on the disk", "fourth"]


def test_line_that_a_kill_has_cut_off_is_cut_away_before_the_next(tmp_path):
    (tmp_path / "lines").write_text('{"a": 1}\n{"b": ')
    file = LineFile(tmp_path / "lines")
    file.append('{"c": 3}')
    assert read_lines(tmp_path / "lines") == ([{"a": 1}, {"c": 3}], 0)


def test_logs_leave_out_what_cannot_be_read_and_say_so(run, capsys):
    observed(run)
    whole = (run / log.FILE).read_text()
    (run / log.FILE).write_text('{"time": "2026{"\n7\n' + whole)
    assert cli.main(["logs", "runs/latest"]) == 0
    said = capsys.readouterr()
    assert "round 3" in said.out and said.err.startswith(f"2 lines of {log.FILE} cannot be read")


def test_logs_of_an_unknown_site_say_which_there_are(run, capsys):
    observed(run, failing=[(1, "h017", "ValueError")])
    assert cli.main(["logs", "runs/latest", "--site", "nosuch"]) == 0
    said = capsys.readouterr()
    assert said.out == "" and "h017" in said.err and "rounds 0 to 3" in said.err


def test_timeline_without_room_stays_as_it_is(run, room, monkeypatch):
    monkeypatch.setattr(trace, "MAX_CELLS", 40)
    file = trace.TimelineFile(run)
    file.start(0)
    for number in range(12):
        if number == 1:
            room((run / trace.FILE).stat().st_size + 20)
        spans = (Span("pack0", "compute", 1.0 + number, 1.5 + number, number, 1, ("h001",)),)
        file.round(number, Observed(spans=spans, began=1.0 + number, ended=2.0 + number))
    room(10**9)
    file.close()
    assert [line["round"] for line in trace.load(run).lines] == [0]
    assert not (run / trace.FILE).with_suffix(".part").exists()


def test_status_that_was_left_empty_is_told_by_its_age(run, capsys, monkeypatch):
    running(run)
    (run / status.FILE).write_text("")
    assert "running" in shown(capsys, "runs/latest").splitlines()[0]
    monkeypatch.setattr(status, "SILENT_S", -1.0)
    assert json.loads(shown(capsys, "runs/latest", "--json"))["state"] == "crashed"
