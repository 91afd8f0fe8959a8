"""An aggregator that stands by itself, in this process: what it keeps, hands over, and runs again."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import fedray as fr
from fedray import tree
from fedray.errors import AttemptLost, HostError
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.history import History
from fedray.runtime.records import EvaluationRecord
from fedray.runtime.round_ledger import NAME
from fedray.runtime.standing import Standing
from fedray.runtime.training import Training
from tests.unit.runtime.toy import INIT, ToyLocal, sites

SCHEDULE = fr.synchronous(cohort=0.75, quorum=0.3)


@dataclass(frozen=True)
class FailsOnce:
    """A local update that raises at a site in a round, the first time it is asked."""

    inner: Any
    site: str
    in_round: int
    folder: str

    @property
    def lr(self):
        return self.inner.lr

    def __call__(self, params, data, rng, **extra):
        flag = Path(self.folder) / "failed"
        if (rng.site, rng.round) == (self.site, self.in_round) and rng.label == "" and not flag.exists():
            flag.touch()
            raise ArithmeticError("once")
        return self.inner(params, data, rng, **extra)


def scaffold(update=None):
    return fr.algorithms.scaffold(update or ToyLocal(), 12)


class Life:
    """One life of an aggregator, asked through a history as a driver does it."""

    def __init__(self, history):
        self.history = history
        self.federation = fr.simulate(sites())
        self.standing = Standing(self.federation.aggregator)

    def ask(self, method, *args):
        return self.standing.call(method, *args)

    def call(self, method, *args):
        answer = self.ask(method, *args)
        self.history.note(method, args, answer)
        return answer

    def begin(self, algorithm, folder="", passes=()):
        self.call("hello")
        plan = fr.compile(algorithm, passes, SCHEDULE)
        state = algorithm.init(tree.flatten(INIT))
        self.call("start", Training(plan, SCHEDULE, 5, "run", folder=folder), state, None)


def lines(folder):
    entries = [json.loads(text) for text in (Path(folder) / NAME).read_text().splitlines()]
    return [entry for entry in entries if "round" in entry]


def test_empty_aggregator_is_made_what_it_was_without_a_checkpoint():
    history = History()
    first = Life(history)
    first.begin(scaffold())
    hashes = [first.call("run_round", number).hashes for number in range(4)]
    second = Life(history)
    assert history.replay(second.ask) == 4
    assert tree.equal(first.federation.aggregator.state, second.federation.aggregator.state)
    assert second.call("run_round", 4).hashes == first.call("run_round", 4).hashes
    assert len(hashes) == 4


def test_rounds_before_the_last_checkpoint_are_not_run_again_and_no_line_is_written_twice(tmp_path):
    history = History()
    first = Life(history)
    first.begin(scaffold(), str(tmp_path))
    for number in range(5):
        first.call("run_round", number)
        if number == 2:
            first.call("save", str(tmp_path), number)
    second = Life(history)
    assert history.replay(second.ask) == 2
    assert tree.equal(first.federation.aggregator.state, second.federation.aggregator.state)
    assert [entry["round"] for entry in lines(tmp_path)] == [0, 1, 2, 3, 4]


def test_round_run_again_leaves_out_the_site_that_was_lost_in_it(tmp_path):
    cohort = SCHEDULE.cohort_of(1, 5, tuple(sites()), {})
    failing = scaffold(FailsOnce(ToyLocal(), cohort[0], 1, str(tmp_path)))
    history = History()
    first = Life(history)
    first.begin(failing, str(tmp_path))
    records = [first.call("run_round", number) for number in range(3)]
    assert [record.counted for record in records] == [9, 8, 9]
    second = Life(history)
    history.replay(second.ask)
    assert tree.equal(first.federation.aggregator.state, second.federation.aggregator.state)
    assert len(lines(tmp_path)) == 3


def test_driver_that_comes_takes_the_records_that_no_checkpoint_had(tmp_path):
    life = Life(History())
    life.begin(scaffold(), str(tmp_path))
    for number in range(4):
        life.ask("run_round", number)
        if number == 1:
            life.ask("save", str(tmp_path), number)
            life.ask("note", EvaluationRecord(round=1, split="valid", metrics={}))
    life.ask("note", EvaluationRecord(round=3, split="valid", metrics={}))
    assert life.ask("hand_over") and Checkpoints(tmp_path).rounds() == [1, 3]
    unseen = life.ask("unseen")
    assert [record.round for record in unseen.rounds] == [2, 3]
    assert [record.round for record in unseen.evaluations] == [1, 3]
    life.ask("start", life.standing.aggregator.training, life.standing.aggregator.state, None)
    assert life.ask("unseen").rounds == ()


def masked(folder=""):
    history = History()
    life = Life(history)
    life.begin(scaffold(), str(folder), [fr.passes.secure_sum("real")])
    return history, life


def test_one_shot_round_is_in_a_checkpoint_before_anybody_is_told(tmp_path):
    _, life = masked(tmp_path)
    for number in range(2):
        life.ask("run_round", number)
        assert Checkpoints(tmp_path).rounds()[-1] == number
    life.ask("save", str(tmp_path), 1)
    assert life.ask("unseen").rounds == ()


def test_one_shot_round_that_was_lost_is_asked_under_another_number(tmp_path):
    history, life = masked(tmp_path)
    life.call("run_round", 0)
    assert history.is_one_shot("run_round", (1,))
    what, number = history.told("run_round", (1,))
    assert number == SCHEDULE.attempts and "round 1" in what
    assert AttemptLost(what, number).next_number == number
    _, second = masked(tmp_path)
    assert history.replay(second.ask) == 0
    assert second.call("run_round", 1, number).attempt == number


def test_one_shot_round_in_the_ledger_alone_never_comes_again_under_its_number(tmp_path):
    _, life = masked(tmp_path)
    life.ask("run_round", 0)
    for path in tmp_path.glob("server-0*"):
        path.unlink()  # killed after the line, before the checkpoint
    again = Life(History())
    again.call("hello")
    training = replace(life.standing.aggregator.training, run="run")
    state = scaffold().init(tree.flatten(INIT))
    again.call("start", training, state, None)
    assert again.call("run_round", 0).attempt == 1
    assert [entry["attempt"] for entry in lines(tmp_path)] == [0, 1]


def test_one_shot_rounds_without_a_checkpoint_are_never_run_again():
    history, life = masked()
    life.call("run_round", 0)
    with pytest.raises(HostError, match="give fit\\(\\) a checkpoint"):
        history.replay(Life(history).ask)
