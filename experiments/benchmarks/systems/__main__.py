"""Start a system by name: `python -m systems NAME DATA ROUNDS OUT [WORDS...]`.

Systems are imported here and not run as scripts: what they define then belongs to an importable module, which
Ray's workers import. In a script it would be sent by value, and a cache of the data rebuilt at each call.
"""

import ctypes
import importlib
import os
import sys

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def adopt_orphans() -> None:
    """Make this process the parent of what its descendants leave behind, so that no daemon escapes the count.

    Raises OSError where the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    adopt_orphans()
    importlib.import_module(f"systems.{sys.argv.pop(1)}").main()
