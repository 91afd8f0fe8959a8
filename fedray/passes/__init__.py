"""Passes decide what the server may learn: each is `Graph -> Graph`, and none knows an algorithm or a
host.
"""

from fedray.core.rewrite import Pass, on_reduce, rewrite
from fedray.passes.compression import (
    bidirectional,
    ef21,
    qsgd,
    quantised_broadcast,
    randk,
    scaled_sign,
    sign,
    topk,
)
from fedray.passes.policy import require
from fedray.passes.powersgd import powersgd

__all__ = [
    "Pass",
    "bidirectional",
    "ef21",
    "on_reduce",
    "powersgd",
    "qsgd",
    "quantised_broadcast",
    "randk",
    "require",
    "rewrite",
    "scaled_sign",
    "sign",
    "topk",
]
