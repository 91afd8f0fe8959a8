"""Which versions of Python may be in one cluster: the same, or, where Ray is told so, another patch level."""

import os
from collections.abc import Mapping

MATCH_LEVEL = "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"  # Ray's own: "patch" or "minor"
LET = f"another patch level, which {MATCH_LEVEL}=minor lets be"


def is_let(theirs: str, ours: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether two versions of Python differ, and may: in the patch level alone, where Ray is told so."""
    is_minor = environment.get(MATCH_LEVEL) == "minor"
    return is_minor and theirs != ours and theirs.split(".")[:2] == ours.split(".")[:2]
