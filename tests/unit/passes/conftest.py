"""One torch thread, as in a pack: sizes are small, and threads that wait for a busy core cost seconds."""

from tests.unit.algorithms.conftest import one_thread

__all__ = ["one_thread"]
