"""What every measured program does: read the workload, tell each round's end, wait where asked, save weights.

A program is started as `python -m systems NAME DATA ROUNDS OUT` with its environment's interpreter. It writes
one JSON line per round to standard output and, after the first and the last round, waits for a line on its
standard input: meanwhile its parent reads the clocks of all its processes. Waiting is in no round's seconds.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, TextIO

import numpy as np


@dataclass
class Report:
    """The lines of one program."""

    rounds: int
    out: TextIO
    began: float = field(default_factory=time.perf_counter)

    def say(self, **facts: Any) -> None:
        """Write a line."""
        self.out.write(json.dumps(facts) + "\n")
        self.out.flush()

    def begin(self) -> None:
        """Note that a round starts now; by default it starts where the one before has ended."""
        self.began = time.perf_counter()

    def round(self, number: int) -> None:
        """Tell that a round (from 0) has ended."""
        now = time.perf_counter()
        self.say(round=number, seconds=now - self.began, at=time.time())
        if number in (0, self.rounds - 1):
            sys.stdin.readline()
        self.begin()

    def ask(self, **facts: Any) -> None:
        """Write a line and wait: the parent looks at this program's processes meanwhile."""
        self.say(ask=True, **facts)
        sys.stdin.readline()


def start(*packages: str, loads_torch: bool = True) -> tuple[str, Report, str]:
    """Return the data file, the report, and where the final weights go; put torch on one thread.

    Anything else that the program or its libraries print goes to standard error.
    """
    if loads_torch:
        import torch

        torch.set_num_threads(1)
    data, rounds, out = sys.argv[1:4]
    report = Report(int(rounds), os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    versions = {name: metadata.version(name) for name in ("torch", "numpy", *packages)}  # imports nothing
    report.say(python=sys.version.split()[0], versions=versions)
    return data, report, out


def save(out: str, weights: Mapping[str, Any]) -> None:
    """Write the final weights, by torch's names."""
    np.savez(out, **{name: np.asarray(value) for name, value in weights.items()})


@dataclass(frozen=True)
class RoundLines:
    """A tracker of `fr.fit` that tells the parent of each round, and waits at the end where `asks_at_end`."""

    report: Report
    asks_at_end: bool = True

    def start(self, plan: Any, facts: Any) -> None:
        """Start the first round's clock."""
        self.report.begin()

    def round(self, record: Any) -> None:
        """Tell of a round; a tracker on disk has written it already."""
        self.report.round(record.round)

    def evaluation(self, record: Any) -> None:
        """Nothing is evaluated while rounds are measured."""

    def finish(self, result: Any) -> None:
        """Tell that `fit` is over, its last checkpoint written."""
        if self.asks_at_end:
            self.report.ask(finished=True)
