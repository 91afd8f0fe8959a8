"""Between two checkpoints: sites' state is saved where many bytes of downlinks would be kept for a replay.

A host that starts again is given its sites' saved state and every call since. That is saved in a folder for
temporary files, or in the run's store where it has one that all its machines reach: a machine that is lost
with its disk is then replaced by any other.
"""

import logging
import tempfile
from collections.abc import Callable
from typing import Any

from fedray.errors import StorageError
from fedray.runtime.checkpoint import remove_before
from fedray.runtime.storage import below

logger = logging.getLogger(__name__)
MOST_BYTES = 256 * 2**20  # of downlinks kept for a replay; beyond it the sites' state is saved


class Between:
    """The place, and how much is kept since the last save."""

    def __init__(self) -> None:
        self.kept_bytes = 0
        self.storage = ""  # of the run, where every machine can write and read
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._is_said = False

    @property
    def place(self) -> str:
        """The address of the place."""
        if self.storage:
            return below(self.storage, "between")
        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="fedray-sites-")
        return self._scratch.name

    def take(self, nbytes: int, round: int, is_one_shot: bool, save: Callable[[str, int], Any]) -> None:
        """Take note of the bytes that a round has sent down, and save where they are too many.

        A one-shot round is never replayed, so it is saved; where a checkpoint follows it anyway, by that.
        """
        self.kept_bytes += nbytes
        if self.kept_bytes <= MOST_BYTES and (not is_one_shot or self.storage):
            return
        try:
            save(self.place, round)
            remove_before(self.place, round)
        except StorageError as error:
            if not self._is_said:  # nothing is lost: what would be replayed is kept
                logger.warning("sites' state is not saved between checkpoints: %s", error)
            self._is_said, self.kept_bytes = True, 0

    def close(self) -> None:
        """Remove the folder for temporary files."""
        if self._scratch is not None:
            self._scratch.cleanup()
