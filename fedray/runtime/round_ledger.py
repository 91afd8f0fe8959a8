"""The ledger of rounds: what each came to, one line a round, on the disk before the driver is told.

It lies beside the checkpoints, outside Ray, and says what a run has done after the process that did it is
gone: a round that is run again to get back to a state must come to what its line says.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedray.errors import CheckpointError
from fedray.runtime.storage import is_address, open_store

FORMAT = 1
NAME = "rounds-ledger.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One round. `lost` has, for each stage of the last attempt, who was lost in it and how."""

    round: int
    attempt: int
    asked: int
    counted: int
    status: str
    hashes: Mapping[str, str]
    lost: Mapping[int, Mapping[str, str]]

    def told(self) -> dict[str, Any]:
        """Return the line as plain values."""
        lost = {str(stage): dict(found) for stage, found in self.lost.items()}
        return {"round": self.round, "attempt": self.attempt, "asked": self.asked, "counted": self.counted,
                "status": self.status, "hashes": dict(self.hashes), "lost": lost}  # fmt: skip


def _line(entry: Mapping[str, Any]) -> Line:
    lost = {int(stage): found for stage, found in entry["lost"].items()}
    return Line(**{**{name: entry[name] for name in Line.__slots__ if name != "lost"}, "lost": lost})


class RoundLedger:
    """The lines of a run, in a file that only grows. `known` are those of rounds that are to come again."""

    def __init__(
        self, address: str | os.PathLike[str], facts: Mapping[str, str], run: str, first: int, is_start: bool
    ) -> None:
        """Open the ledger of a run that goes on with round `first`.

        Lines of other `facts` (plan, first state, seed), or of the time before a new start of a run, are not
        known. Raises CheckpointError where a line cannot be read, StorageError where none can be written.
        """
        self._store = open_store(address)
        if not is_address(address):
            os.makedirs(address, exist_ok=True)
        self.known: dict[int, Line] = {}
        begun: Mapping[str, Any] = {}
        for entry in map(self._read, self._store.lines(NAME)):
            if "ledger" in entry:
                begun, self.known = entry, {}
            elif "round" in entry:
                self.known[entry["round"]] = _line(entry)
        if begun.get("facts") != facts or (is_start and begun.get("run") != run):
            self.known = {}
            self._append({"ledger": FORMAT, "run": run, "facts": dict(facts)})
        self.known = {round: line for round, line in self.known.items() if round >= first}
        self._append({"goes_on": first})

    def _read(self, text: bytes) -> dict[str, Any]:
        try:
            entry: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise CheckpointError(
                f"{NAME} cannot be read: it was edited or the disk failed. Fix: move it away, and the run "
                "goes on from its last checkpoint"
            ) from error
        return entry

    def write(self, line: Line) -> None:
        """Write a round down."""
        self._append(line.told())

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._store.append(NAME, json.dumps(entry).encode())
