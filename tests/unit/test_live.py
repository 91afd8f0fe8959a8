"""The view of a run: a table on a terminal, plain lines elsewhere, always within 80 columns."""

import io
import sys

import pytest
from rich.console import Console

from fedray.live import clock, closing_lines, is_plain, size, view
from fedray.rundir import RunDirectory
from tests.unit import sample_run


@pytest.fixture(autouse=True)
def no_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)


def console(is_terminal, width=80):
    return Console(
        file=io.StringIO(),
        force_terminal=is_terminal,
        force_jupyter=False,
        width=width,
        color_system=None,
        highlight=False,
    )


def printed(screen, found):
    with view("icu · fedprox mu=0.1", 12, directory="runs/x", console=screen) as shown:
        sample_run.replay(shown, found)
    return screen.file.getvalue()


def test_pipe_gets_one_plain_line_a_round():
    lines = printed(console(False), sample_run.result()).splitlines()
    assert len([line for line in lines if line.startswith("round")]) == 12
    assert "\x1b" not in "".join(lines)


def test_failed_site_is_told_in_the_line_of_its_round():
    lines = printed(console(False), sample_run.result()).splitlines()
    (line,) = [line for line in lines if "failed" in line]
    assert line.startswith("round   4/12") and "59/60 sites" in line and "h017 (stage 1, ValueError)" in line


def test_epsilon_is_told_in_the_line_of_its_round():
    record = sample_run.round_record(0, epsilon=1.2345)
    assert "ε 1.23" in printed(console(False), sample_run.result(metrics=[record], evaluations=[]))


def test_many_failures_are_shortened_and_counted():
    record = sample_run.round_record(0, [sample_run.failure(f"h{i:03}") for i in range(9)])
    text = printed(console(False), sample_run.result(metrics=[record], evaluations=[]))
    assert "9 failed: h000" in text and "and 6 more" in text and "h003" not in text


def test_validation_is_told_with_the_spread_over_hospitals():
    text = printed(console(False), sample_run.result())
    assert "valid rows: AUROC ." in text and "p10" in text and "calibration slope 1.05" in text


def test_round_below_quorum_says_that_it_was_skipped():
    record = sample_run.round_record(0, status="skipped")
    assert "below quorum" in printed(console(False), sample_run.result(metrics=[record], evaluations=[]))


def test_terminal_gets_a_table_within_80_columns():
    text = printed(console(True), sample_run.result())
    frame = text.rsplit("\x1b[2K", 1)[-1]
    assert "AUROC [p10 p50 p90]" in text and "12/12" in text and "lowest AUROC now" in text
    assert max(len(line) for line in frame.splitlines()) <= 80


def interrupted(screen):
    with view("icu", 2, console=screen) as shown:
        shown.start(sample_run.plan(), {})
        raise KeyboardInterrupt


def test_terminal_is_given_back_after_an_error():
    screen = console(True)
    with pytest.raises(KeyboardInterrupt):
        interrupted(screen)
    assert screen.file.getvalue().count("\x1b[?25h") == 1  # the cursor is shown again


@pytest.mark.parametrize("value", ["1", "true"])
def test_ci_gets_plain_lines_on_a_terminal(monkeypatch, value):
    monkeypatch.setenv("CI", value)
    assert is_plain(console(True))
    monkeypatch.delenv("CI")
    assert not is_plain(console(True))


def test_notebook_gets_plain_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert is_plain(console(True))


def test_run_ends_with_figures_cost_and_what_to_open(tmp_path):
    told = RunDirectory.create(tmp_path, "icu", "", [], 0).write_result(sample_run.result())
    screen = console(False)
    view("icu", 12, console=screen).close(told, "open runs/latest/report.html")
    lines = screen.file.getvalue().splitlines()
    assert lines[0].startswith("test rows: AUROC 0.") and "(DeLong)" in lines[0]
    assert (
        lines[-2].startswith("done: 12 rounds in 0:14, 4.8 MB up")
        and lines[-1] == "open runs/latest/report.html"
    )
    assert max(map(len, lines)) <= 80


def test_interrupted_run_ends_without_a_test(tmp_path):
    found = sample_run.result(stopped="interrupted", evaluations=[])
    told = RunDirectory.create(tmp_path, "icu", "", [], 0).write_result(found)
    assert closing_lines(told) == ["interrupted: 12 rounds in 0:14, 4.8 MB up and 2.4 MB down in all"]


@pytest.mark.parametrize(
    ("number", "text"), [(12, "12 B"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (3e9, "3.0 GB")]
)
def test_size_has_a_unit(number, text):
    assert size(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(8.24, "8.2 s"), (103, "1:43"), (3723, "1:02:03")])
def test_clock_reads_like_a_watch(seconds, text):
    assert clock(seconds) == text
