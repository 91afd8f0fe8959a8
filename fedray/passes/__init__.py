"""Passes decide what the server may learn: each is `Graph -> Graph`, and none knows an algorithm or a
host.
"""

from fedray.core.rewrite import Pass, on_reduce, rewrite
from fedray.passes.compression import ef21, qsgd, randk, scaled_sign, sign, topk
from fedray.passes.downlink import bidirectional, ef21_broadcast, quantised_broadcast
from fedray.passes.policy import require
from fedray.passes.powersgd import powersgd
from fedray.passes.secure_sum import secure_sum

__all__ = [
    "Pass",
    "bidirectional",
    "ef21",
    "ef21_broadcast",
    "on_reduce",
    "powersgd",
    "qsgd",
    "quantised_broadcast",
    "randk",
    "require",
    "rewrite",
    "scaled_sign",
    "secure_sum",
    "sign",
    "topk",
]
