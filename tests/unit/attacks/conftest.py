"""What the tests of the attacks share: their folder on the path, and one torch thread."""

import sys
from pathlib import Path

from tests.unit.algorithms.conftest import one_thread

sys.path.append(str(Path(__file__).parents[3] / "experiments" / "attacks"))  # before the tests are imported

__all__ = ["one_thread"]
