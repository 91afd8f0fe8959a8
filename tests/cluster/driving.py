"""A driver of runs on a cluster that runs already, in a process of its own: it tells what it sees in JSON.

    python -m tests.cluster.driving ADDRESS '{"run": "a", "name": "scaffold", "folder": "/tmp/x", ...}'
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fedray as fr
from fedray.runtime.checkpoint import Checkpoints
from tests.equivalence import study

ROUNDS, PATIENCE_S = 8, 4.0
STORE_BYTES = 128 * 2**20
INSIDE_S = 3.0  # that a site stage lasts in the round in which somebody is to die
NEVER_S = 1e9


@dataclass(frozen=True)
class Marks:
    """A local update that notes each training, and takes long once, in the first site of one round."""

    inner: Any
    folder: str
    long_in: int

    @property
    def lr(self) -> Any:
        return self.inner.lr

    def __call__(self, params: Any, data: Any, rng: Any, **extra: Any) -> Any:
        update = self.inner(params, data, rng, **extra)
        self._mark(rng)
        return update

    def rows(self, group: Any, params: Any, data: Any, rng: Any, **extra: Any) -> Any:
        update = self.inner.rows(group, params, data, rng, **extra)
        for key in rng.value.items:
            self._mark(key)
        return update

    def _mark(self, rng: Any) -> None:
        if rng.label:
            return
        with (Path(self.folder) / "trained").open("a") as file:
            file.write(f"{rng.round} {rng.site}\n")
        if rng.round == self.long_in:
            with contextlib.suppress(FileExistsError):
                (Path(self.folder) / "inside").touch(exist_ok=False)
                time.sleep(INSIDE_S)


class Tells:
    """A tracker that tells each round."""

    def start(self, plan: Any, facts: Any) -> None:
        tell(first_round=facts["first_round"])

    def round(self, record: Any) -> None:
        tell(round=record.round, counted=record.counted, server=record.hashes.get("server"))

    def evaluation(self, record: Any) -> None:
        tell(evaluation=record.round)

    def finish(self, result: Any) -> None:
        pass


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def once_inside(folder: str, pid: int, number: int) -> None:
    """Send a signal to a process once a site stage of the round is under way."""
    while not (Path(folder) / "inside").exists():
        time.sleep(0.01)
    time.sleep(INSIDE_S / 4)
    os.kill(pid, number)
    tell(killed=pid)


def train(address: str, asked: dict[str, Any]) -> None:
    name, folder, whom = asked["name"], asked["folder"], asked.get("kill", "")
    started = time.monotonic()
    patience_s = asked.get("patience_s", PATIENCE_S)
    federation = fr.connect(address, study.hospitals(), packs=2, run=asked["run"], patience_s=patience_s)
    with federation:
        pids = federation.call("pids")
        tell(pids=pids, attached_s=time.monotonic() - started)
        if whom:
            pid = os.getpid() if whom == "driver" else pids[whom]
            arguments = folder, pid, asked.get("signal", signal.SIGKILL)
            threading.Thread(target=once_inside, args=arguments, daemon=True).start()
        started = time.monotonic()
        result = fr.fit(
            study.algorithm(name, Marks(study.local(), folder, asked.get("inside", -1))),
            federation,
            init=study.model().init(0),
            rounds=asked.get("rounds", ROUNDS),
            seed=5,
            passes=study.passes(name) + ([fr.passes.secure_sum("real")] if asked.get("secure") else []),
            schedule=fr.synchronous(cohort=0.75, **asked.get("schedule", {})),
            tracker=Tells(),
            checkpoint=Checkpoints(folder, every_s=asked.get("every_s", NEVER_S)),
            resume=asked.get("resume", False),
        )
        tell(sha256=result.params_sha256, seconds=time.monotonic() - started,
             rounds=[record.round for record in result.metrics], pids=federation.call("pids"),
             asked_again=federation.call("asked_again"))


def main(address: str, *asked: str) -> None:
    for text in asked:
        train(address, json.loads(text))


if __name__ == "__main__":
    main(*sys.argv[1:])
