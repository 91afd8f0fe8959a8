"""Passes decide what the server may learn: each is `Graph -> Graph`, and none knows an algorithm or a
host.
"""

from fedray.core.rewrite import Pass, on_reduce, rewrite
from fedray.passes.policy import require

__all__ = ["Pass", "on_reduce", "require", "rewrite"]
