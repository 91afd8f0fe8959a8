"""Answered: which stages a host has answered for a site in rounds that draw from the system's entropy.

Two rows under one mask show their difference, and two noisy answers are two releases. So what a host answers
in a one-shot round is written down, durably, before it is sent; asked again it gives the same bytes, and a
process that has started again, whose bytes are gone, refuses: the site is then lost for that round. What its
sites keep where they are counted is written down too, for such a round is never run again.
"""

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

from fedray import rows
from fedray.errors import HostError
from fedray.rows import Group
from fedray.runtime import checkpoint
from fedray.runtime.host import Contribution, StageCall
from fedray.runtime.storage import open_store

RoundKey = tuple[str, int, int]  # plan, round, attempt
Pending = tuple[str, Group, Sequence[int], rows.Tagged]  # slot, sites, the rows that were written, values
AGAIN = "answered before"  # the kind of failure of a site that is asked twice


class Answered:
    """The journal of a pack, one line of JSON an answer; a last line without its end was never sent."""

    def __init__(self, address: str, host: str, kinds: Mapping[str, type]) -> None:
        self.address, self.kinds, self.name = address, kinds, f"answered-{host}.jsonl"
        self._stem, self._store = f"answered-{host}", open_store(address)
        self._known: set[tuple[str, ...]] = set()
        try:
            for line in self._store.lines(self.name):
                entry = json.loads(line)
                self._known |= {(*entry["stage"], site) for site in entry["sites"]}
        except (ValueError, KeyError, TypeError) as error:
            raise HostError(
                f"the journal {self.name} of answered rounds cannot be read: it was edited or the disk "
                "failed, and without it a mask could be used twice: start another run"
            ) from error

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
            part = self._part(call.attempt)
            checkpoint.write_sites(self.address, call.round, part, call.cohort, state)
        entry: dict[str, Any] = {
            "stage": _stage(call),
            "sites": call.cohort,
            "sha256": hashlib.sha256(pickle.dumps(answer)).hexdigest(),
        }
        self._store.append(self.name, json.dumps(entry).encode())
        self._known |= {(*_stage(call), site) for site in call.cohort}

    def state_of(self, key: RoundKey) -> dict[tuple[str, str], Any]:
        """Return what sites were to keep after an attempt, as it was written down before its last answer."""
        _, round, attempt = key
        return checkpoint.read_part(self.address, f"sites-{round}-{self._part(attempt)}", self.kinds)

    def thin(self) -> None:
        """Forget what sites were to keep: it has been saved."""
        for name in self._store.names():
            if name.startswith("sites-") and f"-{self._stem}-" in name:
                self._store.remove(name)

    def _part(self, attempt: int) -> str:
        return f"{self._stem}-{attempt}"


def _stage(call: StageCall) -> tuple[str, ...]:
    return call.run, call.plan, str(call.round), str(call.attempt), str(call.stage)
