"""Passes decide what the server may learn: each is `Graph -> Graph`, and none knows an algorithm or a
host.
"""

from fedray.core.rewrite import Pass, on_reduce, rewrite
from fedray.passes.adaptive import site_dp_adaptive
from fedray.passes.clipping import clip
from fedray.passes.compression import ef21, qsgd, randk, scaled_sign, sign, topk
from fedray.passes.distributed import site_dp_distributed
from fedray.passes.downlink import bidirectional, ef21_broadcast, quantised_broadcast
from fedray.passes.matrix import site_dp_matrix
from fedray.passes.policy import require
from fedray.passes.powersgd import powersgd
from fedray.passes.privacy import site_dp, site_dp_local
from fedray.passes.secure_sum import secure_sum

__all__ = [
    "Pass",
    "bidirectional",
    "clip",
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
    "site_dp",
    "site_dp_adaptive",
    "site_dp_distributed",
    "site_dp_local",
    "site_dp_matrix",
    "topk",
]
