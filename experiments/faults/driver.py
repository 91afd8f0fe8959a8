"""The driver of runs under faults, a process on the head: reads one run a line, and tells what it sees.

    python -m experiments.faults.driver ADDRESS

A line is what `study.train` takes, as JSON, and `is_resumed`. It ends where a run ends with an error, as a
driver does, and at the end of its input.
"""

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import fedray as fr
from experiments.faults import gates, study
from fedray.runtime.checkpoint import Checkpoints


def tell(**facts: Any) -> None:
    """Print a line."""
    print(json.dumps({"at": time.time(), **facts}), flush=True)


class Tells:
    """A tracker that tells each round and waits at a gate after it, and before the last for a file."""

    def __init__(self, pause_s: float, last: int, waits_for: str) -> None:
        self.pause_s, self.last, self.waits_for = pause_s, last, waits_for

    def start(self, plan: Any, facts: Any) -> None:
        """Tell with which round the run begins."""
        tell(event="start", first=facts["first_round"])

    def round(self, record: Any) -> None:
        """Tell a round."""
        lost = sorted({(failure.site, failure.kind) for failure in record.failures})
        tell(event="round", round=record.round, attempt=record.attempt, counted=record.counted,
             asked=record.asked, status=record.status, server=record.hashes.get("server"), lost=lost,
             seconds=record.seconds)  # fmt: skip
        gates.gate("between", record.round, "driver")
        while self.waits_for and record.round == self.last - 1 and not Path(self.waits_for).exists():
            time.sleep(0.1)
        time.sleep(self.pause_s)

    def evaluation(self, record: Any) -> None:
        """Tell an evaluation."""
        tell(event="evaluation", round=record.round, n=record.metrics.get("n"))

    def finish(self, result: Any) -> None:
        """Nothing: the end is told when the last checkpoint is written."""


def run(federation: Any, asked: dict[str, Any]) -> None:
    """Train one run; resume it where that is asked for and there is something to resume."""
    is_resumed, tracker = asked.pop("is_resumed"), Tells(
        asked.pop("pause_s"), asked["rounds"] - 1, asked.pop("waits_for")
    )
    if asked.pop("is_opened") and not is_resumed:
        federation.aggregator._build()  # hosts as new, in their processes: they open their data again
    resume = is_resumed and bool(Checkpoints(asked["folder"]).rounds())
    started = time.monotonic()
    result = study.train(federation, **asked, resume=resume, tracker=tracker)
    tell(event="end", sha256=result.params_sha256, seconds=time.monotonic() - started,
         stopped=result.stopped, asked_again=federation.call("asked_again"))  # fmt: skip


def main(address: str) -> None:
    """Connect when the first line comes, and go on with the same federation."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    with contextlib.ExitStack() as stack:
        federation: Any = None
        for line in sys.stdin:
            asked = json.loads(line)
            if federation is None:
                where = {"address": address, "packs": 1, "run": study.RUN}
                made = fr.connect(study.site_map(), study.hospitals(), **where)
                federation = stack.enter_context(made)
                tell(event="connected", layout=federation.layout)
            run(federation, asked)


if __name__ == "__main__":
    main(sys.argv[1])
