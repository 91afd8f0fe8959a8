"""A run on Ray as the command sees it: the work is in a process of its own, this one shows it.

    fedray run (this file)  --- what is asked, Ctrl-C -->  session_process.py: fit and the aggregator
      no torch, no Ray      <-- rounds, figures, errors -    |-- pack0, pack1, ... (actors of its Ray)

The other process starts Ray while it imports torch and builds the experiment. It ends when this one does,
however this one ends: the pipe to its standard input is its life line.
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import connection
from typing import IO, Any

from fedray import phases
from fedray.errors import HostError
from fedray.experiment import Asked, Show
from fedray.runtime.ray_environment import WORKER_ENVIRONMENT

ENDS_WITHIN_S = 20.0  # Ray needs 1 to 2 s for its own end on an idle machine
OUTPUT_ENDS_WITHIN_S = 2.0
# a job in the background of a shell ignores Ctrl-C, which is how this command says that it is over
BOOT = "import json, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); " \
       "sys.path[:] = json.loads(sys.argv[2]); from fedray import session_process; " \
       "session_process.main(int(sys.argv[1]))"


@dataclass(frozen=True, slots=True)
class Ended:
    """What a run came to, as far as the command has to know."""

    stopped: str
    summary: Mapping[str, Any]


class Crashed(Exception):
    """The other process met an error that is not one of ours; its traceback has been printed."""


class Running:
    """A run in its own process; `follow` must be called once, and ends it."""

    def __init__(self, process: "subprocess.Popen[bytes]", events: "connection.Connection") -> None:
        self._process, self._events = process, events

    def follow(self, show: Show) -> Ended:
        """Show the run until its end.

        Raises what the run raises; HostError where its process is gone, Crashed where it met a mistake.
        """
        process = self._process
        printing = [_copied(process.stdout, lambda: sys.stdout), _copied(process.stderr, lambda: sys.stderr)]
        told = _Told(show)
        try:
            with told.stack, _passing_interrupts_to(process) as interrupts:
                for event in _until_the_end(self._events):
                    told.take(*event)
                    if told.ended is not None:
                        return told.ended
            if interrupts:
                raise KeyboardInterrupt
            raise HostError(f"the aggregator's process is gone (exit code {process.wait()}): go on with "
                            "`fedray resume`")
        finally:
            _end(process, printing, told)


def launch(asked: Asked, is_shown: bool) -> Running:
    """Start to train on Ray, in a process of its own."""
    events, sender = connection.Pipe(duplex=False)
    words = [sys.executable, "-P", "-c", BOOT, str(sender.fileno()), json.dumps(sys.path)]
    # a session of its own: Ctrl-C of the terminal comes through this process alone, and once
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               pass_fds=(sender.fileno(),), start_new_session=True,
                               env={**os.environ, **WORKER_ENVIRONMENT})
    sender.close()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended at once: no event says so
        process.stdin.write(pickle.dumps((asked, is_shown, phases.are_wanted())))
        process.stdin.flush()
    return Running(process, events)


def _copied(stream: IO[bytes] | None, target: Callable[[], Any]) -> threading.Thread:
    """Print what the other process prints, through this one's streams, which the view may have replaced."""
    def copy() -> None:
        for line in stream or ():
            with contextlib.suppress(BrokenPipeError):  # nobody reads any more, and the run goes on
                target().write(line.decode(errors="replace"))
                target().flush()
    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def _until_the_end(events: "connection.Connection") -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            yield events.recv()


@contextlib.contextmanager
def _passing_interrupts_to(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Hand Ctrl-C on: the first ends the run after the round, the second at once, the third ends this one.

    The second cuts the life line: Ray looks for signals once a second, and takes two within it for one.
    """
    passed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield passed
        return
    before = signal.getsignal(signal.SIGINT)

    def hand_on(number: int, frame: Any) -> None:
        passed.append(number)
        if len(passed) == 1:
            process.send_signal(signal.SIGINT)
        else:
            _cut_life_line(process)
            signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hand_on)
    try:
        yield passed
    finally:
        signal.signal(signal.SIGINT, before)


def _end(process: "subprocess.Popen[bytes]", printing: list[threading.Thread], told: "_Told") -> None:
    """Wait for the other process to end by itself where it is over, ask it to where not; else kill it."""
    if not told.is_over:
        _cut_life_line(process)
    if told.is_refused:
        return  # it ends its Ray, which may not even have started yet; nobody has to wait for that
    try:
        process.wait(ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for thread in printing:  # a process of Ray may hold the pipe a little longer
        thread.join(OUTPUT_ENDS_WITHIN_S)


def _cut_life_line(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


class _Told:
    """Take the events of a run: show the ones to show, raise errors, keep what it came to."""

    def __init__(self, show: Show) -> None:
        self.show = show
        self.view: Any = None
        self.stack = contextlib.ExitStack()
        self.ended: Ended | None = None
        self.is_over = self.is_refused = False

    def take(self, kind: str, *content: Any) -> None:
        """Take one event."""
        getattr(self, f"_{kind}")(*content)

    def _phase(self, name: str) -> None:
        phases.ended(name)

    def _opened(self, title: str, rounds: int, directory: str) -> None:
        self.view = self.stack.enter_context(self.show(title, rounds, directory=directory))

    def _tell(self, method: str, *content: Any) -> None:
        getattr(self.view, method)(*content)

    def _done(self, stopped: str, summary: Mapping[str, Any]) -> None:
        self.is_over, self.ended = True, Ended(stopped, summary)

    def _refused(self, error: BaseException) -> None:
        """Take what was wrong before anything was done."""
        self.is_refused = True
        raise error

    def _failed(self, error: BaseException) -> None:
        self.is_over = True
        raise error

    def _crashed(self) -> None:
        self.is_over = True
        raise Crashed
