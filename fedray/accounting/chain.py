"""A file of entries in a chain of hashes, so that an edit shows: h_k = SHA-256(h_(k-1) | SHA-256(entry_k)).

    {"entry":{"seq":0,"ev":"join"},"chain":"2e95a695..."}

Entries are hashed as the bytes that they are. That the end was cut off a chain cannot show, so the last link
lies beside the file too, in `<file>.head`. An entry that `append` has returned from is on disk.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedray.errors import LedgerError, StorageError

START = bytes(32)
_BEFORE, _BETWEEN, _AFTER = b'{"entry":', b',"chain":"', b'"}'
_TAIL = len(_BETWEEN) + 64 + len(_AFTER)
Entry = dict[str, Any]


def link(previous: bytes, entry: bytes) -> bytes:
    """Return the next link."""
    return hashlib.sha256(previous + hashlib.sha256(entry).digest()).digest()


def line(entry: bytes, chained: bytes) -> bytes:
    """Return an entry and its link as one line of JSON."""
    return _BEFORE + entry + _BETWEEN + chained.hex().encode() + _AFTER + b"\n"


class ChainedFile:
    """Entries that are only ever added. Each is told to `take` in order, those of other processes too.

    Without a `path` entries are kept nowhere, and chained all the same. Raises LedgerError, here and at every
    use, naming the first entry that is broken or missing.
    """

    def __init__(
        self, path: Path | None, take: Callable[[Entry], None], *, is_read_only: bool = False
    ) -> None:
        self.path, self._take = path, take
        self.links: list[bytes] = []
        self._read = 0  # bytes of the file that were taken
        self._guard = threading.RLock()
        self._file: int | None = None
        if path is not None and is_read_only:
            self._file = os.open(path, os.O_RDONLY)
        elif path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with self.locked():
            self._check_head()

    @property
    def head(self) -> str:
        """The last link."""
        return (self.links[-1] if self.links else START).hex()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes and threads out, and take what they have added."""
        with self._guard:
            if self._file is None:
                yield
                return
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._catch_up(self._file)
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def append(self, entry: Entry) -> int:
        """Add an entry, inside `locked`; return its number, once it is on disk."""
        number = len(self.links)
        text = json.dumps({"seq": number, **entry}, allow_nan=False, separators=(",", ":")).encode()
        written = line(text, link(self.links[-1] if self.links else START, text))
        if self._file is not None:
            self._write(self._file, written)
        self._accept(text)
        self._read += len(written)
        if self.path is not None:
            self._write_head(self.path)
        return number

    def _write(self, file: int, written: bytes) -> None:
        """Add bytes to the file, all or none. Raises StorageError where the disk does not take them."""
        try:
            view = memoryview(written)
            while view:
                view = view[os.write(file, view) :]
            os.fsync(file)
        except OSError as error:
            os.ftruncate(file, self._read)
            raise self._full(error) from error

    def _full(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self.path} cannot be added to ({error.strerror}), so nothing may be released that it would "
            "pay for. Fix: free space there"
        )

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _accept(self, text: bytes) -> None:
        try:
            self._take(json.loads(text))
        except (KeyError, TypeError, ValueError) as error:
            raise self._broken("is of another version of fedray, or was not written by it") from error
        self.links.append(link(self.links[-1] if self.links else START, text))

    def _catch_up(self, file: int) -> None:
        size = os.fstat(file).st_size
        if size < self._read:
            raise self._broken("is missing: the file is shorter than it was")
        data = os.pread(file, size - self._read, self._read)
        while data:
            text, end, data = data.partition(b"\n")
            entry = text[len(_BEFORE) : -_TAIL]
            if not end:
                raise self._broken(
                    "is cut off. If the machine went down while it was written, nothing was released for it: "
                    "take the text after the last line break out of the file"
                )
            if text + end != line(entry, link(self.links[-1] if self.links else START, entry)):
                raise self._broken("was changed, or one before it was taken out")
            self._accept(entry)
            self._read += len(text) + 1

    def _check_head(self) -> None:
        """Raise LedgerError where the file ends before the link that was last written beside it."""
        if self.path is None or not self._head_file(self.path).exists():
            return
        try:
            kept = json.loads(self._head_file(self.path).read_text())
            kept = {"entries": int(kept["entries"]), "chain": str(kept["chain"])}
        except (KeyError, TypeError, ValueError) as error:
            raise self._broken("cannot be compared: the file beside it (.head) was changed") from error
        if kept["entries"] > len(self.links):
            raise self._broken(f"is missing: there were {kept['entries']} entries, and the file ends here")
        if kept["entries"] and self.links[kept["entries"] - 1].hex() != kept["chain"]:
            raise self._broken("is another than there was: the file was written anew", kept["entries"] - 1)

    def _write_head(self, path: Path) -> None:
        target = self._head_file(path)
        part = target.with_name(f"{target.name}.{os.getpid()}")
        try:
            with part.open("w") as file:
                file.write(json.dumps({"entries": len(self.links), "chain": self.head}))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._full(error) from error
        if len(self.links) == 1:
            _sync_folder(path.parent)

    @staticmethod
    def _head_file(path: Path) -> Path:
        return path.with_name(f"{path.name}.head")

    def _broken(self, what: str, number: int | None = None) -> LedgerError:
        name = self.path.name if self.path else "in memory"
        place = len(self.links) if number is None else number
        return LedgerError(
            f"E_LEDGER: entry {place} of the ledger {name} {what}. Nothing may be released on its word: put "
            "the file back as it was, from a copy"
        )


def _sync_folder(folder: Path) -> None:
    """Make the names of new files last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
