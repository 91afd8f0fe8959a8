"""The files of a run's privacy beside its checkpoints: a ledger of its own, and what any ledger must hold.

    ledger.jsonl, ledger.jsonl.head   the ledger of a run that was given none
    seen/                             a copy of the ledger that it was given, as this run last saw it
    spending.json                     the run's accounts, and how many entries the ledger had

A ledger is locked and added to, so it is a file of this machine. Where checkpoints lie in a store it is
copied there after every charge, before what is paid for is asked: a lost disk loses no charge.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedray.accounting import PrivacyLedger
from fedray.errors import LedgerError, StorageError
from fedray.runtime.checkpoint import Checkpoints
from fedray.runtime.storage import Folder, below, open_store, tries

LEDGER, SPENDING, SEEN = "ledger.jsonl", "spending.json", "seen"
FILES = (LEDGER, f"{LEDGER}.head")


class SpendingFiles:
    """Where they lie; without checkpoints, nowhere."""

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        self.checkpoints = checkpoints
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def own_ledger(self) -> Path | None:
        """Return the path of a ledger of the run's own, brought here from the store where it lies there."""
        if self.checkpoints is None:
            return None
        if isinstance(self.checkpoints.store, Folder):
            return self.checkpoints.store.path / LEDGER
        here = self.checkpoints.local
        if here is None:
            self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="fedray-ledger-")
            here = Path(self._scratch.name)
        if not (here / LEDGER).exists():
            names = set(self.checkpoints.store.names())
            for name in FILES:
                if name in names:
                    Folder(here).write(name, self.checkpoints.store.read(name))
        return here / LEDGER

    def write(self, run: str, opened: Mapping[str, int], ledger: PrivacyLedger, is_own: bool) -> None:
        """Note what the ledger must hold when the run goes on, after a copy of it where one is needed."""
        if self.checkpoints is None:
            return
        error: StorageError | None = None
        for _ in tries(self.checkpoints.patience_s):
            try:
                self._write(self.checkpoints, run, opened, ledger, is_own)
                return
            except StorageError as caught:
                error = caught
        raise StorageError(
            f"the privacy that the next release spends could not be noted, so nothing is released: {error}"
        ) from error

    def _write(
        self,
        checkpoints: Checkpoints,
        run: str,
        opened: Mapping[str, int],
        ledger: PrivacyLedger,
        is_own: bool,
    ) -> None:
        store, address = checkpoints.store, checkpoints.address
        is_there = is_own and isinstance(store, Folder)
        if ledger.path is not None and checkpoints.is_shared and not is_there:
            kept = store if is_own else open_store(below(address, SEEN))
            for name in FILES:
                source = ledger.path.with_name(name.replace(LEDGER, ledger.path.name))
                kept.write(name, source.read_bytes())
        entries, head = ledger.head
        told = {"run": run, "opened": dict(opened), "entries": entries, "head": head}
        store.write(SPENDING, json.dumps(told).encode())

    def read(self, ledger: PrivacyLedger) -> dict[str, Any]:
        """Return what was noted. Raises LedgerError where nothing was, or the ledger holds less."""
        try:
            found = self.checkpoints.store.read(SPENDING) if self.checkpoints is not None else b""
        except FileNotFoundError:
            found = b""
        if not found:
            raise LedgerError(
                "E_LEDGER: the run goes on and nothing says what it has spent: spending.json is missing from "
                "its checkpoints. Start it again"
            )
        kept: dict[str, Any] = json.loads(found)
        if not ledger.holds(kept["entries"], kept["head"]):
            copy = ""
            if self.checkpoints is not None and self.checkpoints.is_shared:
                copy = f"; a copy as this run last saw it lies in {below(self.checkpoints.address, SEEN)}"
            raise LedgerError(
                f"E_LEDGER: the ledger does not hold the {kept['entries']} entries that this run has seen in "
                f"it: go on with the same ledger, whole{copy}"
            )
        return kept

    def close(self) -> None:
        """Remove what was only needed here."""
        if self._scratch is not None:
            self._scratch.cleanup()
