"""Run the command line with a stamp after each of its phases: `stamped_command.py FILE run ...`.

Each line of FILE is a phase and the time of its end. The command itself is unchanged: functions that it calls
are wrapped from outside. A phase whose function is not found any more is written down as missing.
"""

import functools
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

PHASES = (("fedray.config", "build", "data set and model made"),
          ("fedray.config_build", "Experiment.federate", "Ray and its actors asked for"),
          ("fedray.experiment", "prepare", "every site answered, columns prepared"),
          ("fedray.rundir", "RunDirectory.create", "run directory made"))


def stamp(path: str, phase: str) -> None:
    """Write a line."""
    with open(path, "a") as file:
        file.write(f"{phase}\t{time.time()}\n")


def stamped(function: Callable[..., Any], path: str, phase: str) -> Callable[..., Any]:
    """Return the function with a stamp at its end."""
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        stamp(path, phase)
        return result
    return call


def wrap(path: str) -> None:
    """Wrap the functions of the phases."""
    for module, name, phase in PHASES:
        owner: Any = importlib.import_module(module)
        *outer, own = name.split(".")
        for part in outer:
            owner = getattr(owner, part, None)
        if not hasattr(owner, own):
            stamp(path, f"missing: {phase}")
            continue
        setattr(owner, own, stamped(getattr(owner, own), path, phase))


def main() -> int:
    """Run the command."""
    path = sys.argv.pop(1)
    stamp(path, "interpreter started")
    from fedray import cli, config

    check = config.check

    def checked(given: Any) -> None:
        check(given)
        stamp(path, "configuration composed and checked")
        importlib.import_module("fedray.experiment")
        stamp(path, "torch and fedray imported")
        wrap(path)

    config.check = checked
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
