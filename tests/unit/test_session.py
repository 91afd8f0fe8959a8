"""A run in a process of its own as the command sees it; a few lines of Python play the other process."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from fedray import cli, session
from fedray.config import compose_run
from fedray.experiment import asked_for

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("experiment=debug", "runtime=ray_local")
PLAYER = """\
import json, os, pickle, signal, sys
from multiprocessing.connection import Connection
sys.path[:] = json.loads(sys.argv[2])
from fedray import errors
from fedray.runtime.records import EvaluationRecord, RoundRecord
events = Connection(int(sys.argv[1]), readable=False)
asked, is_shown, phases_are_wanted = pickle.load(sys.stdin.buffer)
tell = lambda *event: events.send(event)
"""
ROUND = "RoundRecord(round=0, attempt=0, metrics={'loss': 0.5}, asked=4, counted=4, failures=(), " \
        "seconds=0.1, bytes_up=10, bytes_down=10)"
SUMMARY = {"stopped": "done", "rounds": 1, "seconds": 1.0, "bytes_up": 10, "bytes_down": 10}


@pytest.fixture
def play(tmp_path, monkeypatch, capfd):
    """Return a function that runs the command against a made-up process; it returns code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(script, *words):
        monkeypatch.setattr(session, "BOOT", PLAYER + script)
        code = cli.main(["run", *WORDS, *words])
        return (code, *capfd.readouterr())

    return run


def test_rounds_and_the_end_are_shown_as_in_process(play):
    code, out, _ = play(f"tell('opened', 'debug', 1, 'runs/x'); tell('tell', 'start', None, {{'sites': 4}})\n"
                        f"tell('tell', 'round', {ROUND}); tell('tell', 'finish', None)\n"
                        f"tell('tell', 'close', {SUMMARY}, 'in runs/x'); tell('done', 'done', {SUMMARY})")
    assert code == 0
    assert out.splitlines() == ["debug · 4 sites", "round   1/1  4/4 sites  loss 0.5  0.1 s  10 B up",
                                "done: 1 rounds in 1.0 s, 10 B up and 10 B down in all", "in runs/x"]


def test_json_prints_the_summary_alone(play):
    code, out, err = play(f"assert not is_shown; tell('done', 'done', {SUMMARY})", "--json")
    assert (code, json.loads(out), err) == (0, SUMMARY, "")


@pytest.mark.parametrize(("raised", "code", "said"), [
    ("errors.ConfigError(['a=1: wrong. Fix: a=2', 'b=1: wrong. Fix: b=2'])", 2, "    fix: b=2"),
    ("errors.DataError('north: no column age')", 2, "fedray: the data cannot be used"),
    ("errors.QuorumError('3 of 4')", 3, "fedray: too few sites were counted"),
    ("errors.HostError('gone')", 1, "  - gone"), ("KeyboardInterrupt()", 130, "fedray: interrupted")])
@pytest.mark.parametrize("kind", ["failed", "refused"])
def test_errors_reach_the_terminal_with_their_exit_code(play, kind, raised, code, said):
    found, out, err = play(f"tell({kind!r}, {raised})")
    assert (found, out) == (code, "") and said in err.splitlines() and "Traceback" not in err


def test_mistake_in_the_other_process_is_shown_as_its_traceback(play):
    code, _, err = play("tell('crashed'); raise RuntimeError('no space left')")
    assert code == 1 and "Traceback" in err and "RuntimeError: no space left" in err


def test_process_that_dies_is_told_with_what_to_do(play):
    code, _, err = play("os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 1 and "gone (exit code -9)" in err and "fedray resume" in err


def test_what_the_process_prints_is_printed(play):
    code, out, err = play(f"print('from a model'); print('a warning', file=sys.stderr)\n"
                          f"tell('done', 'done', {SUMMARY})")
    assert code == 0 and "from a model" in out and "a warning" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_is_handed_on_and_ends_with_130(play, number):
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(0.0, _send_when_it_listens, [number]).start()
    code, _, _ = play("signal.signal(signal.SIGINT, lambda *_: tell('done', 'interrupted', {}))\n"
                      "open('listens', 'w').close(); signal.pause()", "--json")
    assert code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == before


def _send_when_it_listens(number):
    while not Path("listens").exists():
        threading.Event().wait(0.01)
    os.kill(os.getpid(), number)


def test_process_is_asked_to_end_when_the_command_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "BOOT", PLAYER + "tell('opened', '', 1, ''); os.read(0, 1)\n"
                                                  "open('asked to end', 'w').close()")
    running = session.launch(asked_for(compose_run(list(WORDS))), is_shown=True)
    with pytest.raises(BrokenPipeError):
        running.follow(_no_screen)
    assert Path("asked to end").exists()


def _no_screen(*_, **__):
    raise BrokenPipeError


@pytest.mark.slow
def test_job_in_the_background_of_a_shell_is_ended_by_sigterm_though_it_ignores_ctrl_c(tmp_path):
    words = [sys.executable, "-m", "fedray", "run", "experiment=debug", "rounds=1000000", "report=none"]
    shell = subprocess.Popen(["bash", "-c", f"{shlex.join(words)} & wait $!"], cwd=tmp_path, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {
                                 "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"})  # fmt: skip
    next(line for line in shell.stdout if line.startswith("round"))
    (job,) = psutil.Process(shell.pid).children()
    job.send_signal(signal.SIGTERM)
    out, _ = shell.communicate(timeout=120)
    assert shell.returncode == cli.INTERRUPTED and "go on with: fedray resume runs/" in out
    assert (tmp_path / "runs" / "latest" / "STATUS").read_text().startswith("interrupted")
