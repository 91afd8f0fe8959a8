"""Saving: when a run writes its checkpoints, from which of them it goes on, and what a full disk means.

A checkpoint that cannot be written does not end a run: it is said once, with the age of the last good one,
and tried again when the next is due. A round that is never run again, for it draws keys or noise, waits for
its checkpoint and ends the run where it does not come. A damaged checkpoint is named, and the one before is
used.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from fedray.errors import CheckpointError, DamagedError, StorageError
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.storage import check_store, is_address, tries

logger = logging.getLogger(__name__)
SLOW_S, MOST_SHARE = 1.0, 0.2  # a place that takes longer to fail has at most this share of the run's time


class Saving:
    """The driver's side of a run's checkpoints; without any, it does nothing."""

    def __init__(self, checkpoints: Checkpoints | None, save: Callable[[str, int], Any]) -> None:
        """`save(address, round)` lets hosts and aggregator write their parts."""
        self.checkpoints, self._save = checkpoints, save
        self.saved_round = -1
        self._clock = checkpoints.clock if checkpoints is not None else time.monotonic
        self._tried_at = self._saved_at = self._clock()
        self._pause_s = checkpoints.every_s if checkpoints is not None else 0.0
        self._is_away = False  # was said

    @property
    def address(self) -> str:
        """Where the checkpoints are, as every process finds them, whatever its folder; "" without any."""
        if self.checkpoints is None:
            return ""
        address = self.checkpoints.address
        return address if is_address(address) else os.path.abspath(address)

    @property
    def shared(self) -> str:
        """The address that every machine of the run reaches; "" without one."""
        return self.checkpoints.address if self.checkpoints is not None and self.checkpoints.is_shared else ""

    def check(self, resume: bool) -> None:
        """Make ready what lies there, before any site is asked.

        Raises StorageError where the place cannot be written to, CheckpointError where there is nothing to
        resume.
        """
        if self.checkpoints is not None:
            check_store(self.checkpoints.store)
            self.checkpoints.store.sweep()
        if resume:
            self._rounds()

    def begin(self, resume: bool, start: Callable[[tuple[str, int] | None], int]) -> int:
        """Start a run, or go on with the last checkpoint that is whole; return the first round to run.

        Raises CheckpointError where there is none.
        """
        first = self._again(start) if resume else start(None)
        self.saved_round = first - 1
        return first

    def _rounds(self) -> list[int]:
        saved = self.checkpoints.rounds() if self.checkpoints is not None else []
        if not saved:
            where = f" in {self.checkpoints.address}" if self.checkpoints is not None else ""
            raise CheckpointError(
                f"there is no complete checkpoint to resume from{where}: start the run again"
            )
        return saved

    def _again(self, start: Callable[[tuple[str, int] | None], int]) -> int:
        saved = self._rounds()
        assert self.checkpoints is not None
        damaged: list[tuple[int, DamagedError]] = []
        for round in reversed(saved):
            try:
                first = start((self.address, round))
            except DamagedError as error:
                damaged.append((round, error))
                logger.warning("the checkpoint of round %d is damaged: %s", round, error)
                continue
            if damaged:
                logger.warning("the run goes on from the checkpoint of round %d in its place", round)
            for broken, _ in damaged:
                self.checkpoints.set_aside(broken)
            return first
        told = "; ".join(f"round {round}: {error}" for round, error in damaged)
        raise CheckpointError(
            f"none of the {len(saved)} checkpoints in {self.checkpoints.address} is whole ({told}). "
            "Fix: put the files back from a copy, or start the run again"
        )

    @property
    def is_due(self) -> bool:
        """Tell whether it is time for a checkpoint."""
        return self.checkpoints is not None and self._clock() - self._tried_at >= self._pause_s

    def save(self, round: int, best: int | None = None, *, is_needed: bool = False) -> None:
        """Write a checkpoint of the state after a round. Where it is needed, wait for it.

        Raises CheckpointError where a needed one could not be written in time.
        """
        if self.checkpoints is None or round == self.saved_round:
            return
        error: StorageError | None = None
        for _ in tries(self.checkpoints.patience_s if is_needed else 0.0):
            try:
                self._write(self.checkpoints, round, best)
                return
            except StorageError as caught:
                error = caught
                self._say(round, error, is_needed)
        if is_needed:
            raise CheckpointError(
                f"round {round} has drawn what is drawn once, so no other may follow before its checkpoint, "
                f"which could not be written in {self.checkpoints.patience_s:g} s: {error}. {self._last()}"
            ) from error

    def _write(self, checkpoints: Checkpoints, round: int, best: int | None) -> None:
        began, self._pause_s = self._clock(), checkpoints.every_s
        try:
            if checkpoints.also is not None:
                checkpoints.also()
            self._save(self.address, round)
        except StorageError:
            self._drop(checkpoints, round)
            if (took_s := self._clock() - began) > SLOW_S:
                self._pause_s = max(self._pause_s, took_s / MOST_SHARE)
            raise
        finally:
            self._tried_at = self._clock()
        if self._is_away:
            logger.warning("checkpoints are written again: that of round %d is there", round)
        self._saved_at, self.saved_round, self._is_away = self._clock(), round, False
        try:
            checkpoints.thin(best)
        except StorageError as error:
            logger.warning("older checkpoints stay: %s", error)

    @staticmethod
    def _drop(checkpoints: Checkpoints, round: int) -> None:
        """Give the room of an unfinished checkpoint back, as far as that can be done: on a disk."""
        if is_address(checkpoints.address):
            return  # it would be one more wait for who does not answer; `thin` does it later
        try:
            checkpoints.drop(round)
        except StorageError as error:
            logger.debug("what was written of the checkpoint of round %d stays: %s", round, error)

    def _say(self, round: int, error: StorageError, is_needed: bool) -> None:
        if not self._is_away:
            again = f"it is tried again in {self._pause_s:.0f} s, and the run goes on"
            if is_needed:
                again = "it is needed, so the run waits for it"
            logger.warning("no checkpoint of round %d: %s. %s; %s", round, error, self._last(), again)
        self._is_away = True

    def _last(self) -> str:
        if self.saved_round < 0:
            return "There is no earlier one"
        age = self._clock() - self._saved_at
        return f"The last good one is of round {self.saved_round}, {age:.0f} s old"

    def end(self, round: int, best: int | None = None) -> None:
        """Write the last checkpoint of a run, and say where there is none of its end."""
        self.save(round, best)
        if self.checkpoints is not None and self.saved_round != round:
            logger.warning("the run ends without a checkpoint of its last round, %d. %s", round, self._last())
