"""An aggregator that stands by itself: its driver may go and another come, and it writes down what it does.

It keeps the records of rounds until they are in a checkpoint that the driver has asked for, so that a driver
that comes later takes those that the one before it had not seen. Rounds that draw from the system's entropy
are in a checkpoint before anybody is told of them. A round that is run again, to get back to a state that
was lost, comes again to what the ledger says: who was lost then is not asked, and its bits are compared.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedray.errors import FedrayError, StorageError
from fedray.runtime.records import EvaluationRecord, RoundRecord
from fedray.runtime.round import Aggregator
from fedray.runtime.round_ledger import Line, RoundLedger
from fedray.runtime.training import Training

log = logging.getLogger(__name__)
OWN = ("start", "run_round", "save", "note", "hand_over", "unseen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """What was recorded after the last checkpoint that a driver asked for."""

    rounds: Sequence[RoundRecord] = ()
    evaluations: Sequence[EvaluationRecord] = ()


class Standing:
    """Calls of an aggregator by name, written down where the run has a folder."""

    def __init__(self, aggregator: Aggregator) -> None:
        self.aggregator = aggregator
        self._folder = ""
        self._ledger: RoundLedger | None = None
        self._rounds: list[RoundRecord] = []
        self._evaluations: list[EvaluationRecord] = []
        self._done = self._saved = -1  # the last round, and the last that is in a checkpoint

    def call(self, method: str, *args: Any) -> Any:
        """Call a method, this one's or the aggregator's."""
        return getattr(self if method in OWN else self.aggregator, method)(*args)

    def start(self, training: Training, state: Any, restore: tuple[str, int] | None = None) -> int:
        """See `Aggregator.start`; the ledger goes on where the run does."""
        first = self.aggregator.start(training, state, restore)
        self._folder, self._done, self._saved = training.folder, first - 1, first - 1
        self._rounds = [record for record in self._rounds if restore and record.round < first]
        self._evaluations = [record for record in self._evaluations if restore and record.round < first]
        self._ledger = None
        if training.folder:
            facts = {"plan": training.plan.digest, "start": self.aggregator.start_sha256,
                     "seed": str(training.seed)}  # fmt: skip
            self._ledger = RoundLedger(training.folder, facts, training.run, first, restore is None)
        return first

    def run_round(self, round: int, number: int = 0) -> RoundRecord:
        """See `Aggregator.run_round`; a round that the ledger knows is run as it was."""
        line = self._ledger.known.pop(round, None) if self._ledger else None
        is_one_shot = self._is_one_shot(round)
        losses = self.aggregator.root.losses
        if line is not None and is_one_shot:
            number, line = max(number, line.attempt + 1), None  # never again under the same name
        elif line is not None:
            number = line.attempt
            losses.of_attempt, losses.again = (self._digest(round), round, number), line.lost
        try:
            record = self.aggregator.run_round(round, number)
        finally:
            losses.of_attempt, losses.again = None, {}
        self._write(record, line)
        self._rounds.append(record)
        self._done = round
        if is_one_shot and self._folder:
            self.aggregator.save(self._folder, round)
            self._saved = round
        return record

    def _digest(self, round: int) -> str:
        training = self.aggregator.training
        return training.plan.of_round(round).digest if training is not None else ""

    def _is_one_shot(self, round: int) -> bool:
        training = self.aggregator.training
        return training is not None and training.plan.of_round(round).is_one_shot

    def _write(self, record: RoundRecord, before: Line | None) -> None:
        if self._ledger is None:
            return
        losses = self.aggregator.root.losses
        is_last = losses.attempt == (self._digest(record.round), record.round, record.attempt)
        line = Line(
            round=record.round,
            attempt=record.attempt,
            asked=record.asked,
            counted=record.counted,
            status=record.status,
            hashes=record.hashes,
            lost=dict(losses.by_stage) if is_last else {},
        )
        if before is not None and before.hashes == line.hashes:
            return
        if before is not None:
            log.warning(
                "round %d was run again and came to other bits: %d sites counted now, %d before",
                record.round, line.counted, before.counted,
            )  # fmt: skip
        try:
            self._ledger.write(line)
        except StorageError as error:  # a full disk ends no run
            log.warning("round %d is not in the ledger of rounds: %s", record.round, error)

    def note(self, record: EvaluationRecord) -> None:
        """Keep an evaluation that the driver has made."""
        self._evaluations.append(record)

    def save(self, address: str, round: int) -> None:
        """See `Aggregator.save`; the driver that asks for it has seen all records up to here."""
        if round != self._saved:
            self.aggregator.save(address, round)
        self._saved = round
        self._rounds = [record for record in self._rounds if record.round > round]
        self._evaluations = [record for record in self._evaluations if record.round > round]

    def hand_over(self) -> bool:
        """Write a checkpoint of all that was done, for a driver that comes; tell whether there is one."""
        if not self._folder or self._done < 0:
            return False
        if self._done > self._saved:
            try:
                self.aggregator.save(self._folder, self._done)
            except FedrayError as error:
                log.warning("no checkpoint of round %d for the next driver: %s", self._done, error)
                return False
            self._saved = self._done
        return True

    def unseen(self) -> Unseen:
        """Return what was recorded after the last checkpoint that a driver asked for."""
        return Unseen(rounds=tuple(self._rounds), evaluations=tuple(self._evaluations))
