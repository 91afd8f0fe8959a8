"""Hosts on Ray whose machine is lost with its disk: what their sites keep comes back from the run's store."""

import os
import signal
from typing import Any

import fedray as fr
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.ray_transport import federate_here
from tests.cluster.trackers import Silent
from tests.equivalence import study

ROUNDS = 6


class Kills(Silent):
    """A tracker that kills a pack after some rounds."""

    def __init__(self, federation: Any, rounds: tuple[int, ...]) -> None:
        self.federation, self.rounds, self.killed = federation, rounds, 0

    def round(self, record: Any) -> None:
        if record.round in self.rounds:
            transport = self.federation.aggregator.root.transport
            os.kill(transport.pids()["pack0"], signal.SIGKILL)
            self.killed += 1


def trained(federation: Any, passes: Any, kept: Checkpoints | None = None, tracker: Any = None) -> Any:
    return fr.fit(study.algorithm("scaffold"), federation, init=study.model().init(0), rounds=ROUNDS, seed=5,
                  passes=passes, checkpoint=kept, tracker=tracker)  # fmt: skip


def test_state_of_sites_comes_back_from_the_store_in_rounds_that_are_drawn_once(
    ray_session, tmp_path, monkeypatch
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    masked = [fr.passes.secure_sum("real")]
    kept = Checkpoints(tmp_path / "share", every_s=1e9, is_shared=True)
    with federate_here(study.hospitals(), "local", packs=2) as federation:
        tracker = Kills(federation, (1, 3))
        result = trained(federation, masked, kept, tracker)
    with fr.simulate(study.hospitals()) as federation:
        whole = trained(federation, masked)
    assert tracker.killed == 2 and kept.rounds() == [ROUNDS - 2, ROUNDS - 1]
    assert result.params_sha256 == whole.params_sha256
    assert [record.counted for record in result.metrics] == [study.NUM_SITES] * ROUNDS
    (journals,) = (tmp_path / "share" / "between").glob("answered-*")
    assert {path.name for path in journals.iterdir()} >= {"answered-pack0.jsonl", "answered-pack1.jsonl"}
    assert list((tmp_path / "temporary").iterdir()) == []  # nothing that is needed lies on one machine
