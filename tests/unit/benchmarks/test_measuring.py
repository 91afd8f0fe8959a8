"""The sampler sees what a program's tree of processes uses: threads, children, and children that ended."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import measuring
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sampler reads /proc")

BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"
ENDED = "import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}]); print(flush=True); input()"
LIVE = "{code}\nprint(flush=True); input()"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    programs: list[subprocess.Popen[str]] = []
    yield programs
    for program in programs:
        if program.poll() is None:
            program.communicate("\n")


def run(program: str, started: list[subprocess.Popen[str]]) -> measuring.ProcessTree:
    """Start a program, wait until it says a line, and return its tree."""
    started.append(subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True))
    started[-1].stdout.readline()
    return measuring.ProcessTree(started[-1].pid)


def test_cpu_of_a_running_program_agrees_with_its_own_clock(started: list[subprocess.Popen[str]]) -> None:
    tree = run(LIVE.format(code=BURN.format(seconds=0.2)), started)
    assert 0.2 <= tree.cpu_s() < 0.3


def test_cpu_of_a_child_that_ended_is_counted(started: list[subprocess.Popen[str]]) -> None:
    tree = run(ENDED.format(code=BURN.format(seconds=0.3)), started)
    assert 0.3 <= tree.cpu_s() < 0.6


def test_cpu_of_a_forgotten_child_is_what_was_last_seen(started: list[subprocess.Popen[str]]) -> None:
    child = BURN.format(seconds=0.3) + "print(flush=True); input()"
    program = ("import signal, subprocess, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
               f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=-1, stdout=-1); "
               "p.stdout.readline(); print(flush=True); input(); p.communicate(b'x\\n'); "
               "print(flush=True); input()")
    tree = run(program, started)
    seen = tree.cpu_s()
    started[0].stdin.write("on\n")
    started[0].stdin.flush()
    started[0].stdout.readline()
    assert seen >= 0.3 and tree.cpu_s() >= seen


def test_process_clock_is_finer_than_a_tick() -> None:
    began = measuring.process_cpu_s(os.getpid())
    while (now := measuring.process_cpu_s(os.getpid())) - began < 1e-4:
        pass
    assert now - began < 1 / measuring.TICKS


def test_cpu_of_no_process_is_refused() -> None:
    with pytest.raises(ProcessLookupError):
        measuring.process_cpu_s(2**22 + 1)  # above the largest process id of Linux


def test_memory_counts_private_and_shared_pages_once(started: list[subprocess.Popen[str]]) -> None:
    program = ("import mmap, os; kept = bytearray(b'x') * (40 << 20); shared = mmap.mmap(-1, 30 << 20); "
               "shared.write(b'y' * (30 << 20)); child = os.fork()\n"
               "if child == 0:\n    shared[0:30 << 20]; import time; time.sleep(30)\n"
               "print(flush=True); input(); os.kill(child, 9); os.wait()")
    tree = run(program, started)
    time.sleep(0.1)  # the child reads the shared pages after the fork
    found = tree.memory()
    assert 70 << 20 <= found.total < 110 << 20


def test_what_a_program_leaves_behind_is_ended(started: list[subprocess.Popen[str]]) -> None:
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1)"
    tree = run(f"{child}; print(flush=True); input()", started)
    _, left = tree.processes()
    started[0].communicate("\n")
    assert left.is_running()
    assert measuring.end_what_is_left(tree) == 1
    assert not left.is_running()


def test_gemm_rate_is_that_of_a_processor() -> None:
    assert 1e9 < measuring.gemm_rate(runs=3, size=256) < 1e13
