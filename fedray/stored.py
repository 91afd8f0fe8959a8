"""A run's records beside its checkpoints in a store, so that it goes on where its own folder is lost.

    s3://bucket/fedray/20261127-071500-icu_mortality-7f3a91/     checkpoint.storage=s3://bucket/fedray
      stored.json config.yaml ... rounds.jsonl                   copies of the run directory's files
      checkpoints/                                               the checkpoints themselves: checkpoint.py

Copies are made before every checkpoint, so a checkpoint that is there has its records. `fedray resume
ADDRESS` makes a run directory of them and goes on in it.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedray.errors import ConfigError, StorageError
from fedray.runtime.storage import Folder, Store, below, is_address, open_store

if TYPE_CHECKING:
    from fedray.rundir import RunDirectory
    from fedray.runtime.checkpoint import Checkpoints

logger = logging.getLogger(__name__)
FORMAT = 1
MARK = "stored.json"  # tells a run in a store from a run directory, where the store is a folder
NOTE = "stored-in.txt"  # in a run directory: the address
CHECKPOINTS = "checkpoints"
NOT_COPIED = (".part", ".parquet")  # half written; made again from the lines


def address_of(tree: Mapping[str, Any], run_dir: Path) -> str | None:
    """Return where a run is kept besides its own folder, and note it there; None where it is not."""
    storage, note = tree["checkpoint"].get("storage"), run_dir / NOTE
    if not storage:
        return None
    if not note.exists():
        if not is_address(storage):
            storage = str(Path(storage).absolute())  # processes of Ray may be in other folders
        here, runs = run_dir.resolve(), Path(tree["runs_dir"]).resolve()
        # a trial of a sweep is called as those of others are
        name = here.relative_to(runs).as_posix() if here.is_relative_to(runs) else here.name
        Folder(run_dir).write(NOTE, f"{below(storage, name)}\n".encode())
    return note.read_text().strip()


def checkpoints_of(tree: Mapping[str, Any], run: "RunDirectory") -> "Checkpoints":
    """Return the checkpoints of a run: in its folder, or in the store that the configuration names."""
    from fedray.runtime.checkpoint import Checkpoints

    settings, address = tree["checkpoint"], address_of(tree, run.path)
    often = {"every_s": settings["every_s"], "keep": settings["keep"]}
    if address is None:
        return Checkpoints(run.checkpoints, **often)
    return Checkpoints(
        below(address, CHECKPOINTS),
        is_shared=True,
        local=run.checkpoints,
        also=Copies(run.path, address),
        **often,
    )


class Copies:
    """Copy what has changed in a run directory since the last time; calling it does so."""

    def __init__(self, path: Path, address: str) -> None:
        self.path, self.address = path, address
        self._store: Store | None = None
        self._seen: dict[str, tuple[int, int]] = {}

    def __call__(self) -> None:
        """Raises StorageError where the store does not take them."""
        if self._store is None:
            store = open_store(self.address)
            mark = {"format": FORMAT, "run": self.path.resolve().name}
            store.write(MARK, json.dumps(mark).encode())
            self._store = store
        for entry in sorted(os.scandir(self.path), key=lambda entry: entry.name):
            if not entry.is_file() or entry.name.endswith(NOT_COPIED):
                continue
            found = entry.stat()
            state = (found.st_mtime_ns, found.st_size)
            if self._seen.get(entry.name) != state:
                self._store.write(entry.name, Path(entry.path).read_bytes())
                self._seen[entry.name] = state

    def last(self) -> None:
        """Copy what the end of the run has written; a store that is away then is said, and no more."""
        try:
            self()
        except StorageError as error:
            logger.warning("the end of the run is not in its store: %s", error)


def opened(path: str | Path) -> tuple[Path, str | None]:
    """Return the run directory that a path or an address stands for, and the store that it came from.

    A run in a store is brought into a run directory first. Raises ConfigError where there is no run.
    """
    if not is_address(path) and not (Path(path) / MARK).is_file():
        return Path(path), None
    address = str(path).rstrip("/")
    parent, _, name = address.rpartition("/")
    store = open_store(address)
    names = [each for each in store.names() if each not in (MARK, NOTE)]
    if "config.yaml" not in names or not parent or is_address(name):
        raise ConfigError(
            f"{address} holds no run: it has no config.yaml. Fix: the address of a run, as "
            "CHECKPOINT.STORAGE/NAME; its log says it at the start"
        )
    settings = yaml.safe_load(store.read("config.yaml"))
    folder = Path(settings["runs_dir"]) / name
    if not is_address(address) and folder.resolve() == Path(address).resolve():
        raise ConfigError(f"{address} is the store of a run and its runs_dir. Fix: name another storage")
    here = Folder(folder)
    for each in names:
        here.write(each, store.read(each))
    here.write(NOTE, f"{address}\n".encode())
    (folder / CHECKPOINTS).mkdir(exist_ok=True)
    logger.warning("the run of %s goes on in %s", address, folder)
    return folder, parent
