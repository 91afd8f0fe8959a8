"""What an aggregator in another process is doing: asked beside its work, and never waited for."""

from types import SimpleNamespace

import pytest

from fedray.runtime import ray_progress
from fedray.runtime.ray_actors import CONTROL, AggregatorActor
from fedray.runtime.ray_attach import AttachedAggregator
from fedray.runtime.ray_progress import Progress, by_this_clock
from fedray.runtime.ray_standing import StandingActor
from fedray.runtime.ray_transport import RemoteAggregator

TOLD = {"time": 100.0, "doing": "round", "round": 3, "since": 90.0, "stage": 1, "asked": 4, "answered": 2,
        "hosts": [{"host": "pack0", "doing": "run", "sites": 2, "since": 95.0, "seen": None}]}  # fmt: skip


class Stub:
    """An actor, and Ray as far as it is asked; `answers` is what has come in by now."""

    def __init__(self, monkeypatch):
        self.asked, self.answers, self.waits, self.is_up = 0, [], [], True
        self.progress = SimpleNamespace(remote=self._remote)
        monkeypatch.setattr(ray_progress, "ray", SimpleNamespace(
            is_initialized=lambda: self.is_up, wait=self._wait, get=self._get))
        monkeypatch.setattr(ray_progress, "clock", lambda: 107.0)

    def _remote(self):
        self.asked += 1
        return f"ticket {self.asked}"

    def _wait(self, tickets, timeout):
        self.waits.append(timeout)
        return (tickets, []) if self.answers else ([], tickets)

    def _get(self, ticket, timeout):
        answer = self.answers.pop()
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_answer_is_told_in_times_of_this_clock(monkeypatch):
    stub = Stub(monkeypatch)
    stub.answers = [TOLD]
    told = Progress(stub)()
    assert (told["time"], told["since"], told["answered"]) == (107.0, 97.0, 2)
    assert (told["hosts"][0]["since"], told["hosts"][0]["seen"]) == (102.0, None)
    assert by_this_clock({}) == {}


def test_aggregator_that_does_not_answer_is_asked_once_and_not_waited_for(monkeypatch):
    stub = Stub(monkeypatch)
    progress = Progress(stub)
    assert [progress() for _ in range(3)] == [{}] * 3
    assert stub.asked == 1 and max(stub.waits) <= ray_progress.MOMENT_S
    stub.answers = [TOLD]
    assert progress()["round"] == 3


def test_aggregator_that_is_gone_says_nothing_and_is_asked_again_later(monkeypatch):
    stub = Stub(monkeypatch)
    stub.answers = [ray_progress.ray_errors.ActorDiedError()]
    progress = Progress(stub)
    assert progress() == {}
    stub.answers = [TOLD]
    assert progress()["round"] == 3 and stub.asked == 2
    stub.is_up = False
    assert progress() == {}


@pytest.mark.parametrize("actor", [StandingActor, AggregatorActor])
def test_actors_answer_it_beside_their_work(actor):
    assert actor.progress.__ray_concurrency_group__ == CONTROL


@pytest.mark.parametrize("handle", [AttachedAggregator, RemoteAggregator])
def test_handles_of_drivers_ask_it_and_do_not_call_it(handle):
    assert "progress" in vars(handle)


def test_standing_aggregator_without_hosts_says_nothing():
    actor = StandingActor("", 1.0, 1.0)
    assert actor.progress() == {}
    actor._standing = SimpleNamespace(aggregator=SimpleNamespace(progress=lambda: TOLD))
    assert actor.progress() == TOLD
