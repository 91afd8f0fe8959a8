"""Start a run from a script: `python experiments/run.py rounds=3` is `fedray run rounds=3`."""

import sys

from fedray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
