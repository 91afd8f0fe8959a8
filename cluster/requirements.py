"""Print what fedray and the named extras depend on, from the pyproject.toml of this folder, a line each."""

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path


def requirements(text: str, extras: Sequence[str]) -> list[str]:
    """Return the dependencies. Raises KeyError for an extra that there is not."""
    project = tomllib.loads(text)["project"]
    return [
        *project["dependencies"],
        *(need for extra in extras for need in project["optional-dependencies"][extra]),
    ]


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml").read_text("utf-8"), sys.argv[1:])))
