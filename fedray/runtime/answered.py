"""Answered: which stages a host has answered for a site in rounds that draw from the system's entropy.

Two rows under one mask show their difference, and two noisy answers are two releases. So what a host answers
in a one-shot round is written down, durably, before it is sent; asked again it gives the same bytes, and a
process that has started again, whose bytes are gone, refuses: the site is then lost for that round. What its
sites keep where they are counted is written down too, for such a round is never run again.
"""

import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedray import rows
from fedray.errors import HostError
from fedray.rows import Group
from fedray.runtime import checkpoint
from fedray.runtime.host import Contribution, StageCall

RoundKey = tuple[str, int, int]  # plan, round, attempt
Pending = tuple[str, Group, Sequence[int], rows.Tagged]  # slot, sites, the rows that were written, values
AGAIN = "answered before"  # the kind of failure of a site that is asked twice


class Answered:
    """The journal of a pack, one line of JSON an answer; a last line without its end was never sent."""

    def __init__(self, path: Path, kinds: Mapping[str, type]) -> None:
        self.path, self.kinds = path, kinds
        self._known: set[tuple[str, ...]] = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read()

    def _read(self) -> None:
        whole, _, rest = self.path.read_bytes().rpartition(b"\n")
        try:
            for line in whole.splitlines():
                entry = json.loads(line)
                self._known |= {(*entry["stage"], site) for site in entry["sites"]}
        except (ValueError, KeyError, TypeError) as error:
            raise HostError(
                f"the journal {self.path.name} of answered rounds cannot be read: it was edited or the disk "
                "failed, and without it a mask could be used twice: start another run"
            ) from error
        if rest:
            os.truncate(self.path, len(whole) + bool(whole))

    def again(self, call: StageCall) -> list[str]:
        """Return the sites of a call for which this stage was answered before."""
        return [site for site in call.cohort if (*_stage(call), site) in self._known]

    def record(self, call: StageCall, answer: Contribution, pending: Sequence[Pending]) -> None:
        """Write down that a call was answered, before the answer is sent, and what its sites will keep."""
        if pending:
            state = {
                (slot, group.ids[row]): rows.row(tagged, row)
                for slot, group, written, tagged in pending
                for row in written
            }
            checkpoint.write_sites(str(self.path.parent), call.round, self._part(call.attempt), state)
        entry: dict[str, Any] = {
            "stage": _stage(call),
            "sites": call.cohort,
            "sha256": hashlib.sha256(pickle.dumps(answer)).hexdigest(),
        }
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        file = os.open(self.path, flags, 0o600)
        try:
            os.write(file, json.dumps(entry).encode() + b"\n")
            os.fsync(file)
        finally:
            os.close(file)
        self._known |= {(*_stage(call), site) for site in call.cohort}

    def state_of(self, key: RoundKey) -> dict[tuple[str, str], Any]:
        """Return what sites were to keep after an attempt, as it was written down before its last answer."""
        _, round, attempt = key
        found = self.path.parent / f"sites-{round}-{self._part(attempt)}"
        return checkpoint.read_part(found, self.kinds) if Path(f"{found}.json").exists() else {}

    def thin(self) -> None:
        """Forget what sites were to keep: it has been saved."""
        for path in self.path.parent.glob(f"sites-*-{self.path.stem}-*"):
            path.unlink()

    def _part(self, attempt: int) -> str:
        return f"{self.path.stem}-{attempt}"


def _stage(call: StageCall) -> tuple[str, ...]:
    return call.run, call.plan, str(call.round), str(call.attempt), str(call.stage)
