"""Files of JSON lines that are read while a run writes them, and that a full disk neither ends nor breaks.

A line is there whole or not at all; one that found no room is lost and counted.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO


class LineFile:
    """A file that lines are added to; what a kill has cut off at its end is cut away first."""

    def __init__(self, path: Path) -> None:
        self.path, self.lost = path, 0
        self._file: BinaryIO | Any = None

    def append(self, text: str) -> bool:
        """Add a line; tell whether it is there."""
        data = text.encode() + b"\n"
        try:
            if self._file is None:
                self._file = self._opened()
            size = os.fstat(self._file.fileno()).st_size
            is_whole = self._file.write(data) == len(data)
            if not is_whole:
                self._file.truncate(size)
        except OSError:
            is_whole = False
        self.lost += not is_whole
        return is_whole

    def _opened(self) -> Any:
        file = self.path.open("ab", buffering=0)
        content = self.path.read_bytes()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
        return file

    def close(self) -> None:
        """Close the file; another line opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines in their order, and how many cannot be read; one without an end is left out."""
    if not path.exists():
        return [], 0
    found, unreadable = [], 0
    for line in path.read_text(errors="replace").split("\n")[:-1]:
        try:
            row = json.loads(line) if line else None
        except ValueError:
            row = 0
        if isinstance(row, dict):
            found.append(row)
        unreadable += row is not None and not isinstance(row, dict)
    return found, unreadable
