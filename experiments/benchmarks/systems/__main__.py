"""Start a system by name: `python -m systems NAME DATA ROUNDS OUT [WORDS...]`.

Systems are imported here and not run as scripts: what they define then belongs to an importable module, which
Ray's workers import. In a script it would be sent by value, and a cache of the data rebuilt at each call.
"""

import importlib
import sys

if __name__ == "__main__":
    importlib.import_module(f"systems.{sys.argv.pop(1)}").main()
