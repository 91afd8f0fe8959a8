"""Passes decide what the server may learn: each is `Graph -> Graph`, and none knows an algorithm or a
host.
"""

from fedray.core.rewrite import Pass, on_reduce, rewrite
from fedray.core.trust import trust_statement
from fedray.passes.compression import ef21, qsgd, randk, scaled_sign, sign, topk
from fedray.passes.downlink import bidirectional, ef21_broadcast, quantised_broadcast
from fedray.passes.policy import require
from fedray.passes.powersgd import powersgd
from fedray.passes.secure_sum import group_secure_sum, secure_sum
from fedray.passes.two_server import two_server

__all__ = [
    "Pass",
    "bidirectional",
    "ef21",
    "ef21_broadcast",
    "group_secure_sum",
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
    "trust_statement",
    "two_server",
]
