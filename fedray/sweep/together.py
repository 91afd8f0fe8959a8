"""Trials as one program: those of a batch run each in a thread, and their local trainings meet.

A trial is an ordinary run that knows nothing of the others (`fedray.learn.together`). It has a directory of
its own, fails alone, and is written down when it ends, by the thread that asked for it.
"""

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch

from fedray.learn.together import Meeting
from fedray.sweep.stacking import batches
from fedray.sweep.trials import FAILED, INTERRUPTED, Book, Line, Trial, guarded, line_of

log = logging.getLogger(__name__)

MOST = 32  # trials of one program
STOP_S = 30.0  # that a trial has to end after Ctrl-C


def run_together(
    trials: Sequence[Trial],
    configs: Sequence[Mapping[str, Any]],
    book: Book,
    run_trial: Callable[[Trial], Callable[[], dict[str, Any]]],
    fail_fast: bool = False,
    largest: int = MOST,
) -> Iterator[Line]:
    """Run trials batch by batch, write each down when it ends, and yield its line.

    `run_trial(trial)` prepares a trial here and returns what runs it; `configs` are the resolved settings, by
    which `stacking` says which trials can be one program.
    """
    for batch in batches(configs, largest):
        members = [trials[place] for place in batch.trials]
        lines: list[Line] = []
        for line in _batch([(trial, run_trial(trial)) for trial in members]):
            book.add(line)
            lines.append(line)
            yield line
        statuses = {line.status for line in lines}
        if INTERRUPTED in statuses or (fail_fast and FAILED in statuses):
            return


def _batch(prepared: Sequence[tuple[Trial, Callable[[], dict[str, Any]]]]) -> Iterator[Line]:
    """Run trials side by side in threads and yield a line as each ends; Ctrl-C ends all of them."""
    meeting = Meeting(len(prepared))
    ended: SimpleQueue[Line] = SimpleQueue()
    threads = [
        threading.Thread(target=_one, args=(*pair, (meeting, place), ended), name=pair[0].name, daemon=True)
        for place, pair in enumerate(prepared)
    ]
    with one_thread_each():
        try:
            for thread in threads:
                thread.start()
            for _ in threads:
                yield ended.get()
        finally:
            meeting.stop()  # of those that have ended nothing is left to stop
            for thread in threads:
                thread.join(STOP_S)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep torch to one thread, and the level of the log, while several trials set and restore them.

    The collector does not look through what lives already: with the objects of all trials beside it, every
    look would take 0.2 s.
    """
    threads, logger = torch.get_num_threads(), logging.getLogger("fedray")
    level = logger.level
    torch.set_num_threads(1)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)
        logger.setLevel(level)


def _one(
    trial: Trial, run: Callable[[], dict[str, Any]], seat: tuple[Meeting, int], ended: "SimpleQueue[Line]"
) -> None:
    started, (meeting, place) = time.monotonic(), seat
    outcome: dict[str, Any] = {"status": FAILED, "error": "ended by SystemExit or KeyboardInterrupt"}
    try:
        with meeting.joined(place):
            outcome = guarded(lambda _: run(), trial)
    except (KeyboardInterrupt, SystemExit) as ending:  # a thread's traceback would be printed
        log.debug("%s: ended by %s", trial.name, type(ending).__name__)
    finally:
        share = (time.monotonic() - started) / meeting.size  # most of it was the turn of others
        ended.put(line_of(trial, share, outcome))
