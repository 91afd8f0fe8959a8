"""Files of JSON lines that a run adds to: a full disk and a kill cost lines, never the run nor the file."""

import json
import os
from pathlib import Path
from typing import Any

from fedray.track import append_whole

BLOCK = 4096  # bytes that are looked at for the end of the last whole line


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a file, and how many of its lines cannot be read.

    A last line that has no end is neither: it is being written, or a kill cut it off.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found = [_row(line) for line in lines if line]
    rows = [row for row in found if row is not None]
    return rows, len(found) - len(rows)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # a machine that went down leaves zeros, or bytes of another file
        return None
    return row if isinstance(row, dict) else None


def unread(name: str, number: int) -> str:
    """Return how many lines of a file cannot be read, in words."""
    some = f"{number} line cannot be read and is" if number == 1 else f"{number} lines cannot be read and are"
    return f"{name}: {some} left out; a machine that went down leaves such"


def cut_unfinished(path: Path) -> None:
    """Remove a last line that has no end, so that the next one begins a line; it needs no room."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = whole = file.seek(0, os.SEEK_END)
        while whole:
            start = max(0, whole - BLOCK)
            file.seek(start)
            at = file.read(whole - start).rfind(b"\n")
            if at >= 0:
                whole = start + at + 1
                break
            whole = start
        if whole < end:
            file.truncate(whole)


class Lines:
    """Add lines to a file, each of them whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        cut_unfinished(path)

    def add(self, text: str) -> bool:
        """Add a text of whole lines; tell whether the disk took it."""
        try:
            append_whole(self._path, text.encode())
        except OSError:
            return False
        return True
