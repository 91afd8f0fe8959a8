"""Runs programs one after the other, each in a fork of a process that has imported what takes long.

A line of JSON with folder, program and output comes in; the exit code of the program goes out.
"""

import json
import os
import runpy
import signal
import sys

import torch  # noqa: F401

import fedray.config
import fedray.runtime.ray_hosts  # noqa: F401

LIMIT_S = 120


def run(folder: str, program: str, output: str) -> None:
    """Run a program in a folder; what it prints goes to `output`, and its errors to `output`.err."""
    signal.alarm(LIMIT_S)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, output), (2, f"{output}.err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.path[0], sys.argv = folder, [program]
    runpy.run_path(program, run_name="__main__")


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(**json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
