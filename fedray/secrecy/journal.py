"""What a site has answered, on disk before it is sent: one answer a step, the same after a crash.

Ray runs a failed task again and a server may ask twice. Two vectors under one mask show their difference, and
two sets of shares open both masks of a site, so a site answers a step once: `Answers` gives the same bytes
to the same question, the journal refuses everything else, also in a process that has restarted.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedray.errors import SecrecyError
from fedray.secrecy import wire
from fedray.secrecy.keys import sha256
from fedray.secrecy.messages import Signed

Key = tuple[str, int, str]
Release = tuple[str, str, frozenset[str]]  # model, trainer, sites of a sum that was opened


class Journal:
    """Append-only lines of JSON: run, round, step, SHA-256 of the answer. In memory where path is None.

    A last line without its end was never answered for (the answer waits for fsync): it is cut off.
    Raises: SecrecyError E_JOURNAL on a file that cannot be read as such lines.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._digests: dict[Key, bytes] = {}
        self.releases: list[Release] = []
        if path is not None and path.exists():
            self._read(path)
        elif path is not None:
            self._create(path)

    @staticmethod
    def _create(path: Path) -> None:
        """Make the file and its entry in the folder durable: a journal that vanishes refuses nothing."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            for line in whole.splitlines():
                self._remember(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise SecrecyError(
                "E_JOURNAL",
                "the journal of answers is not readable; it was edited or the disk "
                "failed, and without it a mask could be used twice",
            ) from error
        if len(whole) < len(data):
            os.truncate(path, len(whole))

    def _remember(self, entry: dict[str, Any]) -> None:
        key = (entry["run"], entry["round"], entry["step"])
        self._digests[key] = bytes.fromhex(entry["sha256"])
        if "release" in entry:
            model, trainer, sites = entry["release"]
            self.releases.append((model, trainer, frozenset(sites)))

    def digest(self, run: str, round: int, step: str) -> bytes | None:
        """Return the digest of what was answered, None where nothing was."""
        return self._digests.get((run, round, step))

    def record(
        self,
        run: str,
        round: int,
        step: str,
        digest: bytes,
        *,
        release: Release | None = None,
        code: str = "E_REPLAY",
    ) -> None:
        """Write an answer down, durably. Recording it again does nothing.

        Raises: SecrecyError `code` if another answer was given to this step before.
        """
        known = self._digests.get((run, round, step))
        if known == digest:
            return
        if known is not None:
            raise SecrecyError(code, f"step {step} of round {round} was answered before, in another way")
        entry: dict[str, Any] = {"run": run, "round": round, "step": step, "sha256": digest.hex()}
        if release is not None:
            model, trainer, sites = release
            entry["release"] = [model, trainer, sorted(sites)]
        self._append(entry)
        self._remember(entry)

    def _append(self, entry: dict[str, Any]) -> None:
        if self._path is None:
            return
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        try:
            os.write(file, json.dumps(entry, sort_keys=True).encode() + b"\n")
            os.fsync(file)
        finally:
            os.close(file)


class Answers:
    """The answers of one round in this process: the same bytes to the same question, nothing else."""

    def __init__(self, journal: Journal, run: str, round: int) -> None:
        self._journal, self._run, self._round = journal, run, round
        self._given: dict[str, tuple[bytes, Signed]] = {}

    def given(self, step: str) -> Signed | None:
        """Return the answer that was given to a step, None before."""
        return self._given[step][1] if step in self._given else None

    def once(
        self,
        step: str,
        question: bytes,
        make: Callable[[], Signed],
        *,
        release: Release | None = None,
        code: str = "E_REPLAY",
    ) -> Signed:
        """Return the answer to a step, made and journalled the first time.

        Raises: SecrecyError E_REPLAY if the step was asked before with another question, `code` if a
        process before this one has answered it.
        """
        asked = sha256(question)
        if step in self._given:
            before, answer = self._given[step]
            if before != asked:
                raise SecrecyError(
                    "E_REPLAY", f"step {step} of round {self._round} was asked before, otherwise"
                )
            return answer
        answer = make()
        digest = sha256(wire.to_bytes(answer))
        self._journal.record(self._run, self._round, step, digest, release=release, code=code)
        self._given[step] = (asked, answer)
        return answer
