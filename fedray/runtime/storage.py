"""Where checkpoints and a run's records are kept: a folder, or objects under one prefix of a bucket.

    open_store("runs/x/checkpoints")       a folder, local or mounted
    open_store("s3://bucket/prefix")       objects, also gs://: see storage_objects.py

A store holds files by name, in no folders. What `write` has returned from is there whole and stays when the
machine goes down; what it has not is there as it was before, or not at all.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fedray.errors import ConfigError, StorageError

PART = ".part"  # ends the name of a file that is being written
SCHEMES = ("s3", "gs")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0  # between two tries of what must be written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Store(Protocol):
    """Files by name. Raises StorageError, which says what to do, where the disk or the service fails."""

    address: str

    def names(self) -> list[str]:
        """Return the names of all files that are whole, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises FileNotFoundError where there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole, in place of one of that name."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is none to remove."""
        ...

    def append(self, name: str, line: bytes) -> None:
        """Add a line to a file of lines."""
        ...

    def lines(self, name: str) -> list[bytes]:
        """Return the lines that `append` has returned from, and make the file ready for more."""
        ...

    def sweep(self) -> None:
        """Remove what a process that was killed has left half written; nobody else may be writing."""
        ...


def is_address(place: str | os.PathLike[str]) -> bool:
    """Tell whether a place is that of an object store."""
    return "://" in str(place)


def below(address: str, name: str) -> str:
    """Return the address of a place inside another."""
    return f"{address.rstrip('/')}/{name}"


def check_address(place: str | os.PathLike[str]) -> str:
    """Return the address of a place as text. Raises ConfigError where it is none."""
    text = str(place)
    scheme, found, rest = text.partition("://")
    if found and scheme not in SCHEMES:
        raise ConfigError(
            f"{text}: a place to keep checkpoints is a folder or an address of {' or '.join(SCHEMES)}. "
            "Fix: a path, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
        )
    if found and (not rest.split("/")[0] or "@" in rest.split("/")[0] or "?" in rest):
        raise ConfigError(
            f"{scheme}://...: the address of a store is a bucket and a prefix; keys and options come from "
            f"the environment. Fix: {scheme}://BUCKET/PREFIX"
        )
    return text


def open_store(place: str | os.PathLike[str]) -> Store:
    """Return the store at a place. Raises ConfigError where it is the address of none."""
    address = check_address(place)
    if not is_address(address):
        return Folder(address)
    from fedray.runtime.storage_objects import Objects

    return Objects(address)


def tries(patience_s: float) -> Iterator[None]:
    """Yield for a first try, then again after growing pauses, which come to `patience_s`."""
    yield
    pause = FIRST_PAUSE_S
    while patience_s > 0:
        pause = min(pause, LONGEST_PAUSE_S, patience_s)
        time.sleep(pause)
        yield
        patience_s -= pause
        pause *= 2


def check_store(store: Store) -> None:
    """Raise StorageError where a store cannot be written to."""
    name = f"probe-{os.getpid()}"
    store.write(name, b"fedray")
    store.remove(name)


class Folder:
    """A folder. A file appears by one rename, after its bytes are on the disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.address = Path(path), str(path)

    def names(self) -> list[str]:
        """Return the names of all files that are whole, sorted."""
        try:
            with os.scandir(self.path) as entries:
                return sorted(
                    entry.name for entry in entries if entry.is_file() and not entry.name.endswith(PART)
                )
        except FileNotFoundError:
            return []
        except OSError as error:
            raise failed(self.path, error, "listed") from error

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises FileNotFoundError where there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise failed(self.path / name, error, "read") from error

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole, in place of one of that name."""
        target = self.path / name
        part = f"{target}.{os.getpid()}{PART}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
            sync_folder(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise failed(target, error, "written", len(data)) from error

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is none to remove."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise failed(self.path / name, error, "removed") from error

    def append(self, name: str, line: bytes) -> None:
        """Add a line to a file of lines; where that fails, none of it stays."""
        path = self.path / name
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise failed(path, error, "opened") from error
        size = os.fstat(file).st_size
        try:
            view = memoryview(line + b"\n")
            while view:
                view = view[os.write(file, view) :]
            os.fsync(file)
        except OSError as error:
            os.ftruncate(file, size)
            raise failed(path, error, "added to", len(line)) from error
        finally:
            os.close(file)

    def lines(self, name: str) -> list[bytes]:
        """Return the lines that `append` has returned from; a last one without its end is cut off."""
        path = self.path / name
        try:
            if not path.exists():
                self.path.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
                sync_folder(self.path)
            whole, _, rest = path.read_bytes().rpartition(b"\n")
            if rest:
                os.truncate(path, len(whole) + bool(whole))
        except OSError as error:
            raise failed(path, error, "read") from error
        return whole.splitlines()

    def sweep(self) -> None:
        """Remove what a process that was killed has left half written; nobody else may be writing."""
        for path in self.path.glob(f"*{PART}"):
            path.unlink(missing_ok=True)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make the names of new files last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(path: str | os.PathLike[str]) -> int | None:
    """Return how many bytes are free where a path lies or would lie; None where the system does not tell."""
    for folder in (Path(path), *Path(path).absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def failed(path: str | os.PathLike[str], error: OSError, what: str, size: int | None = None) -> StorageError:
    """Return the error that says what could not be done with a file, why, and what mends it."""
    why = error.strerror or type(error).__name__
    free = free_bytes(Path(path).parent) if error.errno in FULL else None
    room = "" if free is None else f"; {free} bytes are free there"
    needed = f" and {size} are needed" if room and size is not None else ""
    mending = "free space there" if error.errno in FULL else "mend that"
    told = f"{path} cannot be {what} ({why}{room}{needed})"
    return StorageError(f"{told}. Fix: {mending}, or name another place")
